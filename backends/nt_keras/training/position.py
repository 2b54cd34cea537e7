"""Position of a training: counts of the trainer, which saved states contain."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Position:
    """Position of a training.

    Attributes:
        calls: number of micro-batches so far, with those of skipped batches.
        steps: number of optimiser steps taken.
        skipped: number of skipped batches.
        first_call: number of micro-batches before the epoch.
        first_step: number of steps before the epoch.
        first_skipped: number of skipped batches before the epoch.
        seconds: of training so far, without evaluation.

    Example:
        >>> at = Position(calls=12, steps=5, skipped=1)
        >>> at.begin_epoch()
        >>> at.first_call, at.first_step, at.first_skipped
        (12, 5, 1)
    """

    calls: int = 0
    steps: int = 0
    skipped: int = 0
    first_call: int = 0
    first_step: int = 0
    first_skipped: int = 0
    seconds: float = 0.0

    def begin_epoch(self) -> None:
        """Set the counts at the beginning of an epoch."""
        self.first_call, self.first_step, self.first_skipped = self.calls, self.steps, self.skipped
