"""Apportionment: whole numbers that add up to a budget, exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

_NOTHING: Final = 1e-12
"""Slope of weights whose own slope is 0, relative to the largest slope."""


def share_out(
    slope: Sequence[float], *, upper: Sequence[int], budget: int, lower: Sequence[int] | None = None
) -> list[int]:
    """Divide a budget in proportion to ``slope``, within bounds; excess over a bound is left to the others.

    Args:
        slope: finite, at least 0. Entries of slope 0 get the rest that the others leave, in equal parts
            within their bounds.
        upper: largest share of each.
        budget: between the sums of ``lower`` and ``upper``.
        lower: smallest share of each; None: 0.

    Returns:
        Integers that add up to the budget exactly. Largest remainders are rounded up first, earlier entries
        first on ties.

    Example:
        >>> share_out([1.0, 2.0, 3.0], upper=[9, 9, 3], budget=10)
        [2, 5, 3]
    """
    least = np.zeros(len(upper)) if lower is None else np.array(lower, dtype=np.float64)
    most, weights = np.array(upper, dtype=np.float64), np.array(slope, dtype=np.float64)
    largest = weights.max(initial=0.0)
    weights = np.maximum(weights, largest * _NOTHING) if largest > 0 else np.ones_like(weights)
    return _round(_water_fill(weights, least, most, budget), least, most, budget)


def hypergeometric(uniform: float, good: int, bad: int, draws: int) -> int:
    """Draw the number of good positions among ``draws`` of ``good + bad`` positions, by inversion.

    Probabilities are computed up to 12 standard deviations from the mean only, because those beyond are below
    1e-30.

    Args:
        uniform: a uniform random number in (0, 1).
        good: number of good positions.
        bad: number of all other positions.
        draws: number of drawn positions, at most ``good + bad``.

    Example:
        >>> [hypergeometric(u, good=5, bad=5, draws=4) for u in (0.01, 0.5, 0.99)]
        [0, 2, 4]
    """
    total, least, most = good + bad, max(0, draws - bad), min(good, draws)
    if least == most:
        return least
    mean = draws * (good / total)
    spread = math.sqrt(mean * (bad / total) * ((total - draws) / max(total - 1, 1)))
    first, last = (
        max(least, math.floor(mean - 12 * spread) - 12),
        min(most, math.ceil(mean + 12 * spread) + 12),
    )
    k = np.arange(first, last, dtype=np.float64)
    steps = np.log(good - k) + np.log(draws - k) - np.log(k + 1) - np.log(bad - draws + k + 1)
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    cumulative = np.cumsum(np.exp(logs - logs.max()))
    return first + int(np.searchsorted(cumulative, uniform * cumulative[-1]))


def _water_fill(
    slope: NDArray[np.float64], lower: NDArray[np.float64], upper: NDArray[np.float64], budget: int
) -> NDArray[np.float64]:
    """Solve Σ min(upper, max(lower, ε·slope)) = budget for ε exactly: the sum is piecewise linear in ε."""
    if not slope.size:
        return slope
    starts, ends = lower / slope, upper / slope
    steps = np.unique(np.concatenate([[0.0], starts, ends]))
    below, above = 0, steps.size - 1
    while above - below > 1:
        middle = (below + above) // 2
        filled = np.clip(steps[middle] * slope, lower, upper).sum() <= budget
        below, above = (middle, above) if filled else (below, middle)
    rising = (starts <= steps[below]) & (ends >= steps[above]) & (ends > starts)
    start = np.clip(steps[below] * slope, lower, upper)
    rate = slope[rising].sum()
    epsilon = steps[below] + (budget - start.sum()) / rate if rate > 0 else steps[above]
    shares: NDArray[np.float64] = np.clip(epsilon * slope, lower, upper)
    return shares


def _round(
    shares: NDArray[np.float64], lower: NDArray[np.float64], upper: NDArray[np.float64], budget: int
) -> list[int]:
    """Round to integers that add up to the budget: largest remainders first, earlier weights on ties."""
    counts = [math.floor(share) for share in shares]
    remainders = [share - count for share, count in zip(shares, counts, strict=True)]
    order = sorted(range(len(counts)), key=lambda i: (-remainders[i], i))
    missing = budget - sum(counts)
    assert abs(missing) <= len(counts), "the shares do not add up to the budget"
    while missing:
        step = 1 if missing > 0 else -1
        limit = upper if step > 0 else lower
        for i in order if step > 0 else reversed(order):
            if missing and counts[i] * step < limit[i] * step:
                counts[i] += step
                missing -= step
    return counts
