"""Encoding of text as token numbers: bytes, a ``tokenizer.json``, or a tokenizer of ``transformers``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import DataError, NeuroTrailsError, NeuroTrailsWarning, nearest

BYTES: Final = "bytes"
SETTING: Final = "data.text.tokenizer"
END_SETTING: Final = "data.text.end_of_text"
ENDS_OF_TEXT: Final = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
"""End-of-text tokens, searched in this order, because a ``tokenizer.json`` does not name its own."""

Encode = Callable[[bytes, str], NDArray[Any]]
"""A document and its name in errors → its token numbers (N,), with the end of the text."""


Loaded = tuple[Callable[[str], Sequence[int]], Mapping[str, int], int | None]
"""Text → its token numbers, the number of each token, and that of the end of the text, if there is one."""


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


def open_tokenizer(name: str, end_of_text: str | None = None) -> Tokenizer:
    """Open a tokenizer by name.

    Padding and truncation that a ``tokenizer.json`` asks for are turned off, because a text is cut into
    sequences afterwards.

    Args:
        name: ``bytes``; the path of a ``tokenizer.json``, which the package ``tokenizers`` reads; or a folder
            or a name on the Hugging Face hub, which ``transformers`` reads.
        end_of_text: the token that follows each document; None: the tokenizer's own. A warning says so where
            it has none.

    Raises:
        DataError: the name leads nowhere, the tokenizer cannot be read, or it lacks the token.
        NeuroTrailsError: a package is not installed.
    """
    if name == BYTES:
        if end_of_text is not None:
            raise DataError(
                f"{END_SETTING}: expected none for {BYTES!r}, whose documents end in a newline, found "
                f"{end_of_text!r}"
            )
        return Tokenizer(size=256, encode=_encode_bytes)
    path = Path(name).expanduser()
    if path.suffix == ".json" and not path.is_file():
        raise DataError(
            f"{SETTING}: no file {name!r}; expected {BYTES!r}, a tokenizer.json, a folder or a name on the "
            "hub"
        )
    numbers, vocabulary, end = _from_file(path) if path.is_file() else _from_transformers(name)
    return _tokenizer(numbers, vocabulary, _end(name, vocabulary, end, end_of_text))


def _end(name: str, vocabulary: Mapping[str, int], own: int | None, wanted: str | None) -> int | None:
    """Return the number of the token that ends a document; None: nothing does, and a warning says so."""
    if wanted is not None:
        if wanted not in vocabulary:
            raise DataError(f"{END_SETTING}: {name!r} has no token {wanted!r}{nearest(wanted, vocabulary)}")
        return vocabulary[wanted]
    if own is None:
        warnings.warn(
            f"{SETTING}: {name!r} names no end of text, so that documents follow each other without a mark; "
            f"name a token by --set {END_SETTING}=TOKEN",
            NeuroTrailsWarning,
            stacklevel=3,
        )
    return own


def _encode_bytes(document: bytes, _: str) -> NDArray[np.uint8]:
    """Return the bytes of a document, with a newline at the end if it has none."""
    if document and not document.endswith(b"\n"):
        document += b"\n"
    return np.frombuffer(document, np.uint8)


def _from_file(path: Path) -> Loaded:
    library = _package("tokenizers", path.name)
    with _explained(f"{SETTING}: {path}: not a tokenizer.json"):
        loaded = library.Tokenizer.from_file(str(path))
    loaded.no_truncation()
    loaded.no_padding()
    vocabulary = loaded.get_vocab()
    end = next((vocabulary[token] for token in ENDS_OF_TEXT if token in vocabulary), None)

    def numbers(text: str) -> Sequence[int]:
        with _explained(f"{SETTING}: {path}: cannot encode a document"):
            return loaded.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]

    return numbers, vocabulary, end


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


def _from_transformers(name: str) -> Loaded:
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

    return numbers, loaded.get_vocab(), loaded.eos_token_id


def _tokenizer(
    numbers: Callable[[str], Sequence[int]], vocabulary: Mapping[str, int], end: int | None
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
