"""The topology update: selection of the pruned and grown connections of all weights after a step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    expect_finite,
    net_swap,
    scores,
    share_by_sign,
    swap,
    union,
)
from nt_core.topology.declared import Dynamic, GradualPruning, reads_gradient
from nt_core.topology.exploration import Bits, count_bits, head_overlap
from nt_core.topology.schedules import cubic_sparsity


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Result of one topology update.

    Attributes:
        step: number of optimiser steps taken before the update.
        pruned: number of pruned connections, by weight.
        grown: number of grown connections, by weight.
        active: number of connections after the update, by weight.
        explored: number of positions that were ever active, by weight.
        sizes: number of positions, by weight.
        head_overlap: mean over pairs of heads of |A ∩ B| / |A ∪ B|; None with fewer than two heads.
    """

    step: int
    pruned: Mapping[str, int]
    grown: Mapping[str, int]
    active: Mapping[str, int]
    explored: Mapping[str, int]
    sizes: Mapping[str, int]
    head_overlap: float | None

    @classmethod
    def of(
        cls,
        step: int,
        swaps: Mapping[str, Swap],
        sizes: Mapping[str, int],
        masks: Mapping[str, Bits],
        seen: Mapping[str, Bits],
    ) -> Update:
        """Count the connections of some swaps.

        Args:
            step: number of optimiser steps taken.
            swaps: of the update, by weight.
            sizes: number of positions of each weight.
            masks: after the update, packed.
            seen: all masks so far, packed; from :func:`nt_core.topology.seen_with`.
        """
        return cls(
            step=step,
            pruned={name: len(swap.pruned) for name, swap in swaps.items()},
            grown={name: len(swap.grown) for name, swap in swaps.items()},
            active={name: count_bits(bits) for name, bits in masks.items()},
            explored={name: count_bits(bits) for name, bits in seen.items()},
            sizes=sizes,
            head_overlap=head_overlap(masks),
        )

    @property
    def exploration_rate(self) -> float:
        """R_s, the share of all positions that were ever active (Liu et al. 2021, ITOP, §3.2)."""
        size = sum(self.sizes.values())
        return sum(self.explored.values()) / size if size else 1.0

    def to_event(self) -> dict[str, Any]:
        """Return the totals as a trainer's event; ``head_overlap`` only where there are two heads.

        Example:
            >>> Update(step=100, pruned={"a": 2, "b": 1}, grown={"a": 2, "b": 1}, active={"a": 5},
            ...        explored={"a": 7}, sizes={"a": 14}, head_overlap=None).to_event()
            {'event': 'update', 'step': 100, 'pruned': 3, 'grown': 3, 'active': 5, 'exploration_rate': 0.5}
        """
        totals = {kind: sum(getattr(self, kind).values()) for kind in ("pruned", "grown", "active")}
        overlap = {} if self.head_overlap is None else {"head_overlap": self.head_overlap}
        rate = {"exploration_rate": self.exploration_rate}
        return {"event": "update", "step": self.step, **totals, **rate, **overlap}


def update(
    topology: Dynamic | GradualPruning,
    layers: Sequence[Layer],
    moment: Moment,
    *,
    total_steps: int,
    targets: Mapping[str, int],
    policy: Policy | None = None,
    fraction: float | None = None,
) -> Mapping[str, Swap]:
    """Select the pruned and grown connections of one topology update, without changing any argument.

    Args:
        topology: the declaration.
        layers: every masked weight, in the layout's order.
        moment: the step, the run's random numbers, the array functions.
        total_steps: number of optimiser steps of the whole training.
        targets: the final count of each weight, from :func:`nt_core.topology.final_counts`.
        policy: a policy of your own instead of the topology's prune and grow; it reads one weight at a time,
            so it needs a ``Dynamic`` topology with ``scope="layer"``.
        fraction: the drop fraction of an escape; None: that of the topology's schedule.

    Returns:
        Swap of each weight. Of each weight (``scope="layer"``, ``"momentum"``), or of all together
        (``global``), ⌊fraction·active⌋ connections are replaced; fewer where a criterion marks fewer.

    Raises:
        TopologyError: a value that is read is not finite, and no weight has a swap; or a policy is given
            that cannot be used.
    """
    if policy is not None and (isinstance(topology, GradualPruning) or topology.scope != "layer"):
        raise TopologyError(
            f"policy: expected a dynamic topology with scope 'layer', found {topology.kind} with scope "
            f"{topology.scope!r}; leave the policy out or change the topology"
        )
    for layer in layers:
        expect_finite(layer, moment, gradients=reads_gradient(topology, policy))
    if isinstance(topology, GradualPruning):
        return _prune(topology, layers, moment, total_steps, targets)
    fraction = topology.drop_fraction.at(moment.step, total_steps) if fraction is None else fraction
    regrow = topology.semantics.regrow == "return"
    if topology.scope == "global":
        return _swap_globally(topology, layers, moment, fraction, regrow)
    if topology.scope == "momentum":
        return _redistribute(topology, layers, moment, fraction, regrow)
    chosen = policy or swap(topology.prune, topology.grow, regrow=regrow)
    prune = topology.prune if policy is None else None
    swaps = {layer.name: chosen(layer, _count(prune, [layer], moment, fraction), moment) for layer in layers}
    if policy is not None:
        for layer in layers:
            _expect_swap(layer, swaps[layer.name])
    return swaps


