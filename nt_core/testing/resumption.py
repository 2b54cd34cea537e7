"""Trainings that are interrupted and gone on with: what any backend must give, to the bit."""

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
    """States that also remember the last one."""

    def __init__(self, folder: str | Path, **settings: Any) -> None:
        super().__init__(folder, **settings)
        self.last: list[State] = []

    def of(self, turn: EnsembleSpec) -> Watched:
        """Return a turn's, which remember with the whole's."""
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
    """What a training came to.

    Attributes:
        checkpoint: of the trained model.
        state: the last: model, optimiser, topology, random numbers.
        history: what was reported, without times.
        metrics: on the test set.
        starts: how often it was begun or gone on with.
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
    """Train, and stop and go on after each of some steps, counted over all turns.

    Args:
        train: a backend's.
        checkpoint: the same backend's.
        spec: what is trained.
        training: the recipe.
        folder: for states.
        stops: ascending; none: at one go.
        data: what is trained on; None: :class:`Blobs`.
        test: what is tested on; None: others of them.
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
    """Raise unless two trees of arrays, numbers and text are the same, bit for bit; ``seconds`` aside.

    Raises:
        AssertionError: naming the first place that differs.
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
    """Raise unless two trainings came to the same, bit for bit."""
    expect_same(found.history, wanted.history, "history")
    expect_same(found.metrics, wanted.metrics, "metrics")
    expect_same(found.state, wanted.state, "state")
    expect_same(dict(found.checkpoint.values), dict(wanted.checkpoint.values), "values")
    assert dict(found.checkpoint.masks) == dict(wanted.checkpoint.masks)
