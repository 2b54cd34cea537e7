"""Folder of a training's saved states, of which the last two are kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from nt_core import values
from nt_core.errors import CheckpointError, NeuroTrailsError
from nt_core.spec import EnsembleSpec, RunSpec
from nt_core.states.file import State, delete_state, parts_of, read_state, write_state
from nt_core.structure import Independent
from nt_core.training import Training

KEPT: Final = 2
"""Number of states that are kept, because the last one may be damaged."""

_NAME: Final = re.compile(r"step-(\d+)\.safetensors")


class Stopped(NeuroTrailsError):  # noqa: N818 - nothing went wrong
    """Raised after a step at which a training was asked to stop; its state is saved."""


class States:
    """The states of one training in a folder; the last two are kept.

    Args:
        folder: made when the first state is saved.
        every: optimiser steps from one state to the next; None: states are saved by time, see ``seconds``.
        seconds: least time from one state to the next.
        beside: returns the values to write beside a state; it must first flush everything older to disk.
        stopping: called after each step; True saves the state and ends the training with :class:`Stopped`.

    Example:
        >>> import tempfile
        >>> import numpy as np
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
        """Return whether a state is to be saved after a step."""
        if self.every is not None:
            return step % self.every == 0
        return time.monotonic() - self._saved >= self.seconds

    def new_parts(self, step: int) -> Path:
        """Return an empty folder, into which several processes write before one of them saves the state.

        Raises:
            CheckpointError: the folder cannot be made.
        """
        folder = parts_of(self._path(step))
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise self._unwritten(folder, error) from None
        return folder

    def save(self, state: State) -> None:
        """Write a state to disk and delete all but the last two states.

        The files in :meth:`new_parts` of the state's step belong to the state from then on.

        Raises:
            CheckpointError: the state cannot be written; earlier states are unchanged.
        """
        path = self._path(state.step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_state(path, replace(state, beside=dict(self.beside())))
        except OSError as error:
            raise self._unwritten(path, error) from None
        for old in self._paths()[KEPT:]:
            delete_state(old)
        self._saved = time.monotonic()

    def latest(self, training: Mapping[str, Any] | None = None) -> State | None:
        """Return the last undamaged state; None: there are no states.

        Args:
            training: identity of the training that the state must belong to; None: any training.

        Raises:
            CheckpointError: the state is of another training, or all states are damaged.
        """
        damage: list[CheckpointError] = []
        for path in self._paths():
            try:
                state = read_state(path)
            except CheckpointError as error:
                damage.append(error)
                continue
            wanted = None if training is None else json.loads(json.dumps(training))
            found = None if wanted is None else next(differences(_completed(state.training), wanted), None)
            if found is not None:
                raise CheckpointError(
                    f"{path}: a state of another training: {found}; go on with what it was begun with, or "
                    "delete the folder to begin anew"
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
        """Delete all states, with those of turns, once the training's result is kept."""
        for folder in [self.folder, *(path for path in self.folder.glob("*") if path.is_dir())][::-1]:
            for path in States(folder)._paths():
                delete_state(path)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.safetensors"

    def _unwritten(self, path: Path, error: OSError) -> CheckpointError:
        last = self._last_step()
        kept = "no state is saved yet" if last is None else f"the state after step {last} is kept"
        return CheckpointError(
            f"{path}: cannot be written ({error.strerror or error}); {kept}; make room, then go on"
        )

    def _last_step(self) -> int | None:
        paths = self._paths()
        return int(_NAME.fullmatch(paths[0].name)[1]) if paths else None  # type: ignore[index]

    def _paths(self) -> list[Path]:
        """List the files of states, the last first, and delete the remains of interrupted writes."""
        if not os.path.isdir(self.folder):  # which is false for names that are too long
            return []
        for rest in self.folder.glob(".step-*.tmp"):
            rest.unlink(missing_ok=True)
        for parts in self.folder.glob("step-*.parts"):
            if not parts.with_suffix(".safetensors").exists():
                shutil.rmtree(parts, ignore_errors=True)
        return sorted((path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)


def identity(spec: EnsembleSpec, training: Training, seed: int, examples: int) -> dict[str, Any]:
    """Return the identity of a training, as JSON; a training resumes only from states of equal identity."""
    declared = spec.to_dict()
    declared["graph"] = hashlib.sha256(json.dumps(declared["graph"], sort_keys=True).encode()).hexdigest()
    recipe = {"training": training.model_dump(mode="json"), "seed": seed, "examples": examples}
    return {"spec": declared, **recipe}


def _completed(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add to an identity the fields, with their defaults, that the library did not have when it was saved."""
    try:
        choices = {key: value for key, value in saved["spec"].items() if key != "graph"}
        whole = RunSpec(graph={}, training=saved["training"], **choices).to_dict()
        spec = {**saved["spec"], **{key: whole[key] for key in choices}}
    except (NeuroTrailsError, KeyError, TypeError, AttributeError):
        return saved
    return {**saved, "spec": spec, "training": whole["training"]}


def differences(saved: Any, asked: Any, path: str = "") -> Iterator[str]:
    """Name the fields in which two declarations differ, with both values.

    Args:
        saved: as JSON.
        asked: as JSON.
        path: of both.

    Example:
        >>> list(differences({"plan": {"steps": 110}, "seed": 0}, {"plan": {"steps": 111}, "seed": 0}))
        ['plan.steps: saved 110, asked 111']
    """
    for place, one, other in values.differences(saved, asked, path):
        yield f"{place}: saved {values.shown(one)}, asked {values.shown(other)}"
