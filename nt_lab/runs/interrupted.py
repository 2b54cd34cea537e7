"""Resumption of an interrupted run from its folder: finished members, and saved states of the training."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nt_core.checkpoint import Checkpoint, load_checkpoint, read_config, save_checkpoint
from nt_core.errors import CheckpointError, NeuroTrailsError
from nt_core.files import plain
from nt_core.spec import EnsembleSpec, RunSpec, read_spec
from nt_core.states import State, States
from nt_core.structure import Independent
from nt_core.training import ExploreRefine
from nt_lab.runs.backends import Backend
from nt_lab.runs.folder import MEMBERS, SPEC, STATES, UNFINISHED, RunFolder
from nt_lab.runs.processes import rank
from nt_models import ARCHITECTURES


@dataclass(frozen=True)
class MemberFolders(MutableMapping[int, Checkpoint]):
    """Finished members by number, one folder each, as :func:`nt_core.checkpoint.train_members` writes them.

    Attributes:
        path: of the folder that holds the members' folders.
        origin: recorded with each member: the run's spec, the backend and its engine.
    """

    path: Path
    origin: dict[str, Any]

    def keep_own(self) -> None:
        """Delete the members of other runs."""
        for folder in self.path.glob("head*"):
            if not self._is_ours(folder):
                shutil.rmtree(folder)

    def _is_ours(self, folder: Path) -> bool:
        try:
            record = read_config(folder)["record"]
            load_checkpoint(folder)
        except CheckpointError:
            return False
        return {key: record.get(key) for key in self.origin} == self.origin

    def __getitem__(self, number: int) -> Checkpoint:
        if number not in set(self):
            raise KeyError(number)
        return load_checkpoint(self._folder(number))

    def __setitem__(self, number: int, member: Checkpoint) -> None:
        save_checkpoint(self._folder(number), replace(member, record={**member.record, **self.origin}))

    def __delitem__(self, number: int) -> None:
        shutil.rmtree(self._folder(number))

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(int(path.parent.name[4:]) for path in self.path.glob("head*/config.json")))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _folder(self, number: int) -> Path:
        return self.path / f"head{number}"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of an interrupted run.

    Attributes:
        members: folders of the finished members, and of members that will be finished.
        states: saved states, from the last of which training resumes.
    """

    members: MemberFolders
    states: States

    @classmethod
    def of(
        cls,
        unfinished: RunFolder,
        run: RunSpec,
        spec: EnsembleSpec,
        backend: Backend,
        *,
        every: int | None = None,
        stopping: Callable[[], bool] = lambda: False,
        execution: Mapping[str, Any] | None = None,
    ) -> Progress:
        """Return the progress of an interrupted run, if it had the same spec, seed and backend.

        The files of any other run are deleted, and so is the history of steps that will be trained again.

        Args:
            unfinished: the folder of the unfinished run.
            run: the run to train.
            spec: the ensemble of the run.
            backend: trains the run.
            every: steps from one state to the next; None: five minutes.
            stopping: called after each step; True saves a state and ends the training.
            execution: execution options of the backend, if given; other options give other last digits.
        """
        found = {"run": run.to_dict(), "backend": backend.name, "engine": backend.engine}
        found |= {} if execution is None else {"execution": dict(execution)}
        origin = dict(plain(found))
        members = MemberFolders(unfinished.path / MEMBERS, origin)
        members.keep_own()
        states = States(
            unfinished.path / STATES,
            every=every,
            beside=lambda: {"origin": origin, "history": unfinished.history_bytes()},
            stopping=stopping,
        )
        state = _state(states, spec, members)
        if state is None or state.beside["origin"] != origin:
            if isinstance(spec.plan, ExploreRefine):  # whose members are made of one network
                members.clear()
            finished = set(members)
            unfinished.forget(lambda event: "trained" in event and finished.issuperset(event["trained"]))
        else:
            unfinished.cut_history(state.beside["history"])
        return cls(members=members, states=states)


def begun(
    folder: Path, backend: str | None, engine: str | None, execution: Mapping[str, Any] | None = None
) -> tuple[RunSpec, str | None, str | None, Mapping[str, Any] | None]:
    """Return the unfinished run in a run's folder: its spec, backend, engine and execution options.

    Args:
        folder: of the run.
        backend: to resume with; None: the backend of the unfinished run.
        engine: to resume with; None: the engine of the unfinished run.
        execution: options to resume with; None: the options of the unfinished run.

    Raises:
        NeuroTrailsError: the folder holds no run, or a complete one.
    """
    if rank() == 0:
        RunFolder(folder).finish()
    unfinished, complete = RunFolder(folder / UNFINISHED), RunFolder(folder).is_complete
    if not (unfinished.path / SPEC).is_file():
        raise NeuroTrailsError(
            f"{folder}: "
            + (
                "the run is complete; there is nothing to go on with"
                if complete
                else "expected a run that was interrupted, found none; give the folder that nt train wrote to"
            )
        )
    origin = _origin(unfinished)
    # The written spec contains a user's own graph op by op, so no user code is run from a run folder.
    run = read_spec(unfinished.path / SPEC, ARCHITECTURES)
    return (
        run,
        backend or origin.get("backend"),
        engine or origin.get("engine"),
        execution or origin.get("execution"),
    )


def _origin(unfinished: RunFolder) -> Mapping[str, Any]:
    """Return the origin in an interrupted run's states or members; empty if there are none."""
    for folder in (unfinished.path / STATES).glob("*"):
        state = States(folder).latest()
        if state is not None:
            origin = state.beside.get("origin")
            return origin if isinstance(origin, dict) else {}
    for folder in (unfinished.path / MEMBERS).glob("head*"):
        return dict(read_config(folder)["record"])
    return {}


def _state(states: States, spec: EnsembleSpec, members: MemberFolders) -> State | None:
    """Return the last state of the first turn with unfinished members; None: that turn has not begun."""
    for turn in spec.turns:
        numbers = turn.structure.numbers if isinstance(turn.structure, Independent) else ()
        if spec.turns == (spec,) or not set(members).issuperset(numbers):
            return states.of(turn).latest()
    return None
