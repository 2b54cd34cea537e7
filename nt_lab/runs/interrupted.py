"""Resumption of an interrupted run from its folder: finished members, and saved states of the training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from nt_core.checkpoint import Checkpoint, load_checkpoint, read_config, save_checkpoint
from nt_core.errors import CheckpointError, NeuroTrailsError
from nt_core.files import plain
from nt_core.spec import EnsembleSpec, RunSpec, read_spec
from nt_core.states import State, States, differences
from nt_core.structure import Independent
from nt_core.training import ExploreRefine
from nt_lab.runs.backends import Backend
from nt_lab.runs.folder import MEMBERS, SPEC, STATES, UNFINISHED, RunFolder
from nt_lab.runs.lock import locked
from nt_lab.runs.processes import rank
from nt_models import ARCHITECTURES

ORIGIN: Final = ("run", "backend", "engine", "execution")
"""Keys of the origin of a saved state or a finished member: its run's spec, and what computed it."""

MOST_NAMED: Final = 4
"""Differences that an error names."""


@dataclass(frozen=True)
class MemberFolders(MutableMapping[int, Checkpoint]):
    """Finished members by number, one folder each, as :func:`nt_core.checkpoint.train_members` writes them.

    Attributes:
        path: of the folder that holds the members' folders.
        origin: recorded with each member: the run's spec, the backend, its engine and execution options.
    """

    path: Path
    origin: dict[str, Any]

    def drop_damaged(self) -> None:
        """Delete the members that cannot be read, which will be trained again."""
        for folder in self.path.glob("head*"):
            try:
                load_checkpoint(folder)
            except CheckpointError:
                shutil.rmtree(folder)

    def clear(self) -> None:
        """Delete all members."""
        shutil.rmtree(self.path, ignore_errors=True)

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
        overwrite: bool = False,
    ) -> Progress:
        """Return the progress of an interrupted run of the same spec, seed and backend.

        The history of steps that will be trained again is deleted.

        Args:
            unfinished: the folder of the unfinished run.
            run: the run to train.
            spec: the ensemble of the run.
            backend: trains the run.
            every: steps from one state to the next; None: five minutes.
            stopping: called after each step; True saves a state and ends the training.
            execution: execution options of the backend; None: its defaults.
            overwrite: whether the saved states and finished members of another run are deleted.

        Raises:
            NeuroTrailsError: the folder holds saved states or members of another run, or they are damaged,
                and may not be deleted.
        """
        origin = _origin(run, backend, execution)
        members = MemberFolders(unfinished.path / MEMBERS, origin)
        states = States(
            unfinished.path / STATES,
            every=every,
            beside=lambda: {"origin": origin, "history": unfinished.history_bytes()},
            stopping=stopping,
        )
        try:
            found = _expect_same(unfinished, origin, backend)
        except NeuroTrailsError:
            if not overwrite:
                raise
            members.clear()
            found = {}
        members.drop_damaged()
        state = _state(found, states, spec, members)
        if state is None:
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
        NeuroTrailsError: the folder holds no run, or a complete one, or another process trains into it.
    """
    if rank() > 0 or not os.path.isdir(folder / UNFINISHED):
        return _begun(folder, backend, engine, execution)
    with locked(folder):  # because whoever reads states clears remains of writes away
        RunFolder(folder).finish()
        return _begun(folder, backend, engine, execution)


def _begun(
    folder: Path, backend: str | None, engine: str | None, execution: Mapping[str, Any] | None
) -> tuple[RunSpec, str | None, str | None, Mapping[str, Any] | None]:
    unfinished, complete = RunFolder(folder / UNFINISHED), RunFolder(folder).is_complete
    if not os.path.isfile(unfinished.path / SPEC):
        raise NeuroTrailsError(
            f"{folder}: "
            + (
                "the run is complete; there is nothing to go on with"
                if complete
                else "expected a run that was interrupted, found none; give the folder that nt train wrote to"
            )
        )
    origin = next(_origins(unfinished, _states(unfinished)), {})
    # The written spec contains a user's own graph op by op, so no user code is run from a run folder.
    run = read_spec(unfinished.path / SPEC, ARCHITECTURES)
    return (
        run,
        backend or origin.get("backend"),
        engine or origin.get("engine"),
        execution or origin.get("execution"),
    )


def _origin(run: RunSpec, backend: Backend, execution: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return all that a run's numbers depend on, as JSON."""
    found = {"run": run.to_dict(), "backend": backend.name, "engine": backend.engine}
    return dict(plain({**found, "execution": backend.executes(execution)}))


