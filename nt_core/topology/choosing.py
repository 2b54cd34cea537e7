"""Choosing over several weights: how many connections of each go, and which come, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from nt_core.errors import TopologyError
from nt_core.masks import Array, Moment, share_out
from nt_core.policies import (
    Criterion,
    Layer,
    Policy,
    Swap,
    after,
    count_below_zero,
    drop_positions,
    net_swap,
    scores,
    share_by_sign,
    swap,
    union,
)

Rounding = Literal["floor", "ceil", "nearest"]
"""How a share of connections becomes a number of them; ``nearest`` rounds a half up."""


def share_of(active: int, fraction: float, rounding: Rounding = "floor") -> int:
    """Return fraction·active, rounded; a product that is an integer but for rounding counts as that integer.

    Example:
        >>> share_of(100, 0.29), int(100 * 0.29)
        (29, 28)
        >>> [share_of(5, 0.5, rounding) for rounding in ("floor", "ceil", "nearest")]
        [2, 3, 3]
    """
    product = fraction * active
    whole = round(product)
    if math.isclose(product, whole, rel_tol=1e-14, abs_tol=1e-9):
        return min(active, whole)
    match rounding:
        case "floor":
            return int(product)
        case "ceil":
            return math.ceil(product)
        case "nearest":
            return math.floor(product + 0.5)


def swap_each(
    prune: Criterion,
    grow: Criterion,
    layers: Sequence[Layer],
    moment: Moment,
    fraction: float,
    regrow: bool,
    rounding: Rounding = "floor",
) -> Mapping[str, Swap]:
    """Replace fraction·active connections of each weight, rounded, by others; fewer if fewer are marked."""
    chosen = swap(prune, grow, regrow=regrow)
    return {
        layer.name: chosen(layer, _count(prune, [layer], moment, fraction, rounding), moment)
        for layer in layers
    }


def swap_by_policy(
    policy: Policy, layers: Sequence[Layer], moment: Moment, fraction: float, rounding: Rounding = "floor"
) -> Mapping[str, Swap]:
    """Replace fraction·active connections of each weight, rounded, as somebody's own policy chooses.

    Raises:
        TopologyError: the policy's choice does not keep a count, or is none of this weight.
    """
    swaps = {
        layer.name: policy(layer, _count(None, [layer], moment, fraction, rounding), moment)
        for layer in layers
    }
    for layer in layers:
        _expect_swap(layer, swaps[layer.name])
    return swaps


def swap_globally(
    prune: Criterion,
    grow: Criterion,
    layers: Sequence[Layer],
    moment: Moment,
    fraction: float,
    regrow: bool,
    rounding: Rounding = "floor",
) -> Mapping[str, Swap]:
    """Replace fraction·active of all connections, rounded, all weights competing."""
    inactive = sum(moment.arrays.count(~layer.active) for layer in layers)
    count = _count(prune, layers, moment, fraction, rounding)
    count = count if regrow else min(count, inactive)
    dropped = _drop_globally(prune, layers, count, moment)
    candidates = [_candidates(layer, drop, regrow) for layer, drop in zip(layers, dropped, strict=True)]
    left = [after(drop, layer, grow) for layer, drop in zip(layers, dropped, strict=True)]
    found = _best_of_all(grow, left, candidates, count, moment, "grow")
    return {
        layer.name: net_swap(layer, drop, new, moment)
        for layer, drop, new in zip(layers, dropped, found, strict=True)
    }


def redistribute(
    prune: Criterion,
    grow: Criterion,
    layers: Sequence[Layer],
    moment: Moment,
    fraction: float,
    regrow: bool,
    rounding: Rounding = "floor",
) -> Mapping[str, Swap]:
    """Prune each weight's share; grow as many, divided by mean |momentum| (SNFS, algorithm 1).

    The mean is that of a weight's connections before the pruning. Connections for which a weight has no room
    go to the others, in the same proportion.
    """
    inactive = [moment.arrays.count(~layer.active) for layer in layers]
    goes = [_count(prune, [layer], moment, fraction, rounding) for layer in layers]
    if not regrow and sum(goes) > sum(inactive):
        goes = share_out(goes, upper=goes, budget=sum(inactive))
    room = [free + count if regrow else free for free, count in zip(inactive, goes, strict=True)]
    comes = share_out([_mean_momentum(layer) for layer in layers], upper=room, budget=sum(goes))
    swaps = {}
    for layer, pruned, grown in zip(layers, goes, comes, strict=True):
        drop = drop_positions(prune, layer, pruned, moment)
        score = scores(grow, after(drop, layer, grow), moment, "grow")
        found = moment.arrays.top_k(score, _candidates(layer, drop, regrow), grown)
        swaps[layer.name] = net_swap(layer, drop, found, moment)
    return swaps


def prune_to(
    prune: Criterion,
    layers: Sequence[Layer],
    moment: Moment,
    targets: Mapping[str, int],
    reached: float,
    *,
    together: bool,
) -> Mapping[str, Swap]:
    """Prune until a share of all that is to go has gone.

    Args:
        prune: the criterion; the smallest scores go.
        layers: every masked weight.
        moment: the step, the run's randomness, the array library.
        targets: the final count of each weight.
        reached: the share of the way from full to the final counts.
        together: whether all weights compete; False: each weight goes its own way.
    """
    active = [moment.arrays.count(layer.active) for layer in layers]
    sizes = [count + moment.arrays.count(~layer.active) for count, layer in zip(active, layers, strict=True)]
    final = [targets[layer.name] for layer in layers]
    if together:
        goal = sum(sizes) - round((sum(sizes) - sum(final)) * reached)
        dropped = _drop_globally(prune, layers, max(0, sum(active) - goal), moment)
    else:
        goals = [size - round((size - last) * reached) for size, last in zip(sizes, final, strict=True)]
        dropped = [
            drop_positions(prune, layer, max(0, now - goal), moment)
            for layer, now, goal in zip(layers, active, goals, strict=True)
        ]
    return {
        layer.name: Swap(pruned=drop, grown=drop[:0]) for layer, drop in zip(layers, dropped, strict=True)
    }


def _expect_swap(layer: Layer, change: Swap) -> None:
    """Raise unless a swap of somebody's own policy keeps the count and is one of this layer."""
    pruned, grown, size = np.asarray(change.pruned), np.asarray(change.grown), layer.active.shape[0]
    inside = all(
        p.ndim == 1
        and p.dtype.kind in "iu"
        and (not p.size or (p[0] >= 0 and p[-1] < size and (np.diff(p) > 0).all()))
        for p in (pruned, grown)
    )
    if not inside or pruned.size != grown.size or not layer.active[pruned].all() or layer.active[grown].any():
        raise TopologyError(
            f"weight {layer.name!r}: the policy must prune active positions and grow as many inactive ones, "
            f"ascending integers below {size}; found {pruned.size} pruned and {grown.size} grown"
        )


