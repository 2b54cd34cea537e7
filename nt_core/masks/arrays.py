"""Array functions that policies need beyond plain arithmetic, with their NumPy reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nt_core.masks.selection import top_k
from nt_core.random import Random

Array = Any
"""A flat array of the backend's own type."""


class Draws(Protocol):
    """Random numbers of one purpose, by position, as of :class:`nt_core.random.Stream`."""

    def uniform(self, where: Any, /) -> Array:
        """Return numbers in (0, 1), float64."""

    def gumbel(self, where: Any, /) -> Array:
        """Return standard Gumbel numbers, float64."""


class Arrays(Protocol):
    """Array functions that policies need beyond arithmetic; backends must give :data:`NUMPY`'s results."""

    def top_k(self, scores: Any, among: Array, k: int, *, inverse: bool = False) -> Array:
        """Return the ascending positions of the k largest scores, as :func:`nt_core.masks.top_k`."""

    def draws(self, random: Random, *, weight: str, step: int, purpose: str) -> Draws:
        """Return the random numbers of a weight, step and purpose."""

    def first_not_finite(self, array: Array) -> int | None:
        """Return the first position that holds NaN or an infinity."""

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        """Join flat arrays."""

    def ones(self, count: int) -> Array:
        """Return ``count`` flags, all True."""

    def nonzero(self, flags: Array) -> Array:
        """Return the ascending positions of True."""

    def count(self, flags: Array) -> int:
        """Return the number of True flags."""


class _NumpyArrays:
    def top_k(self, scores: Any, among: Array, k: int, *, inverse: bool = False) -> Array:
        return top_k(scores, among, k, inverse=inverse)

    def draws(self, random: Random, *, weight: str, step: int, purpose: str) -> Draws:
        return random.at(weight=weight, step=step, purpose=purpose)

    def first_not_finite(self, array: Array, chunk: int = 1 << 16) -> int | None:
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, array.size, chunk):
                part = array[start : start + chunk]
                if math.isfinite(np.dot(part, part)):  # one fast pass; overflows only beyond 1e19
                    continue
                finite = np.isfinite(part)
                if not finite.all():
                    return start + int(finite.argmin())
        return None

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        return np.concatenate(arrays)

    def ones(self, count: int) -> Array:
        return np.ones(count, dtype=np.bool_)

    def nonzero(self, flags: Array) -> Array:
        return np.flatnonzero(flags)

    def count(self, flags: Array) -> int:
        return int(np.count_nonzero(flags))


NUMPY: Arrays = _NumpyArrays()
"""The reference implementation, on NumPy arrays."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Context of a topology update: the step, the run's randomness, the array functions.

    Attributes:
        step: optimiser steps taken so far.
        random: keyed by weight, step and purpose, so selections do not depend on the order of weights.
        arrays: the array functions; a backend's own must make the same selections.
    """

    step: int
    random: Random
    arrays: Arrays = NUMPY

    def draws(self, weight: str, purpose: str, *, from_start: bool = False) -> Draws:
        """Return the random numbers for one weight and purpose, or those of the weight's initial values."""
        step, purpose = (0, "initial") if from_start else (self.step, purpose)
        return self.arrays.draws(self.random, weight=weight, step=step, purpose=purpose)
