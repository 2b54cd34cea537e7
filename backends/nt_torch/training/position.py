"""Position of a training: counts of the trainer, which saved states contain."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from nt_core.training import Training


@dataclass
class Position:
    """Position of a training.

    Attributes:
        epoch: number of the epoch, from 1.
        calls: number of micro-batches of the epoch so far.
        seen: number of examples in these micro-batches.
        left_out: number of these examples in skipped batches.
        losses: loss of each other micro-batch, times its examples.
        first_step: number of optimiser steps taken before the epoch.
        skipped: number of skipped batches so far, in all epochs.
        examples: number of examples in earlier epochs.
        seconds: of training so far, without evaluation.

    Example:
        >>> import torch
        >>> at, training = Position(), Training(batch_size=4, accumulation=2)
        >>> for _ in range(4):
        ...     at.add(torch.ones(()), 2)
        >>> at.leave_out(training)
        >>> at.calls, at.seen, at.left_out, len(at.losses), at.skipped
        (4, 8, 4, 2, 1)
    """

    epoch: int = 1
    calls: int = 0
    seen: int = 0
    left_out: int = 0
    losses: list[Tensor] = field(default_factory=list)
    first_step: int = 0
    skipped: int = 0
    examples: int = 0
    seconds: float = 0.0

    def add(self, loss: Tensor, examples: int) -> None:
        """Count a micro-batch."""
        self.losses.append(loss)
        self.calls, self.seen = self.calls + 1, self.seen + examples

    def micro_batches(self, training: Training) -> int:
        """Return the number of last micro-batches that belong to the optimiser step that is due now."""
        return -(-self._in_step(training) * training.accumulation // training.batch_size)

    def leave_out(self, training: Training) -> None:
        """Count the batch of the optimiser step that is due now as skipped."""
        del self.losses[-self.micro_batches(training) :]
        self.left_out, self.skipped = self.left_out + self._in_step(training), self.skipped + 1

    def next(self, steps: int) -> Position:
        """Return the position at the beginning of the next epoch, after ``steps`` optimiser steps."""
        return Position(
            epoch=self.epoch + 1,
            first_step=steps,
            skipped=self.skipped,
            examples=self.examples + self.seen,
            seconds=self.seconds,
        )

    def _in_step(self, training: Training) -> int:
        return (self.seen - 1) % training.batch_size + 1
