"""Check that interrupted and resumed trainings give the same results, bit for bit, in any backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nt_core.checkpoint import Checkpoint
from nt_core.spec import EnsembleSpec
from nt_core.states import State, States, Stopped
from nt_core.testing.data import Blobs
from nt_core.training import Batches, Trained, Training

RECORDED = ("update", "epoch", "skipped", "member")


class Watched(States):
    """States that also remember the last state."""

    def __init__(self, folder: str | Path, **settings: Any) -> None:
        super().__init__(folder, **settings)
        self.last: list[State] = []

    def of(self, turn: EnsembleSpec) -> Watched:
        """Return the states of a turn, which share the memory of the whole training's states."""
        found = super().of(turn)
        watched = Watched(found.folder, every=self.every, stopping=self.stopping)
        watched.last = self.last
        return watched

    def save(self, state: State) -> None:
        """Write a state and remember it."""
        super().save(state)
        self.last[:] = [state]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Results of a training.

    Attributes:
        checkpoint: of the trained model.
        state: the last state: model, optimiser, topology, random numbers.
        history: the reported events, without times.
        metrics: on the test set.
        starts: number of starts, the first and each resumption.
    """

    checkpoint: Checkpoint
    state: Mapping[str, Any]
    history: list[dict[str, Any]]
    metrics: dict[str, Any]
    starts: int


def train_in_pieces(
    train: Callable[..., Trained[Any]],
    checkpoint: Callable[[Any], Checkpoint],
    spec: EnsembleSpec,
    training: Training,
    folder: Path,
    *,
    stops: Iterable[int] = (),
    data: Batches | None = None,
    test: Batches | None = None,
) -> Outcome:
    """Train, with a stop and a resumption after each of some steps, counted over all turns.

    Args:
        train: of a backend.
        checkpoint: of the same backend.
        spec: of the ensemble.
        training: the recipe.
        folder: for states.
        stops: steps at which training stops, ascending; none: no interruption.
        data: the training data; None: :class:`Blobs`.
        test: the test data; None: other :class:`Blobs`.
    """
    ahead, taken = list(stops), 0
    history: list[dict[str, Any]] = []
    members: dict[int, Checkpoint] = {}

    def report(event: Mapping[str, Any]) -> None:
        nonlocal taken
        taken += event["event"] == "step"
        if event["event"] in RECORDED:
            history.append({key: value for key, value in event.items() if key != "seconds"})

    starts = 0
    states = Watched(folder, every=1, stopping=lambda: bool(ahead) and taken >= ahead[0])
    while True:
        starts += 1
        try:
            trained = train(
                spec,
                training,
                Blobs() if data is None else data,
                test=Blobs(30, shuffle=False) if test is None else test,
                device="cpu",
                report=report,
                members=members,
                states=states,
            )
        except Stopped:
            ahead.pop(0)
            continue
        assert trained.metrics is not None
        return Outcome(
            checkpoint=checkpoint(trained.model),
            state=states.last[0].content,
            history=history,
            metrics=trained.metrics.to_dict(),
            starts=starts,
        )


def expect_same(found: Any, wanted: Any, path: str = "") -> None:
    """Check that two trees of arrays, numbers and text are the same, bit for bit, except ``seconds``.

    Raises:
        AssertionError: the trees differ; the message names the first place.
    """
    if isinstance(wanted, Mapping):
        assert found.keys() == wanted.keys(), (path, found.keys() ^ wanted.keys())
        for key, inner in wanted.items():
            if key != "seconds":
                expect_same(found[key], inner, f"{path}/{key}")
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted), (path, found, wanted)
        for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
            expect_same(one, other, f"{path}/{i}")
    elif isinstance(wanted, np.ndarray):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), path
        assert found.tobytes() == wanted.tobytes(), f"{path}: {np.count_nonzero(found != wanted)} differ"
    else:
        assert found == wanted or (found != found and wanted != wanted), (path, found, wanted)


def expect_same_outcome(found: Outcome, wanted: Outcome) -> None:
    """Check that two trainings have the same results, bit for bit."""
    expect_same(found.history, wanted.history, "history")
    expect_same(found.metrics, wanted.metrics, "metrics")
    expect_same(found.state, wanted.state, "state")
    expect_same(dict(found.checkpoint.values), dict(wanted.checkpoint.values), "values")
    assert dict(found.checkpoint.masks) == dict(wanted.checkpoint.masks)
