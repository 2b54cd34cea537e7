"""Checkpoints: a directory with ``config.json`` and ``model.safetensors``, the same for every backend.

Sparse weights are stored as CSR: their active values, and indices in the narrowest sufficient integer dtype.
All other weights are stored dense. The backbone is stored once. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from nt_core.errors import CheckpointError, DataError, NeuroTrailsError, TopologyError
from nt_core.files import (
    ParseError,
    expect_dtypes,
    expect_file,
    parse_json,
    plain,
    read_json,
    write_atomically,
)
from nt_core.masks import Mask
from nt_core.spec import EnsembleSpec
from nt_core.structure import PlacedWeight
from nt_core.structure.memory import expect_memory
from nt_core.values import Shape
from nt_core.version import __version__

FORMAT: Final = 1
CONFIG: Final = "config.json"
TENSORS: Final = "model.safetensors"
KEYS: Final = {"spec": dict, "masked": list, "tensors_sha256": str, "record": dict}
"""Keys of a configuration and their types, besides its format and its own checksum."""

Values = Mapping[str, NDArray[Any]]
"""Arrays by the full names of their weights."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained ensemble.

    Attributes:
        spec: of the ensemble.
        values: full name → array of the weight's shape; inactive elements are exactly 0.
        masks: full name → mask, for each weight that has one.
        record: of the trainer: seed, steps, metrics, the run's spec file.
    """

    spec: EnsembleSpec
    values: Values
    masks: Mapping[str, Mask]
    record: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; each file is written atomically, the config last.

    Args:
        folder: made if it does not exist; other files in it are left alone.
        checkpoint: the checkpoint to write.

    Raises:
        CheckpointError: a value is missing, it or its mask has another shape than the spec says, an inactive
            element is not 0, the record holds what JSON cannot, or the files cannot be written.
    """
    expect_values(checkpoint)
    record = _plain(checkpoint.record)
    tensors: dict[str, NDArray[Any]] = {}
    for placed in checkpoint.spec.layout.weights:
        value, mask = checkpoint.values[placed.name], checkpoint.masks.get(placed.name)
        if mask is None or mask.count == mask.size:
            tensors[placed.name] = np.ascontiguousarray(value)
        else:
            tensors |= _to_csr(placed.name, value, mask)
    folder = Path(folder)
    content = save(tensors)
    config = {
        "format": FORMAT,
        "library": {"name": "neurotrails", "version": __version__},
        "spec": checkpoint.spec.to_dict(),
        "spec_digest": checkpoint.spec.digest(),
        "masked": sorted(checkpoint.masks),
        "tensors_sha256": hashlib.sha256(content).hexdigest(),
        "record": record,
    }
    config = json.loads(json.dumps(config))
    config["config_sha256"] = _config_sha256(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / TENSORS, content)
        write_atomically(folder / CONFIG, json.dumps(config, indent=1).encode())
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror}); make room, or save elsewhere"
        ) from None


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as it is read again.

    Raises:
        CheckpointError: it holds what JSON cannot, or what is refused when it is read.
    """
    try:
        return dict(parse_json(json.dumps(plain(record))))
    except DataError as error:
        raise CheckpointError(str(error)) from None
    except (ParseError, RecursionError, ValueError) as error:
        raise CheckpointError(f"record: could not be read again: {error}") from None


def load_checkpoint(folder: str | Path, *, expected: EnsembleSpec | None = None) -> Checkpoint:
    """Read and check a checkpoint.

    Args:
        folder: written by :func:`save_checkpoint`.
        expected: the spec of the model into which the checkpoint is to be loaded, if any.

    Raises:
        CheckpointError: the checkpoint is missing, truncated, altered, of a newer format, or of another
            spec; the message names the file and a remedy.
    """
    folder = Path(folder)
    config = read_config(folder)
    try:
        spec = EnsembleSpec.from_dict(config["spec"])
        expect_memory(spec.layout, "the spec in it")
    except NeuroTrailsError as error:
        raise CheckpointError(f"{folder / CONFIG}: the spec in it cannot be loaded: {error}") from None
    if expected is not None:
        expect_same_weights(spec, expected, folder)
        if spec.topology != expected.topology:
            raise CheckpointError(
                f"{folder}: the checkpoint is of another spec: its topology is {spec.topology!r}, expected "
                f"{expected.topology!r}; load it into a model compiled from its own spec"
            )
    tensors = _read_tensors(folder / TENSORS, config["tensors_sha256"])
    values: dict[str, NDArray[Any]] = {}
    masks: dict[str, Mask] = {}
    for placed in spec.layout.weights:
        values[placed.name], mask = _from_tensors(placed, tensors, folder / TENSORS)
        if placed.name in config["masked"]:
            masks[placed.name] = mask or Mask.full(placed.weight.shape)
    if tensors:
        raise CheckpointError(
            f"{folder / TENSORS}: holds {next(iter(tensors))!r}, which the spec has no place for"
        )
    return Checkpoint(spec=spec, values=values, masks=masks, record=config["record"])


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read a checkpoint's ``config.json`` alone: its spec and record.

    Raises:
        CheckpointError: the file is missing, no JSON, of a newer format, lacks a key, or was altered.
    """
    path = Path(folder) / CONFIG
    config = read_json(path, "is this a run's folder?")
    if "format" not in config:
        raise CheckpointError(f"{path}: expected a checkpoint's configuration; is this a run's folder?")
    if config["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: format {config['format']!r}, but this library reads {FORMAT}; upgrade neurotrails"
        )
    if config.pop("config_sha256", None) != _config_sha256(config):
        raise CheckpointError(f"{path}: altered after it was written; restore the file")
    wrong = [key for key, kind in KEYS.items() if not isinstance(config.get(key), kind)]
    if wrong:
        expected = ", ".join(f"{key} ({KEYS[key].__name__})" for key in wrong)
        raise CheckpointError(f"{path}: expected the keys {expected}; write it again")
    return config


