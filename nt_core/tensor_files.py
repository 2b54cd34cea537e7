"""Tensors in safetensors files that others wrote: looked up by their headers, read one at a time.

The layout is that of Hugging Face: one ``model.safetensors``, or shards that ``model.safetensors.index.json``
lists.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from nt_core.errors import CheckpointError
from nt_core.files import read_json, write_atomically
from nt_core.values import Shape

TENSORS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
STORED: Final = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""The dtypes that are read, and how their bytes are; NumPy has no bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a file, not read yet.

    Attributes:
        path: the file.
        dtype: as safetensors names it: ``"F32"``, ``"BF16"``, ….
        shape: of the tensor.
        start: its first byte in the file.
    """

    path: Path
    dtype: str
    shape: Shape
    start: int

    def read(self) -> NDArray[np.float32]:
        """Read it; float16 and bfloat16 become float32, which holds all their values.

        Raises:
            CheckpointError: the dtype is another, or the file cannot be read.
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


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Look up the tensors of a folder in the layout of Hugging Face, sharded or not.

    Returns:
        Name → tensor.

    Raises:
        CheckpointError: there are none, a shard is missing or damaged, or two hold the same name.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in _files(folder):
        for name, tensor in _header(path):
            if name in tensors:
                raise CheckpointError(
                    f"{path}: {name!r} is also in {tensors[name].path.name}; keep one of them"
                )
            tensors[name] = tensor
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a file of tensors, whole or not at all, marked as Hugging Face's libraries expect it."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, metadata={"format": "pt"}))


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


def _header(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    try:
        with safe_open(path, framework="np"):  # checks the header, and that the file is as long as it says
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file, or truncated: {error}; restore it") from None
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start = 8 + size + entry["data_offsets"][0]
        yield name, StoredTensor(path=path, dtype=entry["dtype"], shape=tuple(entry["shape"]), start=start)
