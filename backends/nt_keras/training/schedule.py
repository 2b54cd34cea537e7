"""Division of a dataset into epochs, optimiser steps and calls for ``fit``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nt_core import EnsembleSpec
from nt_core.structure import Structure
from nt_core.training import Batches, Timeline, Training, member_batches
from nt_keras.engines.layouts import batch_to_keras


@dataclass(frozen=True, kw_only=True)
class Part:
    """Epochs of one ``fit``, from ``begin`` to ``end``, counted from 0.

    Attributes:
        begin: the first epoch.
        end: the epoch after the last.
        first: number of the first epoch's calls that were made already; if not 0, it is the only epoch.
    """

    begin: int
    end: int
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Division of a dataset into epochs, steps and micro-batches.

    Keras counts ``accumulation`` calls for each optimiser step, of any size. Therefore a call's examples are
    weighted by their share of the step, and a last, shorter step is filled up with calls of weight 0.
    """

    examples: int
    batch_size: int
    accumulation: int
    timeline: Timeline

    @classmethod
    def of(cls, spec: EnsembleSpec, training: Training, data: Batches) -> Schedule:
        steps_per_epoch = math.ceil(len(data) / training.batch_size)
        return cls(
            examples=len(data),
            batch_size=training.batch_size,
            accumulation=training.accumulation,
            timeline=spec.timeline(steps_per_epoch),
        )

    @property
    def total_steps(self) -> int:
        return self.timeline.total_steps

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.examples / self.batch_size)

    @property
    def calls_per_epoch(self) -> int:
        return self.steps_per_epoch * self.accumulation

    @property
    def epochs(self) -> int:
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def part(self, calls: int) -> Part:
        """Return the epochs after some calls: the rest of an epoch, the planned epochs, or one more epoch."""
        begun, first = divmod(calls, self.calls_per_epoch)
        return Part(begin=begun, end=begun + 1 if first else max(begun + 1, self.epochs), first=first)

    def examples_after(self, calls: int) -> int:
        """Return the number of examples seen after some calls."""
        whole, rest = divmod(calls // self.accumulation, self.steps_per_epoch)
        return whole * self.examples + min(rest * self.batch_size, self.examples)

    def batches(
        self, part: Part, structure: Structure, data: Batches, seed: int
    ) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield inputs, labels and, with accumulation, weights for ``fit``, epoch after epoch."""
        size = self.batch_size // self.accumulation
        for number in range(part.begin + 1, part.end + 1):
            calls = member_batches(structure, data, number, size, seed, part.first)
            given = ((batch_to_keras(call.inputs), call.labels, call.examples) for call in calls)
            weighted = self.accumulation > 1
            yield from self._weighted(given, part.first) if weighted else (each[:2] for each in given)

    def _weighted(
        self, batches: Iterator[tuple[NDArray[Any], NDArray[Any], int]], first: int
    ) -> Iterator[tuple[NDArray[Any], ...]]:
        seen = first * (self.batch_size // self.accumulation)
        for calls, (inputs, labels, count) in enumerate(batches, start=first + 1):
            in_step = min(self.batch_size, self.examples - seen // self.batch_size * self.batch_size)
            seen += count
            share = count * self.accumulation / in_step
            alike = (1,) * labels.ndim  # members may divide the rows among them
            yield inputs, labels, np.full(alike, share, np.float32)
            if seen == self.examples:
                for _ in range(-calls % self.accumulation):
                    yield inputs, labels, np.zeros(alike, np.float32)