def _completed(origin: Mapping[str, Any], backend: Backend) -> dict[str, Any]:
    """Add to a saved origin the fields, with their defaults, that the library did not have at the time."""
    found = dict(origin)
    with suppress(NeuroTrailsError, KeyError, TypeError):
        found["run"] = plain(RunSpec(**origin["run"]).to_dict())
    with suppress(NeuroTrailsError, TypeError):
        found["execution"] = plain(backend.executes(origin.get("execution")))
    return found


def _states(unfinished: RunFolder) -> dict[str, State]:
    """Return the last state of each turn that has one, by the names of their folders.

    Raises:
        CheckpointError: a turn's states are damaged, or no run saved them.
    """
    found = {}
    for folder in sorted((unfinished.path / STATES).glob("*")):
        state = States(folder).latest()
        if state is not None:
            if not isinstance(state.beside.get("origin"), dict) or not isinstance(
                state.beside.get("history"), int
            ):
                raise CheckpointError(f"{folder}: its states were not saved by nt train; move them elsewhere")
            found[folder.name] = state
    return found


def _origins(unfinished: RunFolder, states: Mapping[str, State]) -> Iterator[Mapping[str, Any]]:
    """Yield the origins of an interrupted run's states and finished members; damaged members have none."""
    for state in states.values():
        yield state.beside["origin"]
    for folder in sorted((unfinished.path / MEMBERS).glob("head*")):
        with suppress(CheckpointError):
            record = read_config(folder)["record"]
            yield {key: record.get(key) for key in ORIGIN}


def _expect_same(unfinished: RunFolder, origin: Mapping[str, Any], backend: Backend) -> dict[str, State]:
    """Return the states of an interrupted run, after a check that they and its members are of this run.

    Raises:
        NeuroTrailsError: they are of another run, or the history has not all events before a state.
    """
    states = _states(unfinished)
    for saved in _origins(unfinished, states):
        found = list(differences(_completed(saved, backend), origin))
        if found:
            raise NeuroTrailsError(_other(unfinished, states, found))
    for state in states.values():
        unfinished.expect_history(state.beside["history"])
    return states


def _other(unfinished: RunFolder, states: Mapping[str, State], found: list[str]) -> str:
    """Return the message about an interrupted run that differs from the asked one."""
    folder = unfinished.path.parent
    named = [each.removeprefix("run.") for each in found]
    rest = f"; and {len(named) - MOST_NAMED} more" * (len(named) > MOST_NAMED)
    steps = max((state.step for state in states.values()), default=None)
    what = "finished members of an interrupted run" if steps is None else f"a run interrupted at step {steps}"
    return (
        f"{folder}: holds {what}, which differs: {'; '.join(named[:MOST_NAMED])}{rest}; go on with it by nt "
        f"train --resume {folder}, choose another folder with --out, or delete it and begin anew with "
        "--overwrite"
    )


def _state(
    found: Mapping[str, State], states: States, spec: EnsembleSpec, members: MemberFolders
) -> State | None:
    """Return the last state of the first turn with unfinished members; None: that turn has not begun."""
    for turn in spec.turns:
        numbers = turn.structure.numbers if isinstance(turn.structure, Independent) else ()
        if spec.turns == (spec,) or not set(members).issuperset(numbers):
            return found.get(states.of(turn).folder.name)
    return None
