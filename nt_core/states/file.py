"""One state of a training in a safetensors file, written atomically.

The file's metadata contain all values that are not arrays, as JSON, and a checksum of everything. A folder
beside the file contains the parts written by several processes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nt_core.errors import CheckpointError
from nt_core.files import ParseError, atomically, expect_dtypes, parse_json, sync_folder
from nt_core.values import shown

FORMAT: Final = 1

KEYS: Final = {"step": int, "training": dict, "content": dict, "beside": dict}
"""Keys of a state's metadata and their types, besides the format."""

_ABOUT, _DIGEST = "neurotrails_state", "sha256"
_TENSOR: Final = "$tensor"


@dataclass(frozen=True, kw_only=True)
class State:
    """State of a training after an optimiser step.

    Attributes:
        step: number of optimiser steps taken.
        training: identity of the training, as JSON; another training cannot resume from the state.
        content: state of the backend: mappings and lists of numbers, text and arrays.
        beside: further values of the keeper of states, as JSON.
        parts: folder of the parts written by several processes; None: there are no parts.
    """

    step: int
    training: Mapping[str, Any]
    content: Mapping[str, Any]
    beside: Mapping[str, Any] = field(default_factory=dict)
    parts: Path | None = None


def parts_of(path: Path) -> Path:
    """Return the folder of the parts that belong to a state's file."""
    return path.with_suffix(".parts")


def delete_state(path: Path) -> None:
    """Delete a state's file and its parts."""
    path.unlink(missing_ok=True)
    shutil.rmtree(parts_of(path), ignore_errors=True)


def _digests(parts: Path) -> dict[str, str]:
    """Return the checksum of every file in a folder of parts; empty if there is no such folder."""
    found = {}
    for path in sorted(parts.glob("*")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_state(path: Path, state: State) -> None:
    """Write a state into one file, atomically."""
    if digests := _digests(parts_of(path)):
        sync_folder(parts_of(path))
    tensors: dict[str, NDArray[Any]] = {}
    about = {
        "format": FORMAT,
        "step": state.step,
        "training": state.training,
        "beside": state.beside,
        "content": _without_arrays(state.content, "", tensors),
        "parts": digests,
    }
    text = json.dumps(about)
    with atomically(path) as temporary:
        try:
            save_file(tensors, temporary, {_ABOUT: text, _DIGEST: _digest(text, tensors)})
        except SafetensorError as error:  # raised by safetensors for a full disk
            raise OSError(None, str(error)) from None


def read_state(path: Path) -> State:
    """Read and check a state.

    Raises:
        CheckpointError: the file cannot be read, is truncated or altered, or of a newer format.
    """
    try:
        metadata = expect_dtypes(path)
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, CheckpointError) as error:
        raise CheckpointError(f"{path}: truncated or no state of a training: {error}; delete it") from None
    text = metadata.get(_ABOUT, "")
    if metadata.get(_DIGEST) != _digest(text, tensors):
        raise CheckpointError(f"{path}: altered after it was written; delete it")
    about = _about(text, path)
    try:
        content = _with_arrays(about["content"], tensors)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: no state of a training: no array {error}; delete it") from None
    if _digests(parts_of(path)) != about.get("parts", {}):
        raise CheckpointError(f"{parts_of(path)}: a part is missing or altered; delete {path.name}")
    return State(
        step=about["step"],
        training=about["training"],
        content=content,
        beside=about["beside"],
        parts=parts_of(path) if about.get("parts") else None,
    )


def _about(text: str, path: Path) -> dict[str, Any]:
    """Parse the metadata of a state's file."""
    try:
        about = parse_json(text)
    except ParseError as error:
        raise CheckpointError(f"{path}: no state of a training: {error}; delete it") from None
    if not isinstance(about, dict) or "format" not in about:
        raise CheckpointError(f"{path}: no state of a training; delete it")
    if about["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: format {shown(about['format'])}, but this library reads {FORMAT}; upgrade neurotrails"
        )
    wrong = [f"{key} ({kind.__name__})" for key, kind in KEYS.items() if not isinstance(about.get(key), kind)]
    if wrong:
        raise CheckpointError(f"{path}: no state of a training: expected {', '.join(wrong)}; delete it")
    return about


def _without_arrays(value: Any, path: str, tensors: dict[str, NDArray[Any]]) -> Any:
    """Return a tree in types that JSON can hold; its arrays are moved to ``tensors`` under their paths."""
    if isinstance(value, Mapping):
        return {str(key): _without_arrays(inner, f"{path}/{key}", tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(inner, f"{path}/{i}", tensors) for i, inner in enumerate(value)]
    if isinstance(value, np.ndarray):
        tensors[path] = np.asarray(value, order="C")
        return {_TENSOR: path}
    return value.item() if isinstance(value, np.generic) else value


def _with_arrays(value: Any, tensors: Mapping[str, NDArray[Any]]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {key: _with_arrays(inner, tensors) for key, inner in value.items()}
    return [_with_arrays(inner, tensors) for inner in value] if isinstance(value, list) else value


def _digest(text: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    found = hashlib.sha256(text.encode())
    for name, array in sorted(tensors.items()):
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()
