"""States of a training: all that an interrupted one goes on from, each in a file that is whole or not there.

A state is a safetensors file. Its metadata hold what is no array, as JSON, and a checksum of everything.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nt_core.errors import CheckpointError, NeuroTrailsError
from nt_core.files import atomically, sync_folder
from nt_core.parsing import ParseError, parse_json
from nt_core.spec import EnsembleSpec
from nt_core.structure import Independent
from nt_core.tensor_files import expect_dtypes
from nt_core.training import Training
from nt_core.values import shown

FORMAT: Final = 1
KEPT: Final = 2
"""How many states are kept: should the last one be damaged, there is another."""

KEYS: Final = {"step": int, "training": dict, "content": dict, "beside": dict}
"""What a state holds besides its format."""

_ABOUT, _DIGEST = "neurotrails_state", "sha256"
_NAME: Final = re.compile(r"step-(\d+)\.safetensors")
_TENSOR: Final = "$tensor"


class Stopped(NeuroTrailsError):  # noqa: N818 - nothing went wrong
    """A training that was asked to stop, and did after a step; its state is saved."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a training stands.

    Attributes:
        step: optimiser steps taken.
        training: what is trained, as JSON; another training cannot go on from it.
        content: what the backend goes on from: mappings and lists of numbers, text and arrays.
        beside: what whoever keeps states wrote beside it, as JSON.
        parts: the folder of what several processes wrote, each its part; None: there is none.
    """

    step: int
    training: Mapping[str, Any]
    content: Mapping[str, Any]
    beside: Mapping[str, Any] = field(default_factory=dict)
    parts: Path | None = None


class States:
    """The states of one training in a folder; the last two are kept.

    Args:
        folder: made when the first state is saved.
        every: optimiser steps from one state to the next; None: ``seconds`` decides.
        seconds: at least so long from one state to the next.
        beside: gives what shall be written beside a state; called when everything before it must be on disk.
        stopping: is asked after each step whether to save the state and to end, with :class:`Stopped`.

    Example:
        >>> import tempfile
        >>> states = States(Path(tempfile.mkdtemp()), every=10)
        >>> for step in (10, 20, 30):
        ...     states.save(State(step=step, training={"seed": 0}, content={"w": np.full(2, step)}))
        >>> states.latest({"seed": 0}).content
        {'w': array([30, 30])}
        >>> [path.name for path in sorted(states.folder.iterdir())]
        ['step-000000020.safetensors', 'step-000000030.safetensors']
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every: int | None = None,
        seconds: float = 300.0,
        beside: Callable[[], Mapping[str, Any]] = dict,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        if every is not None and every < 1:
            raise CheckpointError(f"states: expected one at least every step, found every={every}")
        self.folder, self.every, self.seconds = Path(folder), every, seconds
        self.beside, self.stopping = beside, stopping
        self._saved = time.monotonic()

    def due(self, step: int) -> bool:
        """Tell whether a state is to be saved after a step."""
        if self.every is not None:
            return step % self.every == 0
        return time.monotonic() - self._saved >= self.seconds

    def new_parts(self, step: int) -> Path:
        """Return an empty folder, in which several processes write before one of them saves that state."""
        folder = _parts(self._path(step))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def save(self, state: State) -> None:
        """Write a state; it is on disk when this returns, and all but the last two are deleted.

        What processes wrote into :meth:`new_parts` of its step belongs to it from then on.

        Raises:
            CheckpointError: it cannot be written; those before it are as they were.
        """
        path = self._path(state.step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_state(path, replace(state, beside=dict(self.beside())))
        except OSError as error:
            last = self._last_step()
            kept = "no state is saved yet" if last is None else f"the state after step {last} is kept"
            raise CheckpointError(
                f"{path}: cannot be written ({error.strerror or error}); {kept}; make room, then go on"
            ) from None
        for old in self._paths()[KEPT:]:
            _delete(old)
        self._saved = time.monotonic()

    def latest(self, training: Mapping[str, Any] | None = None) -> State | None:
        """Return the last state that is whole; None: there is none.

        Args:
            training: what it must be a state of; None: whatever it is.

        Raises:
            CheckpointError: it is of another training, or every one that is there is damaged.
        """
        damage: list[CheckpointError] = []
        for path in self._paths():
            try:
                state = read_state(path)
            except CheckpointError as error:
                damage.append(error)
                continue
            wanted = None if training is None else json.loads(json.dumps(training))
            if wanted is not None and state.training != wanted:
                raise CheckpointError(
                    f"{path}: a state of another training: {_difference(state.training, wanted)}; go on with "
                    "what it was begun with, or delete the folder to begin anew"
                )
            return state
        if damage:
            raise damage[0]
        return None

    def of(self, turn: EnsembleSpec) -> States:
        """Return the states of one of a spec's turns, in a folder of its own."""
        only = turn.structure.only if isinstance(turn.structure, Independent) else None
        name = "all" if only is None else f"members-{only[0]}-{only[-1]}"
        settings = {"every": self.every, "seconds": self.seconds}
        return States(self.folder / name, **settings, beside=self.beside, stopping=self.stopping)  # type: ignore[arg-type]

    def clear(self) -> None:
        """Delete all states, those of turns too: what they led to is finished and kept."""
        for folder in [self.folder, *(path for path in self.folder.glob("*") if path.is_dir())][::-1]:
            for path in States(folder)._paths():
                _delete(path)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.safetensors"

    def _last_step(self) -> int | None:
        paths = self._paths()
        return int(_NAME.fullmatch(paths[0].name)[1]) if paths else None  # type: ignore[index]

    def _paths(self) -> list[Path]:
        """List the files of states, the last first; what an interrupted write left behind is deleted."""
        if not self.folder.is_dir():
            return []
        for rest in self.folder.glob(".step-*.tmp"):
            rest.unlink(missing_ok=True)
        for parts in self.folder.glob("step-*.parts"):
            if not parts.with_suffix(".safetensors").exists():
                shutil.rmtree(parts, ignore_errors=True)
        return sorted((path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)


def identity(spec: EnsembleSpec, training: Training, seed: int, examples: int) -> dict[str, Any]:
    """Return what must be the same for a training to go on from another's state, as JSON."""
    declared = spec.to_dict()
    declared["graph"] = hashlib.sha256(json.dumps(declared["graph"], sort_keys=True).encode()).hexdigest()
    recipe = {"training": training.model_dump(mode="json"), "seed": seed, "examples": examples}
    return dict(json.loads(json.dumps({"spec": declared, **recipe})))


def _parts(path: Path) -> Path:
    """Return the folder of the parts that belong to a state's file."""
    return path.with_suffix(".parts")


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)
    shutil.rmtree(_parts(path), ignore_errors=True)


def _digests(parts: Path) -> dict[str, str]:
    """Return the checksum of every file in a folder of parts; nothing if there is no such folder."""
    found = {}
    for path in sorted(parts.glob("*")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_state(path: Path, state: State) -> None:
    """Write a state into one file, whole or not at all."""
    if digests := _digests(_parts(path)):
        sync_folder(_parts(path))
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
        except SafetensorError as error:  # safetensors' own word for a full disk
            raise OSError(None, str(error)) from None


def read_state(path: Path) -> State:
    """Read and check a state.

    Raises:
        CheckpointError: it cannot be read, is truncated or altered, or of a newer format.
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
    if _digests(_parts(path)) != about.get("parts", {}):
        raise CheckpointError(f"{_parts(path)}: a part is missing or altered; delete {path.name}")
    return State(
        step=about["step"],
        training=about["training"],
        content=content,
        beside=about["beside"],
        parts=_parts(path) if about.get("parts") else None,
    )


def _about(text: str, path: Path) -> dict[str, Any]:
    """Read what a state holds besides arrays."""
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
    """Return a tree as JSON can hold it; its arrays go to ``tensors`` under their paths."""
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


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Name the first field in which two trainings differ."""
    return next(iter(_differences(found, wanted, "")), "the same")


def _differences(found: Any, wanted: Any, path: str) -> Iterator[str]:
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key in dict.fromkeys([*found, *wanted]):
            yield from _differences(found.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    elif found != wanted:
        yield f"{path}: {found!r}, expected {wanted!r}"