def _count(
    criterion: Criterion | None,
    layers: Sequence[Layer],
    moment: Moment,
    fraction: float,
    rounding: Rounding,
) -> int:
    """Return how many connections of some layers are to go."""
    most = share_of(sum(moment.arrays.count(layer.active) for layer in layers), fraction, rounding)
    if criterion is None or not criterion.only_below_zero:
        return most
    return min(most, sum(count_below_zero(criterion, layer, moment) for layer in layers))


def _candidates(layer: Layer, drop: Array, regrow: bool) -> Array:
    free = ~layer.active
    if regrow:
        free[drop] = True
    return free


def _mean_momentum(layer: Layer) -> float:
    assert layer.momentum is not None
    of_active = np.abs(np.asarray(layer.momentum)[np.asarray(layer.active)])
    return float(of_active.mean(dtype=np.float64)) if of_active.size else 0.0


def _drop_globally(criterion: Criterion, layers: Sequence[Layer], count: int, moment: Moment) -> list[Array]:
    if not criterion.by_sign:
        return _best_of_all(criterion, layers, [layer.active for layer in layers], count, moment, "prune")
    positive = [layer.active & (layer.weights >= 0) for layer in layers]
    negative = [layer.active & (layer.weights < 0) for layer in layers]
    totals = [sum(moment.arrays.count(flags) for flags in sign) for sign in (positive, negative)]
    from_positive = share_by_sign(count, *totals)
    above = _best_of_all(criterion, layers, positive, from_positive, moment, "prune")
    below = _best_of_all(criterion, layers, negative, count - from_positive, moment, "prune")
    return [union(a, b, layer, moment) for a, b, layer in zip(above, below, layers, strict=True)]


def _best_of_all(
    criterion: Criterion,
    layers: Sequence[Layer],
    among: Sequence[Array],
    count: int,
    moment: Moment,
    purpose: str,
) -> list[Array]:
    """Select the best ``count`` positions over all layers: each layer's best, then the best of those."""
    arrays = moment.arrays
    nominees, values = [], []
    for layer, eligible in zip(layers, among, strict=True):
        score = scores(criterion, layer, moment, purpose)
        best = arrays.top_k(score, eligible, min(count, arrays.count(eligible)))
        nominees.append(best)
        values.append(score(slice(0, layer.active.shape[0], 1))[best])
    joined = arrays.concatenate(values)
    everyone = arrays.ones(joined.shape[0])
    won = ~everyone
    won[arrays.top_k(joined, everyone, count)] = True
    ends = [0]
    for best in nominees:
        ends.append(ends[-1] + best.shape[0])
    return [best[won[a:b]] for best, a, b in zip(nominees, ends, ends[1:], strict=False)]