def _config_sha256(config: Mapping[str, Any]) -> str:
    """Return a hash of a config without its own checksum, independent of its layout as text."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def expect_same_weights(found: EnsembleSpec, expected: EnsembleSpec, folder: Path) -> None:
    """Check that two specs have the same weights under the same names.

    Raises:
        CheckpointError: a weight differs; the message names the first.
    """
    theirs = {p.name: p.weight.shape for p in found.layout.weights}
    ours = {p.name: p.weight.shape for p in expected.layout.weights}
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) != theirs.get(name):
            raise CheckpointError(
                f"{folder}: the checkpoint is of another spec: weight {name!r} is expected "
                f"{_shape_or_absent(ours.get(name))}, found {_shape_or_absent(theirs.get(name))}; "
                "load it into a model compiled from its own spec"
            )


def _shape_or_absent(shape: Shape | None) -> str:
    return "absent" if shape is None else f"of shape {shape}"


def expect_values(checkpoint: Checkpoint) -> None:
    """Check that the values and masks of a checkpoint fit its spec.

    Raises:
        CheckpointError: a value is missing, it or its mask has another shape than the spec says, an inactive
            element is not 0, or more or fewer are active than the spec declares.
    """
    for placed in checkpoint.spec.layout.weights:
        value = checkpoint.values.get(placed.name)
        if value is None or value.shape != placed.weight.shape:
            raise CheckpointError(
                f"weight {placed.name!r}: expected an array of shape {placed.weight.shape}, "
                f"found {None if value is None else value.shape}"
            )
        mask = checkpoint.masks.get(placed.name)
        if mask is not None and mask.shape != placed.weight.shape:
            raise CheckpointError(
                f"weight {placed.name!r}: expected a mask of shape {placed.weight.shape}, found {mask.shape}"
            )
        lost = (
            0 if mask is None else np.count_nonzero(value) - np.count_nonzero(value.reshape(-1)[mask.flat()])
        )
        if lost:
            raise CheckpointError(
                f"weight {placed.name!r}: {lost} inactive elements are not 0 and would be lost; set them "
                "to 0, or make them active in the mask"
            )
    spec = checkpoint.spec
    counts = {
        placed.name: checkpoint.masks[placed.name].count
        if placed.name in checkpoint.masks
        else placed.weight.size
        for placed in spec.layout.sparsifiable
    }
    try:
        spec.expect_counts(counts)
    except TopologyError as error:
        raise CheckpointError(f"masks: {error}") from None


def _to_csr(name: str, value: NDArray[Any], mask: Mask) -> dict[str, NDArray[Any]]:
    columns = mask.size // mask.shape[0]
    return {
        f"{name}.values": value.reshape(-1)[mask.flat()],
        f"{name}.indices": mask.indices.astype(_narrowest(columns)),
        f"{name}.indptr": mask.indptr.astype(_narrowest(mask.count)),
    }


def _narrowest(largest: int) -> type[np.unsignedinteger[Any]]:
    kinds: tuple[type[np.unsignedinteger[Any]], ...] = (np.uint8, np.uint16, np.uint32)
    return next((kind for kind in kinds if largest <= np.iinfo(kind).max), np.uint64)


def _read_tensors(path: Path, digest: str) -> dict[str, NDArray[Any]]:
    try:
        expect_file(path)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise CheckpointError(
                f"{path}: truncated or altered: its SHA-256 is {found[:12]}…, {CONFIG} says {digest[:12]}…; "
                "restore the file or use an earlier checkpoint"
            )
        expect_dtypes(path)
        return load_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from None


def _from_tensors(
    placed: PlacedWeight, tensors: dict[str, NDArray[Any]], path: Path
) -> tuple[NDArray[Any], Mask | None]:
    """Take one weight out of ``tensors``: its dense values, and its mask if it was stored sparse."""
    shape, name = placed.weight.shape, placed.name
    if name in tensors:
        value = tensors.pop(name)
        if value.shape != shape:
            raise CheckpointError(f"{path}: {name!r}: expected shape {shape}, found {value.shape}")
        _expect_floats(value, f"{path}: {name!r}")
        return value, None
    try:
        values, indices, indptr = (tensors.pop(f"{name}.{part}") for part in ("values", "indices", "indptr"))
    except KeyError as error:
        raise CheckpointError(f"{path}: {error} is missing") from None
    try:
        mask = mask_of_csr(shape, indptr, indices)
        if values.shape != (mask.count,):
            raise CheckpointError(f"expected {mask.count} values, found shape {values.shape}")
        _expect_floats(values, "values")
        flat = np.zeros(placed.weight.size, dtype=values.dtype)
        flat[mask.flat()] = values
    except NeuroTrailsError as error:
        raise CheckpointError(f"{path}: {name!r}: no CSR array of shape {shape}: {error}") from None
    return flat.reshape(shape), mask


def _expect_floats(values: NDArray[Any], where: str) -> None:
    if values.dtype.kind != "f":
        raise CheckpointError(f"{where}: expected floats, found {values.dtype}")


def mask_of_csr(shape: Shape, indptr: NDArray[Any], indices: NDArray[Any]) -> Mask:
    """Make a mask from untrusted CSR arrays, all of which are checked.

    Raises:
        CheckpointError: row pointers do not ascend, or columns do not ascend below the fan-in.
    """
    rows, columns = shape[0], math.prod(shape[1:])
    kinds = indptr.dtype.kind + indices.dtype.kind
    if not set(kinds) <= set("iu") or indptr.shape != (rows + 1,) or indices.ndim != 1:
        raise CheckpointError(f"expected integers, {rows + 1} row starts and a list of columns")
    starts = indptr.astype(np.int64)
    ends_right = starts[0] == 0 and starts[-1] == indices.size and (np.diff(starts) >= 0).all()
    if not ends_right or ((indices < 0) | (indices >= columns)).any():
        raise CheckpointError(f"expected {rows} rows of columns below {columns}")
    flat = np.repeat(np.arange(rows, dtype=np.int64) * columns, np.diff(starts)) + indices.astype(np.int64)
    return Mask.from_flat(shape, flat)
