"""Composition of two criteria into a policy: counting, selection with its tie rule, record of changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nt_core.errors import TopologyError
from nt_core.finite import not_finite
from nt_core.masks import Array, Moment
from nt_core.policies.base import Criterion, Layer, Scorer, Swap

Policy = Callable[[Layer, int, Moment], Swap]
"""(layer, count, moment) → swap. A policy is pure: the same arguments give the same swap."""


def swap(prune: Criterion, grow: Criterion, *, regrow: bool = False) -> Policy:
    """Compose a policy that prunes ``count`` connections of a weight and grows as many.

    Args:
        prune: its smallest scores among active connections are pruned.
        grow: its largest scores among inactive connections are grown.
        regrow: whether connections just pruned are candidates for growth.

    Returns:
        A policy. Where fewer than ``count`` positions are inactive, and pruned connections may not
        return, the policy swaps as many as there are inactive positions.

    Example:
        >>> import numpy as np
        >>> from nt_core.policies import Gradient, Magnitude
        >>> from nt_core.random import Random
        >>> rigl = swap(prune=Magnitude(), grow=Gradient())
        >>> layer = Layer(name="w", weights=np.array([3., .1, 0., 0.]), gradients=np.array([0., 0., 1., 2.]),
        ...               active=np.array([True, True, False, False]))
        >>> rigl(layer, 1, Moment(step=100, random=Random(seed=0)))
        Swap(pruned=array([1]), grown=array([3]), returned=0)
    """

    def policy(layer: Layer, count: int, moment: Moment) -> Swap:
        inactive = moment.arrays.count(~layer.active)
        k = count if regrow else min(count, inactive)
        drop = drop_positions(prune, layer, k, moment)
        candidates = ~layer.active if regrow else layer.active
        if regrow:
            candidates[drop] = True
        score = scores(grow, after(drop, layer, grow), moment, "grow")
        found = moment.arrays.top_k(score, candidates, k, inverse=not regrow)
        return net_swap(layer, drop, found, moment)

    return policy


def after(drop: Array, layer: Layer, grow: Criterion) -> Layer:
    """Return the layer for a growth criterion, without the dropped connections if it reads the mask."""
    if not grow.uses_mask:
        return layer
    active = layer.active | layer.active  # a copy in any array library
    active[drop] = False
    return replace(layer, active=active)


def scores(criterion: Criterion, layer: Layer, moment: Moment, purpose: str) -> Scorer:
    """Return a criterion's scores of one layer as a function of a slice, negated for pruning."""
    score = criterion.scorer(layer, moment.draws(layer.name, purpose, from_start=criterion.from_start))
    return (lambda where: -score(where)) if purpose == "prune" else score


def count_below_zero(criterion: Criterion, layer: Layer, moment: Moment) -> int:
    """Count the active positions with a score below 0."""
    everywhere = slice(0, layer.active.shape[0], 1)
    negated = scores(criterion, layer, moment, "prune")(everywhere)
    return moment.arrays.count((negated > 0) & layer.active)


def drop_positions(criterion: Criterion, layer: Layer, count: int, moment: Moment) -> Array:
    """Select the ``count`` active positions of smallest score, ascending.

    Raises:
        TopologyError: ``count`` exceeds the number of active positions.
    """
    arrays = moment.arrays
    negated = scores(criterion, layer, moment, "prune")
    if not criterion.by_sign:
        return arrays.top_k(negated, layer.active, count)
    positive = layer.active & (layer.weights >= 0)
    negative = layer.active & (layer.weights < 0)
    from_positive = share_by_sign(count, arrays.count(positive), arrays.count(negative))
    return union(
        arrays.top_k(negated, positive, from_positive),
        arrays.top_k(negated, negative, count - from_positive),
        layer,
        moment,
    )


def union(some: Array, others: Array, layer: Layer, moment: Moment) -> Array:
    """Return the union of two sets of positions, ascending."""
    flags = ~moment.arrays.ones(layer.active.shape[0])
    flags[some] = True
    flags[others] = True
    return moment.arrays.nonzero(flags)


def share_by_sign(count: int, positive: int, negative: int) -> int:
    """Return the number of positive weights among ``count`` pruned ones: their share, rounded half up.

    Example:
        >>> share_by_sign(3, positive=5, negative=5), share_by_sign(3, positive=1, negative=9)
        (2, 0)
    """
    total = positive + negative
    if not 0 <= count <= total:
        raise TopologyError(f"prune: {count} positions requested, {total} available; choose 0 to {total}")
    return (2 * count * positive + total) // (2 * total) if total else 0


def net_swap(layer: Layer, dropped: Array, found: Array, moment: Moment) -> Swap:
    """Return the swap of a drop and a growth; positions that were dropped and found again do not change.

    ``dropped`` are active positions, ``found`` are inactive or just dropped positions, all ascending.
    """
    again = layer.active[found]
    returned = moment.arrays.count(again)
    if not returned:
        return Swap(pruned=dropped, grown=found)
    left = moment.arrays.ones(layer.active.shape[0])
    left[found[again]] = False
    return Swap(pruned=dropped[left[dropped]], grown=found[~again], returned=returned)


def expect_finite(layer: Layer, moment: Moment, *, gradients: bool) -> None:
    """Check that the values, gradients and momentum that a policy will read are finite.

    Raises:
        NotFiniteError: a number is NaN or infinite; the message names the weight, the step and the position.
    """
    read = layer.gradients if gradients else None
    for what, array in (("value", layer.weights), ("gradient", read), ("momentum", layer.momentum)):
        if array is None:
            continue
        position = moment.arrays.first_not_finite(array)
        if position is not None:
            raise not_finite(
                f"weight {layer.name!r}, step {moment.step}",
                f"{what} {float(array[position])} at flat position {position}",
                "the topology was left as it was",
                "Skip this batch, lower the learning rate, or clip the gradient",
            )
