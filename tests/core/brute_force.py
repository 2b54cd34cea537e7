"""What policies must choose, found by sorting everything."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nt_core.masks import Moment
from nt_core.policies import Criterion, Layer, Swap, share_by_sign


def scored(criterion: Criterion, layer: Layer, moment: Moment, purpose: str) -> NDArray[Any]:
    whole = slice(0, layer.active.size, 1)
    draws = moment.draws(layer.name, purpose, from_start=criterion.from_start)
    return np.asarray(criterion(layer, whole, draws))


def left_of(layer: Layer, drop: NDArray[np.int64]) -> Layer:
    """Return a layer without the dropped connections."""
    active = layer.active.copy()
    active[drop] = False
    return replace(layer, active=active)


def asked(prune: Criterion, layers: list[Layer], count: int, moment: Moment) -> int:
    """Return how many of ``count`` a criterion lets go."""
    if not prune.only_below_zero:
        return count
    below = [(scored(prune, layer, moment, "prune") < 0) & layer.active for layer in layers]
    return min(count, sum(int(flags.sum()) for flags in below))


def first(scores: NDArray[Any], eligible: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
    """Return the k smallest scores' positions, the lowest position among equals."""
    where = np.flatnonzero(eligible)
    return np.sort(where[np.argsort(scores[where], kind="stable")[:k]])


def expected_drop(prune: Criterion, layer: Layer, k: int, moment: Moment) -> NDArray[np.int64]:
    scores = scored(prune, layer, moment, "prune")
    if not prune.by_sign:
        return first(scores, layer.active, k)
    positive, negative = layer.active & (layer.weights >= 0), layer.active & (layer.weights < 0)
    share = share_by_sign(k, int(positive.sum()), int(negative.sum()))
    return np.sort(np.concatenate([first(scores, positive, share), first(scores, negative, k - share)]))


def expected_swap(
    prune: Criterion, grow: Criterion, layer: Layer, count: int, regrow: bool, moment: Moment
) -> Swap:
    k = count if regrow else min(count, int((~layer.active).sum()))
    drop = expected_drop(prune, layer, k, moment)
    free = ~layer.active
    free[drop] = regrow
    found = first(-scored(grow, left_of(layer, drop), moment, "grow"), free, k)
    return net(drop, found)


def expected_global_drop(
    prune: Criterion, layers: list[Layer], k: int, moment: Moment
) -> list[NDArray[np.int64]]:
    """Choose from all layers laid end to end."""
    scores = np.concatenate([scored(prune, layer, moment, "prune") for layer in layers])
    active = np.concatenate([layer.active for layer in layers])
    if not prune.by_sign:
        return cut_up(first(scores, active, k), layers)
    weights = np.concatenate([layer.weights for layer in layers])
    positive, negative = active & (weights >= 0), active & (weights < 0)
    share = share_by_sign(k, int(positive.sum()), int(negative.sum()))
    chosen = [first(scores, positive, share), first(scores, negative, k - share)]
    return cut_up(np.sort(np.concatenate(chosen)), layers)


def cut_up(positions: NDArray[np.int64], layers: list[Layer]) -> list[NDArray[np.int64]]:
    """Give each layer its own of the positions in all layers laid end to end."""
    ends = np.cumsum([0, *(layer.active.size for layer in layers)])
    return [positions[(positions >= a) & (positions < b)] - a for a, b in itertools.pairwise(ends)]


def expected_global_swap(
    prune: Criterion, grow: Criterion, layers: list[Layer], count: int, regrow: bool, moment: Moment
) -> list[Swap]:
    active = np.concatenate([layer.active for layer in layers])
    k = count if regrow else min(count, int((~active).sum()))
    drops = expected_global_drop(prune, layers, k, moment)
    free = [~layer.active for layer in layers]
    for flags, drop in zip(free, drops, strict=True):
        flags[drop] = regrow
    left = [left_of(layer, drop) for layer, drop in zip(layers, drops, strict=True)]
    scores = np.concatenate([scored(grow, layer, moment, "grow") for layer in left])
    grown = cut_up(first(-scores, np.concatenate(free), k), layers)
    return [net(drop, found) for drop, found in zip(drops, grown, strict=True)]


def net(drop: NDArray[np.int64], found: NDArray[np.int64]) -> Swap:
    again = np.intersect1d(drop, found)
    return Swap(pruned=np.setdiff1d(drop, again), grown=np.setdiff1d(found, again), returned=again.size)
