"""Packed files: a compiled ensemble in one file, which is mapped into memory when it is loaded.

A packed file is a safetensors file of two tensors: the program, and the arrays that the program refers to.
Its metadata contain the spec and a checksum of everything.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as to_bytes

import nt_core
from nt_core import CheckpointError, EnsembleSpec, NeuroTrailsError
from nt_core.files import ParseError, parse_json, tensors_in, write_atomically
from nt_core.metrics import Fitted
from nt_core.spec import Mean
from nt_core.values import Count, Value, shown
from nt_cpu.code import VERSION, Program
from nt_cpu.engine import NOT_INSTALLED, Engine
from nt_cpu.inputs import expect_counts
from nt_cpu.native import kernels

FORMAT: Final = "neurotrails-cpu"
_KEY, _DIGEST = "packed", "sha256"
_PART_BYTES: Final = 8 << 20


class _About(Value):
    """Metadata of a packed file."""

    error_path: ClassVar[str] = ""
    format: Literal["neurotrails-cpu"]
    version: int
    library: str
    spec: EnsembleSpec
    batch: Count
    aggregation: Mean | Fitted
    record: dict[str, Any]


@dataclass(slots=True)
class _Mapped(Program):
    """Program that lies in a packed file, by which it is pickled.

    Attributes:
        path: absolute.
        sha256: checksum in the file.
    """

    path: Path
    sha256: str

    def __reduce__(self) -> tuple[Any, ...]:
        return _mapped, (self.path, self.sha256)


def _mapped(path: Path, sha256: str) -> Program:
    """Map the program of a file again.

    Raises:
        CheckpointError: the file cannot be read, or was replaced meanwhile.
    """
    program = _read(path)[1]
    if program.sha256 != sha256:
        raise CheckpointError(
            f"{path}: replaced since the engine was loaded from it: its SHA-256 is another; load it anew"
        )
    return program


def pack(engine: Engine, file: str | Path) -> None:
    """Write a compiled ensemble into one file, atomically.

    Args:
        engine: of :func:`nt_cpu.compile`.
        file: the file to write, which contains everything that inference needs, without the training
            framework.

    Raises:
        CheckpointError: the network cannot be computed natively, or the file cannot be written.

    Example:
        >>> import tempfile, nt_models, nt_cpu
        >>> spec = nt_core.PRESETS["single"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> engine = nt_cpu.compile((spec, dict(nt_core.initial_values(spec.layout, seed=0))), batch=16)
        >>> file = Path(tempfile.mkdtemp()) / "model.nt"
        >>> pack(engine, file)
        >>> load(file)(np.zeros((2, 8), np.float32)).shape
        (2, 3)
    """
    if engine.program is None:
        raise CheckpointError(
            f"{file}: only what the compiled kernels can compute is packed; see the warning"
        )
    how = engine.aggregation
    about = {
        "format": FORMAT,
        "version": VERSION,
        "library": nt_core.__version__,
        "spec": engine.spec.to_dict(),
        "batch": engine.batch,
        "aggregation": how.model_dump(mode="json") if isinstance(how, Fitted) else how,
        "record": dict(engine.record),
    }
    text = json.dumps(about)
    metadata = {_KEY: text, _DIGEST: _digest(text, engine.program)}
    content = to_bytes({"code": engine.program.code, "blob": engine.program.blob}, metadata)
    try:
        write_atomically(Path(file), content)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be written ({error.strerror}); save elsewhere") from None


def load(file: str | Path, *, threads: int = 1) -> Engine:
    """Load a packed file.

    The arrays are mapped into memory and stay in the file. A file that is in use may be replaced but must not
    be written into.

    Args:
        file: written by :func:`pack`.
        threads: number of threads for one batch, at most 1024.

    Raises:
        CheckpointError: the file cannot be read, is no packed file, was truncated or altered, or is of
            another version.
        NeuroTrailsError: the compiled kernels are not installed.
        DataError: ``threads`` is out of range.
    """
    expect_counts(threads=threads)
    if kernels() is None:
        raise NeuroTrailsError(f"{NOT_INSTALLED}; without them, compile the run instead: NumPy computes then")
    path = Path(file)
    about, program = _read(path)
    try:
        return Engine(
            about.spec,
            program,
            batch=about.batch,
            threads=threads,
            aggregation=about.aggregation,
            values={},
            record=about.record,
        )
    except NeuroTrailsError as error:
        raise CheckpointError(f"{path}: {error}; pack it again") from None


def is_packed(path: str | Path) -> bool:
    """Return whether a path is a file, like a packed ensemble, and not a run's folder."""
    return Path(path).is_file()


def _read(path: Path) -> tuple[_About, _Mapped]:
    tensors, metadata = tensors_in(path)
    if tensors.keys() != {"code", "blob"} or metadata.keys() != {_KEY, _DIGEST}:
        raise CheckpointError(f"{path}: not a packed ensemble; expected what nt export --to cpu writes")
    kinds = [(tensors[name].dtype, len(tensors[name].shape)) for name in ("code", "blob")]
    if kinds != [("I64", 1), ("U8", 1)]:
        raise CheckpointError(f"{path}: not a packed ensemble; expected rows of I64 and U8, found {kinds}")
    text, digest = metadata[_KEY], metadata[_DIGEST]
    program = _Mapped(tensors["code"].map(), tensors["blob"].map(), path.absolute(), digest)
    if digest != _digest(text, program):
        raise CheckpointError(
            f"{path}: altered after it was packed: its SHA-256 is another; restore the file"
        )
    return _about(text, path), program


def _about(text: str, path: Path) -> _About:
    """Parse the metadata beside the program."""
    try:
        about = parse_json(text)
        version = about.get("version") if isinstance(about, dict) else None
        if version == VERSION:
            return _About(**about)
    except (ParseError, NeuroTrailsError) as error:
        raise CheckpointError(f"{path}: not a packed ensemble: {error}; pack it again") from None
    raise CheckpointError(
        f"{path}: version {shown(version)}, but this library reads {VERSION}; pack it again"
    )


def _digest(text: str, program: Program) -> str:
    """Return a hash of a file's contents: the hash of its parts' hashes, which several threads compute."""
    arrays: list[NDArray[Any]] = [program.code, program.blob]
    about = f"{text} {[(array.dtype.str, array.shape) for array in arrays]}"
    bytes_of = [np.ascontiguousarray(array).view(np.uint8) for array in arrays]
    parts = [one[at : at + _PART_BYTES] for one in bytes_of for at in range(0, len(one), _PART_BYTES)]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda part: hashlib.sha256(part.data).digest(), parts))
    return hashlib.sha256(b"".join([about.encode(), *found])).hexdigest()
