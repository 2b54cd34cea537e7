"""Check that a training which skips batches that are not finite equals a training without these batches."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from nt_core.checkpoint import Checkpoint
from nt_core.spec import EnsembleSpec
from nt_core.testing.data import Blobs
from nt_core.testing.resumption import Outcome, expect_same, train_in_pieces
from nt_core.training import OneRun, Trained, Training


def spoilt(size: int, rows: Collection[int], value: float = np.nan) -> Blobs:
    """Return examples in a fixed order, in some of which the features are NaN or infinite.

    Example:
        >>> np.isnan(spoilt(3, [1]).inputs[:, 0])
        array([False,  True, False])
    """
    data = Blobs(size, shuffle=False)
    data.inputs[list(rows)] = value
    return data


def without(data: Blobs, rows: Collection[int], batch_size: int) -> Blobs:
    """Return the examples without the batches that contain some rows.

    Example:
        >>> len(without(spoilt(10, [4]), [4], batch_size=3))
        7
    """
    kept = Blobs(len(data), shuffle=False)
    batches = np.arange(len(data)) // batch_size
    good = ~np.isin(batches, batches[list(rows)])
    kept.inputs, kept.labels = data.inputs[good], data.labels[good]
    return kept


def expect_no_trace(
    train: Callable[..., Trained[Any]],
    checkpoint: Callable[[Any], Checkpoint],
    spec: EnsembleSpec,
    training: Training,
    folder: Path,
    *,
    size: int,
    rows: Collection[int],
    value: float = np.nan,
    stops: Collection[int] = (),
) -> Outcome:
    """Train one epoch with batches that are skipped, and one without them, and compare the results.

    Args:
        train: of a backend.
        checkpoint: of the same backend.
        spec: of the ensemble.
        training: the recipe, with ``non_finite="skip"``.
        folder: for states.
        size: number of examples.
        rows: rows of the spoilt examples; at least one batch must have none.
        value: of the spoilt features.
        stops: steps after which the first training is stopped and resumed.

    Returns:
        The results of the first training.

    Raises:
        AssertionError: a value, mask, variable of the optimiser, event, loss or metric differs in a bit; or
            the count is not the number of skipped batches.
    """
    spoiling = spoilt(size, rows, value)
    clean = without(spoiling, rows, training.batch_size)
    steps = -(-len(clean) // training.batch_size)
    run = (train, checkpoint, spec.replace(plan=OneRun(steps=steps)), training)
    found = train_in_pieces(*run, folder / "spoilt", data=spoiling, stops=stops)
    wanted = train_in_pieces(*run, folder / "clean", data=clean)
    bad = {row // training.batch_size for row in rows}
    last = max(set(range(-(-size // training.batch_size))) - bad)  # after which there is nothing to do
    count = sum(batch < last for batch in bad)
    skips = [event for event in found.history if event["event"] == "skipped"]
    assert [event["skipped"] for event in skips] == [*range(1, count + 1)], skips
    assert found.history[-1].get("skipped", 0) == count, found.history[-1]
    expect_same(_without_skips(found), _without_skips(wanted), "history")
    expect_same(found.metrics, wanted.metrics, "metrics")
    for part in ("model", "optimizer", "topology"):
        expect_same(found.state.get(part), wanted.state.get(part), part)
    expect_same(dict(found.checkpoint.values), dict(wanted.checkpoint.values), "values")
    assert dict(found.checkpoint.masks) == dict(wanted.checkpoint.masks)
    return found


def _without_skips(outcome: Outcome) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in event.items() if key != "skipped"}
        for event in outcome.history
        if event["event"] != "skipped"
    ]