def _expect_swap(layer: Layer, change: Swap) -> None:
    """Check that a swap of a user's own policy keeps the count and fits the layer."""
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


def share_of(active: int, fraction: float) -> int:
    """Return ⌊fraction·active⌋; a product that is an integer up to rounding counts as that integer.

    Example:
        >>> share_of(100, 0.29), int(100 * 0.29)
        (29, 28)
    """
    product = fraction * active
    whole = round(product)
    return min(active, whole if math.isclose(product, whole, rel_tol=1e-14, abs_tol=1e-9) else int(product))


def _count(criterion: Criterion | None, layers: Sequence[Layer], moment: Moment, fraction: float) -> int:
    """Return the number of connections of some layers to prune."""
    most = share_of(sum(moment.arrays.count(layer.active) for layer in layers), fraction)
    if criterion is None or not criterion.only_below_zero:
        return most
    return min(most, sum(count_below_zero(criterion, layer, moment) for layer in layers))


def _prune(
    topology: GradualPruning,
    layers: Sequence[Layer],
    moment: Moment,
    total_steps: int,
    targets: Mapping[str, int],
) -> Mapping[str, Swap]:
    begin, end = topology.window(total_steps)
    reached = 1.0 if moment.step >= end else cubic_sparsity(1.0, moment.step, begin, end)
    active = [moment.arrays.count(layer.active) for layer in layers]
    sizes = [count + moment.arrays.count(~layer.active) for count, layer in zip(active, layers, strict=True)]
    final = [targets[layer.name] for layer in layers]
    if topology.scope == "layer":
        goals = [size - round((size - last) * reached) for size, last in zip(sizes, final, strict=True)]
        dropped = [
            drop_positions(topology.prune, layer, max(0, now - goal), moment)
            for layer, now, goal in zip(layers, active, goals, strict=True)
        ]
    else:
        goal = sum(sizes) - round((sum(sizes) - sum(final)) * reached)
        dropped = _drop_globally(topology.prune, layers, max(0, sum(active) - goal), moment)
    return {
        layer.name: Swap(pruned=drop, grown=drop[:0]) for layer, drop in zip(layers, dropped, strict=True)
    }


def _swap_globally(
    topology: Dynamic, layers: Sequence[Layer], moment: Moment, fraction: float, regrow: bool
) -> Mapping[str, Swap]:
    inactive = sum(moment.arrays.count(~layer.active) for layer in layers)
    count = _count(topology.prune, layers, moment, fraction)
    count = count if regrow else min(count, inactive)
    dropped = _drop_globally(topology.prune, layers, count, moment)
    candidates = [_candidates(layer, drop, regrow) for layer, drop in zip(layers, dropped, strict=True)]
    left = [after(drop, layer, topology.grow) for layer, drop in zip(layers, dropped, strict=True)]
    found = _best_of_all(topology.grow, left, candidates, count, moment, "grow")
    return {
        layer.name: net_swap(layer, drop, new, moment)
        for layer, drop, new in zip(layers, dropped, found, strict=True)
    }


def _candidates(layer: Layer, drop: Array, regrow: bool) -> Array:
    free = ~layer.active
    if regrow:
        free[drop] = True
    return free


def _redistribute(
    topology: Dynamic, layers: Sequence[Layer], moment: Moment, fraction: float, regrow: bool
) -> Mapping[str, Swap]:
    """Prune each weight's share; grow as many, divided by mean |momentum| (SNFS, algorithm 1).

    The mean is over a weight's connections before the pruning. Connections for which a weight has no room are
    given to the other weights, in the same proportion.
    """
    inactive = [moment.arrays.count(~layer.active) for layer in layers]
    goes = [_count(topology.prune, [layer], moment, fraction) for layer in layers]
    if not regrow and sum(goes) > sum(inactive):
        goes = share_out(goes, upper=goes, budget=sum(inactive))
    room = [free + count if regrow else free for free, count in zip(inactive, goes, strict=True)]
    comes = share_out([_mean_momentum(layer) for layer in layers], upper=room, budget=sum(goes))
    swaps = {}
    for layer, pruned, grown in zip(layers, goes, comes, strict=True):
        drop = drop_positions(topology.prune, layer, pruned, moment)
        score = scores(topology.grow, after(drop, layer, topology.grow), moment, "grow")
        found = moment.arrays.top_k(score, _candidates(layer, drop, regrow), grown)
        swaps[layer.name] = net_swap(layer, drop, found, moment)
    return swaps


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
    """Select the best ``count`` positions over all layers: each layer's best, then the best of all these."""
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
