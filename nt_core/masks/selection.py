"""The one definition of selection: the k best-scored positions, ties to the lowest position.

Every prune and every growth of every algorithm uses this selection, so the tie rule holds everywhere. The
scores are read once, a chunk at a time, and compared with a *pivot* that the k-th largest score cannot be
below. The few positions that pass are kept as candidates. When the candidates become too many, only the best
k are kept, which raises the pivot. A strided sample gives the first pivot. A bad first pivot costs time but
no
correctness: if it lets too few positions pass, the pass is repeated without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import TopologyError

Scores: TypeAlias = NDArray[Any] | Callable[[slice], NDArray[Any]]
"""Scores of shape (n,), or a function from a slice (explicit start, stop, step) to the scores there."""

CHUNK: Final = 1 << 15
"""Positions scored at a time, so few that a chunk's float32 scores and flags fit a second-level cache."""

DIGIT_BITS: Final = 12
"""Bits of a score that one round determines where processes select together, by a sum of histograms of
4,096 counts, 32 KiB."""

_DEVIATIONS: Final = 4.0  # how far below the sample's estimate the first pivot is put, in standard deviations
_MIN_STRIDE: Final = 4  # a denser sample costs more than it saves
_SAMPLE: Final = 1 << 13


def top_k(
    scores: Scores, among: NDArray[np.bool_], k: int, *, inverse: bool = False, chunk: int = CHUNK
) -> NDArray[np.int64]:
    """Find the positions of the k largest scores among the eligible positions.

    Besides the result, at most ``k + max(k / 4, chunk)`` candidates are in memory, 8 bytes each for float32
    scores. With k = 0 the scores are not read.

    Args:
        scores: (n,) real scores, or a function that returns the scores of any slice, also a strided one, so
            that the scores of a whole layer never exist at once. -inf and +inf are legal and ordered.
        among: (n,) bool, the eligible positions; flatten a weight's mask in C order.
        k: number of positions to select.
        inverse: whether the eligible positions are those where ``among`` is False.
        chunk: positions scored at a time; changes speed and memory, never the answer.

    Returns:
        (k,) int64 flat positions, ascending. Among equal scores the lowest positions are taken.

    Raises:
        TopologyError: k is negative or exceeds the eligible positions; shapes differ; ``among`` is not bool;
            an eligible score is NaN.

    Example:
        >>> weights = np.array([0.5, -0.1, 0.0, 0.1, -0.9])
        >>> active = weights != 0
        >>> top_k(-np.abs(weights), active, 2)  # prune the two smallest
        array([1, 3])
        >>> gradients = np.array([9.0, 9.0, -0.3, 9.0, 9.0])
        >>> top_k(lambda part: np.abs(gradients[part]), active, 1, inverse=True)  # grow one
        array([2])
    """
    available = _count_eligible(scores, among, inverse)
    if not 0 <= k <= available:
        raise TopologyError(f"k: {k} positions requested, {available} available; choose 0 to {available}")
    if k == 0:
        return np.empty(0, np.int64)
    read = scores if callable(scores) else scores.__getitem__
    sampled = _sampled_pivot(read, among, inverse, k / available, chunk)
    capacity = min(k + max(k // 4, chunk), available)
    found = _scan(read, among, inverse, k, capacity, chunk, sampled)
    if found.size < k:  # the sample misled
        found = _scan(read, among, inverse, k, capacity, chunk, -math.inf)
    assert found.size == k
    return found


def _count_eligible(scores: Scores, among: NDArray[np.bool_], inverse: bool) -> int:
    if among.ndim != 1 or among.dtype != np.bool_:
        raise TopologyError(f"among: expected bool of shape (n,), found {among.dtype} of shape {among.shape}")
    if not callable(scores) and scores.shape != among.shape:
        raise TopologyError(f"scores: shape {scores.shape} differs from the shape {among.shape} of `among`")
    count = int(np.count_nonzero(among))
    return among.size - count if inverse else count


def _sampled_pivot(
    read: Callable[[slice], NDArray[Any]], among: NDArray[np.bool_], inverse: bool, share: float, chunk: int
) -> Any:
    """Estimate a score that slightly more than ``share`` of the eligible scores reach; -inf if unknown."""
    stride = among.size // chunk | 1  # odd, so as not to walk down one column of a weight
    if stride < _MIN_STRIDE:
        return -math.inf
    part = slice(0, among.size, stride)
    sample = read(part)[among[part] != inverse]
    expected = share * sample.size
    rank = math.ceil(expected + _DEVIATIONS * math.sqrt(expected * (1 - share) + 1))
    if rank >= sample.size or np.isnan(sample).any():  # a NaN is left to the scan, which can say where
        return -math.inf
    return np.partition(sample, sample.size - rank)[sample.size - rank]


def _scan(
    read: Callable[[slice], NDArray[Any]],
    among: NDArray[np.bool_],
    inverse: bool,
    k: int,
    capacity: int,
    chunk: int,
    pivot: Any,
) -> NDArray[np.int64]:
    """Return the positions of the best k scores that reach ``pivot``; fewer if fewer scores reach it."""
    small = among.size <= np.iinfo(np.int32).max
    positions, values, fill = np.empty(capacity, np.int32 if small else np.int64), np.empty(0), 0
    flags = np.empty(min(chunk, among.size), np.bool_)
    fails: np.ufunc = np.less
    for start in range(0, among.size, chunk):
        part = slice(start, min(start + chunk, among.size), 1)
        score = read(part)
        hits = _passing(fails(score, pivot, out=flags[: part.stop - start]), among[part], inverse)
        score = score[hits]
        _refuse_nan(score, hits, start)
        if not values.size:
            values = np.empty(capacity, score.dtype)
        if fill + hits.size > capacity:
            keep, pivot = _best(values[:fill], k)
            positions[:k], values[:k], fill = positions[:fill][keep], values[:fill][keep], k
            fails = np.less_equal  # k lower positions reach the pivot: a later tie loses
        positions[fill : fill + hits.size] = hits + start
        values[fill : fill + hits.size] = score
        fill += hits.size
    kept = _best(values[:fill], k)[0] if fill > k else slice(fill)
    del values
    return positions[:fill][kept].astype(np.int64)


def _passing(failed: NDArray[np.bool_], among: NDArray[np.bool_], inverse: bool) -> NDArray[np.intp]:
    """List the eligible places that did not fail, overwriting ``failed``; NaN fails no comparison."""
    if inverse:
        np.logical_not(np.logical_or(failed, among, out=failed), out=failed)
    else:
        np.greater(among, failed, out=failed)
    return np.flatnonzero(failed)


def _refuse_nan(score: NDArray[Any], hits: NDArray[np.intp], start: int) -> None:
    bad = np.isnan(score)
    if bad.any():
        raise TopologyError(f"scores: NaN at position {start + int(hits[bad.argmax()])}; skip this update")


def _best(values: NDArray[Any], k: int) -> tuple[NDArray[np.bool_], Any]:
    """Return flags of the k largest values, the first among equal ones, and the k-th largest value."""
    threshold = _nth_smallest(values, values.size - k)
    keep = values > threshold
    ties = np.flatnonzero(values == threshold)
    keep[ties[: k - np.count_nonzero(keep)]] = True
    return keep, threshold


def _nth_smallest(values: NDArray[Any], nth: int) -> Any:
    """Find one order statistic, after values that a sample shows to be larger are left out, if many."""
    low, stride = values, values.size // _SAMPLE | 1
    if stride >= _MIN_STRIDE:
        sample = values[::stride]
        share = nth / values.size
        rank = math.ceil(share * sample.size + _DEVIATIONS * math.sqrt(share * (1 - share) * sample.size + 1))
        if rank < sample.size // 2:
            low = values[values <= np.partition(sample, rank)[rank]]
    if low.size <= nth:  # the sample misled
        low = values
    return np.partition(low, nth)[nth]
