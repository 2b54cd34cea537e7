"""Where a training is: what its trainer counts, and its states hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Position:
    """How far a training has come.

    Attributes:
        calls: micro-batches so far, those of batches that were passed over too.
        steps: optimiser steps taken.
        skipped: batches passed over.
        first_call: calls before the epoch.
        first_step: steps before the epoch.
        first_skipped: batches passed over before the epoch.
        seconds: of training so far, evaluation aside.

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
        """Note where an epoch begins."""
        self.first_call, self.first_step, self.first_skipped = self.calls, self.steps, self.skipped
