"""Encoding of text as token numbers: bytes, a ``tokenizer.json``, or a tokenizer of ``transformers``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import DataError, NeuroTrailsError

BYTES: Final = "bytes"
SETTING: Final = "data.text.tokenizer"
ENDS_OF_TEXT: Final = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
"""End-of-text tokens, searched in this order, because a ``tokenizer.json`` does not name its own."""

Encode = Callable[[bytes, str], NDArray[Any]]
"""A document and its name in errors → its token numbers (N,), with the end of the text."""


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Encoder of documents as token numbers.

    Attributes:
        size: upper bound of token numbers, exclusive.
        encode: document → token numbers in the smallest sufficient unsigned dtype; an empty one has none.

    Example:
        >>> open_tokenizer("bytes").encode(b"To be", "a line")
        array([ 84, 111,  32,  98, 101,  10], dtype=uint8)
    """

    size: int
    encode: Encode


def open_tokenizer(name: str) -> Tokenizer:
    """Open a tokenizer by name.

    Args:
        name: ``bytes``; the path of a ``tokenizer.json``, which the package ``tokenizers`` reads; or a folder
            or a name on the Hugging Face hub, which ``transformers`` reads.

    Raises:
        DataError: the name leads nowhere, or the tokenizer cannot be read.
        NeuroTrailsError: a package is not installed.
    """
    if name == BYTES:
        return Tokenizer(size=256, encode=_encode_bytes)
    path = Path(name).expanduser()
    if path.suffix == ".json" and not path.is_file():
        raise DataError(
            f"{SETTING}: no file {name!r}; expected {BYTES!r}, a tokenizer.json, a folder or a name on the "
            "hub"
        )
    return _from_file(path) if path.is_file() else _from_transformers(name)


def _encode_bytes(document: bytes, _: str) -> NDArray[np.uint8]:
    """Return the bytes of a document, with a newline at the end if it has none."""
    if document and not document.endswith(b"\n"):
        document += b"\n"
    return np.frombuffer(document, np.uint8)


def _from_file(path: Path) -> Tokenizer:
    library = _package("tokenizers", path.name)
    with _explained(f"{SETTING}: {path}: not a tokenizer.json"):
        loaded = library.Tokenizer.from_file(str(path))
    loaded.no_truncation()
    vocabulary = loaded.get_vocab()
    end = next((vocabulary[token] for token in ENDS_OF_TEXT if token in vocabulary), None)

    def numbers(text: str) -> Sequence[int]:
        with _explained(f"{SETTING}: {path}: cannot encode a document"):
            return loaded.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]

    return _tokenizer(numbers, vocabulary, end)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn errors of the package ``tokenizers`` into a :class:`DataError` that names the failed step."""
    try:
        yield
    except BaseException as error:
        # The package raises plain Exception; a panic of its Rust code is a BaseException.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise DataError(f"{what}: {error}; make it again, or use {SETTING}={BYTES}") from None
        raise


def _from_transformers(name: str) -> Tokenizer:
    library = _package("transformers", name)
    try:
        loaded = library.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{SETTING}: {name!r} cannot be loaded: {reason.rstrip('.')}; expected {BYTES!r}, a "
            "tokenizer.json, a folder or a name on the hub"
        ) from None

    def numbers(text: str) -> Sequence[int]:
        return loaded(text, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[no-any-return]

    return _tokenizer(numbers, loaded.get_vocab(), loaded.eos_token_id)


def _tokenizer(
    numbers: Callable[[str], Sequence[int]], vocabulary: dict[str, int], end: int | None
) -> Tokenizer:
    if not vocabulary:
        raise DataError(f"{SETTING}: expected a tokenizer of at least one token, found none")
    size = max(vocabulary.values()) + 1
    dtype = np.min_scalar_type(size - 1)

    def encode(document: bytes, where: str) -> NDArray[Any]:
        try:
            found = numbers(document.decode())
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: not UTF-8 at byte {error.start} ({error.reason}); convert it, or use "
                f"{SETTING}={BYTES}, which takes any file"
            ) from None
        return np.array([*found, end] if found and end is not None else found, dtype)

    return Tokenizer(size=size, encode=encode)


def _package(package: str, name: str) -> Any:
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise NeuroTrailsError(
            f"{SETTING}: {name!r} needs the package {error.name}: pip install {error.name}; "
            f"or use {SETTING}={BYTES}"
        ) from None
