"""The topology update: selection of the pruned and grown connections of all weights after a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nt_core.errors import TopologyError
from nt_core.masks import Moment
from nt_core.policies import Layer, Policy, Swap, expect_finite
from nt_core.topology.base import DeclaredTopology
from nt_core.topology.exploration import Bits, count_bits, head_overlap


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
    topology: DeclaredTopology,
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
        moment: the step, the run's randomness, the array library.
        total_steps: optimiser steps of the whole training.
        targets: the final count of each weight, from ``topology.final_counts(layout)``.
        policy: a policy of one's own instead of the topology's prune and grow; it sees one weight at a time,
            so it needs a ``Dynamic`` topology with ``scope="layer"``.
        fraction: the drop fraction of an escape; None: that of the topology's schedule.

    Returns:
        Swap of each weight. Of each weight (``scope="layer"``, ``"momentum"``), or of all together
        (``global``), fraction·active connections are replaced, rounded as declared; fewer where a criterion
        marks fewer.

    Raises:
        TopologyError: a value that is read is not finite, and no weight has a swap; or a policy is given
            that cannot be used.
    """
    if policy is not None and not topology.takes_policy:
        raise TopologyError(
            f"policy: expected a dynamic topology with scope 'layer', found {topology.kind} with scope "
            f"{topology.competition!r}; leave the policy out or change the topology"
        )
    for layer in layers:
        expect_finite(layer, moment, gradients=topology.reads_gradient(policy))
    return topology.swaps(
        layers, moment, total_steps=total_steps, targets=targets, policy=policy, fraction=fraction
    )
