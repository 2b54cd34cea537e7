"""Tensors in safetensors files: listed from the headers, read one at a time or mapped into memory.

Folders of other libraries have the layout of Hugging Face: one ``model.safetensors``, or shards that
``model.safetensors.index.json`` lists.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from nt_core.errors import CheckpointError
from nt_core.files.atomic import expect_file, read_json, write_atomically
from nt_core.files.parsing import ParseError, parse_json
from nt_core.values import Shape

TENSORS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
STORED: Final = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""The dtypes that are read → the NumPy dtype of their bytes; NumPy has no bfloat16."""

MAPPED: Final = {"I64": "<i8", "U8": "<u1"}
"""The dtypes that are mapped → NumPy dtype."""


NUMPY: Final = frozenset({"F64", "F32", "F16", "I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8", "BOOL"})
"""The dtypes that NumPy has."""

MOST_HEADER_BYTES: Final = 16 << 20
"""Largest size of a header: that of some 100,000 tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a file, not read yet.

    Attributes:
        path: of the file.
        dtype: as safetensors names it: ``"F32"``, ``"BF16"``, ….
        shape: of the tensor.
        start: offset of the tensor's first byte in the file.
    """

    path: Path
    dtype: str
    shape: Shape
    start: int

    def read(self) -> NDArray[np.float32]:
        """Read the tensor; float16 and bfloat16 become float32, which holds all their values.

        Raises:
            CheckpointError: the dtype is not in :data:`STORED`, or the file cannot be read.
        """
        if self.dtype not in STORED:
            raise CheckpointError(
                f"{self.path}: expected {', '.join(STORED)}, found a tensor of {self.dtype}"
            )
        try:
            raw = np.fromfile(self.path, STORED[self.dtype], math.prod(self.shape), offset=self.start)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror})") from None
        # A bfloat16 is the upper half of a float32.
        wide = (raw.astype(np.uint32) << 16).view(np.float32) if self.dtype == "BF16" else raw
        return wide.astype(np.float32, copy=False).reshape(self.shape)

    def map(self) -> NDArray[Any]:
        """Map the tensor into memory, read-only; only the used parts are read from disk.

        Raises:
            CheckpointError: the dtype is not in :data:`MAPPED`, or the file cannot be read.
        """
        if self.dtype not in MAPPED:
            raise CheckpointError(
                f"{self.path}: expected {', '.join(MAPPED)}, found a tensor of {self.dtype}"
            )
        if not math.prod(self.shape):
            return np.empty(self.shape, MAPPED[self.dtype])
        try:
            return np.memmap(self.path, MAPPED[self.dtype], "r", offset=self.start, shape=self.shape)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror})") from None


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """List the tensors of a folder in the layout of Hugging Face, sharded or not.

    Returns:
        Name → tensor.

    Raises:
        CheckpointError: there are no tensors, a shard is missing or damaged, or two shards hold the same
            name.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in _files(folder):
        for name, tensor in tensors_in(path)[0].items():
            if name in tensors:
                raise CheckpointError(
                    f"{path}: {name!r} is also in {tensors[name].path.name}; keep one of them"
                )
            tensors[name] = tensor
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a file of tensors atomically, with the metadata that Hugging Face's libraries expect."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, metadata={"format": "pt"}))


def expect_dtypes(path: Path) -> dict[str, str]:
    """Check that NumPy has the dtypes of all tensors in a file.

    Returns:
        The file's metadata.

    Raises:
        CheckpointError: a tensor has another dtype, or as :func:`tensors_in`.
    """
    found, metadata = tensors_in(path)
    for name, tensor in found.items():
        if tensor.dtype not in NUMPY:
            raise CheckpointError(
                f"{path}: {name!r}: expected one of {', '.join(sorted(NUMPY))}, found {tensor.dtype}"
            )
    return metadata


def _files(folder: Path) -> list[Path]:
    """List the files that hold a folder's tensors."""
    if (folder / TENSORS).is_file():
        return [folder / TENSORS]
    if not (folder / INDEX).is_file():
        raise CheckpointError(
            f"{folder}: expected {TENSORS}, or shards and {INDEX}; found neither; make them of other formats "
            "by from_pretrained and save_pretrained of transformers"
        )
    shards = read_json(folder / INDEX, "restore the file").get("weight_map")
    if not isinstance(shards, dict) or not all(_is_plain(shard) for shard in shards.values()):
        raise CheckpointError(f"{folder / INDEX}: expected 'weight_map', from tensors to files beside it")
    paths = [folder / shard for shard in sorted(set(shards.values()))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: missing shards: {', '.join(missing)}; {INDEX} lists them; restore them"
        )
    return paths


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def tensors_in(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """List the tensors of one file, and read its metadata.

    Returns:
        Name → tensor, and the file's metadata.

    Raises:
        CheckpointError: the file cannot be read, is no safetensors file, has a header of more than 16 MiB, or
            is shorter than its header says.
    """
    try:
        expect_file(path)
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MOST_HEADER_BYTES:
                raise SafetensorError(f"expected a header of at most {MOST_HEADER_BYTES} bytes, found {size}")
            header = parse_json(file.read(size))
        with safe_open(path, framework="np"):  # checks the header, and that the file is as long as it says
            pass
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (SafetensorError, ParseError) as error:
        raise CheckpointError(f"{path}: not a safetensors file, or truncated: {error}; restore it") from None
    metadata = header.pop("__metadata__", None) or {}
    found = {
        name: StoredTensor(
            path=path,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            start=8 + size + entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }
    return found, metadata
