"""Batches as trainers take them: labels checked, and without a rest that a network cannot be trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import DataError
from nt_core.metrics import expect_labels
from nt_core.structure import Layout, Structure
from nt_core.training.recipe import Batches, Report, Training

BECAUSE: Final = "batch normalisation needs two values of each channel"


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """A dataset's batches for a trainer; a :class:`Batches`.

    Attributes:
        data: the dataset.
        classes: number of classes, for which every label is checked.
        dropped: number of each epoch's examples, its last, that are left out.
    """

    data: Batches
    classes: int
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.data) - self.dropped

    def epoch(
        self, number: int, batch_size: int, first: int = 0
    ) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        """Yield the batches of an epoch, as :meth:`Batches.epoch`.

        Raises:
            DataError: a label is outside the classes.
        """
        left = len(self) - first * batch_size
        for inputs, labels in self.data.epoch(number, batch_size, first):
            if left <= 0:
                return
            expect_labels(labels, self.classes, f"data, epoch {number}: labels")
            yield inputs[:left], labels[:left]
            left -= len(labels)

    def counting(self, report: Report) -> Report:
        """Return a report whose records of epochs say how many examples were left out, if any were."""

        def told(event: Mapping[str, Any]) -> None:
            report({**event, "dropped": self.dropped} if event["event"] == "epoch" else event)

        return told if self.dropped else report


def trainable(
    data: Batches,
    training: Training,
    structure: Structure,
    layout: Layout,
    *,
    classes: int,
    processes: int = 1,
    report: Report = lambda _: None,
) -> Trainable:
    """Return a dataset without the examples at each epoch's end that are too few for batch normalisation.

    A last micro-batch of one example (of one for each member, or for each process) has no variance. PyTorch
    refuses it; Keras trains on it, and its running statistics learn a variance of 0. Here both leave it out.
    Which examples are left out differs from epoch to epoch, because each has an order of its own.

    Args:
        data: the training data.
        training: gives the size of micro-batches.
        structure: of the ensemble.
        layout: of the ensemble.
        classes: number of classes.
        processes: number of processes that share each batch.
        report: receives an event ``dropped``, if examples are left out.

    Raises:
        DataError: there are no examples, or all micro-batches are too small.

    Example:
        >>> import nt_models
        >>> from nt_core import PRESETS
        >>> from nt_core.testing import Blobs
        >>> spec = PRESETS["neurotrails"](nt_models.mlp(inputs=6, hidden=(8, 8), classes=3, norm=True))
        >>> recipe = Training(batch_size=30)
        >>> len(trainable(Blobs(91), recipe, spec.structure, spec.layout, classes=3))
        90
    """
    if not len(data):
        raise DataError("data: expected at least one training example, found none")
    least, size = layout.least_rows, training.batch_size // training.accumulation

    def enough(count: int) -> bool:
        return structure.network_rows(layout, count, processes) >= least

    if not enough(size):
        raise DataError(
            f"training.accumulation: {training.batch_size} examples in {training.accumulation} micro-batches "
            f"for {processes} process{'es' if processes > 1 else ''}: {BECAUSE}; lower accumulation, or "
            "raise batch_size"
        )
    rest = len(data) % size
    dropped = rest if rest and not enough(rest) else 0
    if dropped == len(data):
        raise DataError(f"data: {len(data)} training examples are too few: {BECAUSE}; give more")
    if dropped:
        report({"event": "dropped", "examples": dropped, "of": len(data)})
    return Trainable(data=data, classes=classes, dropped=dropped)
