"""Allocation: the number of active elements of each weight. Counts are integers and add up exactly.

The budget is global over backbone and all heads. Every rule gives each weight a propensity p and integer
bounds. Counts are min(upper, max(lower, ε·p·size)) with the one ε that meets the budget (water-filling). The
rest from rounding down is given to the largest remainders. No array of a weight's size is ever made.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from nt_core.errors import AllocationError, nearest
from nt_core.graph.ops import Attention, Linear
from nt_core.masks import hypergeometric, share_out
from nt_core.random import Random
from nt_core.structure import Layout, PlacedWeight
from nt_core.values import Fraction, Shape, Value, by_kind

Sparsity = Annotated[float, Field(ge=0.0, lt=1.0)]
MOST: Final = 2**50
"""The largest total that is divided exactly in double precision."""

GROUPS: Final = ("@first", "@last", "@attention")
"""Names for kernels by place: the network's first kernels, its classifiers', those next to attention ops."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of one weight: a propensity per element, and the fewest and most active elements."""

    propensity: float
    lower: int
    upper: int


class Allocation(Value, ABC):
    """Base class of rules that divide the budget.

    Attributes:
        dense: kernels that stay dense: patterns over weight names (``"*/classifier/*"``) or ``"@first"``,
            ``"@last"``, ``"@attention"``. A pattern that matches nothing is an error; a group may be empty.
        dense_budget: whether dense kernels count towards the sparsity (``inside``) or the sparsity holds for
            the rest alone (``outside``).
    """

    dense: tuple[str, ...] = ()
    dense_budget: Literal["inside", "outside"] = "inside"

    @abstractmethod
    def propensity(self, shape: Shape) -> float:
        """Return the density for a weight of this shape, up to one factor common to all weights."""

    def bounds(self, placed: PlacedWeight, layout: Layout, density: float) -> Bounds:
        """Return the propensity and limits of one weight at a global density."""
        return Bounds(self.propensity(placed.weight.shape), 0, placed.weight.size)

    def divide(self, bounds: Mapping[str, Bounds], slope: Sequence[float], budget: int) -> list[int]:
        """Return counts within bounds that add up to a budget, in proportion to ``slope``."""
        lower, upper = [b.lower for b in bounds.values()], [b.upper for b in bounds.values()]
        return share_out(slope, lower=lower, upper=upper, budget=budget)


class Uniform(Allocation):
    """The same density for every weight."""

    kind: Literal["uniform"] = "uniform"

    def propensity(self, shape: Shape) -> float:
        return 1.0


class UniformPlus(Uniform):
    """Uniform, with a dense first layer and a last layer of density at least 0.2 (Gale et al. 2019, §5).

    Attributes:
        last_density: the least density of the classifier's weights.
    """

    kind: Literal["uniform_plus"] = "uniform_plus"  # type: ignore[assignment]
    dense: tuple[str, ...] = ("@first",)
    last_density: Fraction = 0.2

    def bounds(self, placed: PlacedWeight, layout: Layout, density: float) -> Bounds:
        size = placed.weight.size
        return Bounds(1.0, math.ceil(self.last_density * size) if is_last(placed) else 0, size)


class ER(Allocation):
    """Erdős–Rényi: density ∝ (in + out) / (in·out) (Mocanu et al. 2018, §2); kernels' extent is ignored."""

    kind: Literal["er"] = "er"

    def propensity(self, shape: Shape) -> float:
        return sum(shape[:2]) / math.prod(shape[:2])


class ERK(Allocation):
    """Erdős–Rényi-Kernel: density ∝ (in + out + kh + kw) / (in·out·kh·kw) (Evci et al. 2020, §3)."""

    kind: Literal["erk"] = "erk"

    def propensity(self, shape: Shape) -> float:
        return sum(shape) / math.prod(shape)


class ERKPlus(ERK):
    """ERK with a separate density of the last layer (Liu et al. 2022, "The Unreasonable…", §3).

    Attributes:
        last_density: the density of the classifier's weights.
    """

    kind: Literal["erk_plus"] = "erk_plus"  # type: ignore[assignment]
    last_density: Fraction = 1.0

    def bounds(self, placed: PlacedWeight, layout: Layout, density: float) -> Bounds:
        size = placed.weight.size
        fixed = round(self.last_density * size)
        return Bounds(
            self.propensity(placed.weight.shape), *((fixed, fixed) if is_last(placed) else (0, size))
        )


class Explicit(Allocation):
    """Densities by name; weights without a matching pattern share the rest of the budget evenly.

    Attributes:
        densities: pattern over weight names → density. The first pattern that matches counts; the other
            weights share the rest of the budget evenly.
    """

    kind: Literal["explicit"] = "explicit"
    densities: dict[str, Fraction]

    def propensity(self, shape: Shape) -> float:
        return 1.0

    def bounds(self, placed: PlacedWeight, layout: Layout, density: float) -> Bounds:
        size = placed.weight.size
        for pattern, share in self.densities.items():
            if fnmatchcase(placed.name, pattern):
                return Bounds(1.0, round(share * size), round(share * size))
        return Bounds(1.0, 0, size)


class RandomGlobal(Allocation):
    """Equal probability for all positions of all weights, as if one mask were drawn over the whole network.

    Counts are therefore random, with a multivariate hypergeometric distribution. Their total is exact.

    Attributes:
        seed: keys the counts; the same seed gives the same counts.
    """

    kind: Literal["random_global"] = "random_global"
    seed: int = 0

    def propensity(self, shape: Shape) -> float:
        return 1.0

    def divide(self, bounds: Mapping[str, Bounds], slope: Sequence[float], budget: int) -> list[int]:
        left, counts = sum(b.upper - b.lower for b in bounds.values()), []
        budget -= sum(b.lower for b in bounds.values())
        for name, bound in bounds.items():
            free = bound.upper - bound.lower
            drawn = Random(self.seed).at(weight=name, purpose="allocation").uniform(slice(0, 1))
            taken = hypergeometric(float(drawn[0]), free, left - free, budget)
            counts.append(bound.lower + taken)
            left, budget = left - free, budget - taken
        return counts


_Rules = Annotated[
    Uniform | UniformPlus | ER | ERK | ERKPlus | Explicit | RandomGlobal, Field(discriminator="kind")
]
AnyAllocation = Annotated[_Rules, BeforeValidator(by_kind, json_schema_input_type=str | _Rules)]
"""Any rule; in a file also its name alone, ``erk``."""


def allocate(layout: Layout, rule: Allocation, sparsity: float) -> Mapping[str, int]:
    """Return the number of active elements of each sparsifiable weight.

    Args:
        layout: backbone and heads.
        rule: divides the budget.
        sparsity: 1 − active / size over all sparsifiable weights, counted in each head; with
            ``dense_budget="outside"`` over the weights that are not forced dense.

    Returns:
        Name → count; the counts add up to round((1 − sparsity)·size) exactly.

    Raises:
        AllocationError: the sparsity cannot be reached (the feasible range is stated), or a pattern matches
            no weight.

    Example:
        >>> import nt_models
        >>> from nt_core import Single
        >>> layout = Single().layout(nt_models.mlp(inputs=10, hidden=(20,), classes=5))
        >>> allocate(layout, ER(), sparsity=0.5)
        {'head1/hidden1/linear1.weight': 82, 'head1/classifier/linear1.weight': 68}
    """
    placed = layout.sparsifiable
    dense = dense_names(rule.dense, layout)
    if isinstance(rule, Explicit):
        _expect_matches(rule.densities, placed, "allocation.densities")
    sizes = {p.name: p.weight.size for p in placed}
    outside = dense if rule.dense_budget == "outside" else frozenset()
    budget = round((1 - sparsity) * sum(size for name, size in sizes.items() if name not in outside))
    shared = [p for p in placed if p.name not in outside]
    bounds = [
        Bounds(1.0, p.weight.size, p.weight.size) if p.name in dense else rule.bounds(p, layout, 1 - sparsity)
        for p in shared
    ]
    counts = dict(zip((p.name for p in shared), _divide(rule, bounds, shared, budget, sparsity), strict=True))
    return {name: counts.get(name, size) for name, size in sizes.items()}


def allocated(layout: Layout, rule: Allocation, sparsity: float) -> Mapping[str, int]:
    """Give each sparsifiable weight of a layout its count; members alone get those of the whole ensemble.

    Args:
        layout: backbone and heads, perhaps of some members only (``Independent.only``).
        rule: how the budget is divided.
        sparsity: of the whole ensemble.
    """
    counts = allocate(layout.whole or layout, rule, sparsity)
    return {placed.name: counts[placed.name] for placed in layout.sparsifiable}


def is_last(placed: PlacedWeight) -> bool:
    """Return whether a weight belongs to the classifier."""
    return placed.block.kind == "classifier"


def dense_names(patterns: Sequence[str], layout: Layout) -> frozenset[str]:
    """Return the names of the kernels that match patterns or belong to groups.

    Raises:
        AllocationError: a pattern matches nothing, or a group is unknown.
    """
    placed = layout.sparsifiable
    names: set[str] = set()
    for pattern in patterns:
        if pattern.startswith("@"):
            names |= _group(pattern, layout)
        else:
            _expect_matches([pattern], placed, "allocation.dense")
            names |= {p.name for p in placed if fnmatchcase(p.name, pattern)}
    return frozenset(names)


def _group(group: str, layout: Layout) -> set[str]:
    placed = layout.sparsifiable
    match group:
        case "@first":
            return {p.name for p in placed if (p.block, p.node) == (placed[0].block, placed[0].node)}
        case "@last":
            return {p.name for p in placed if is_last(p)}
        case "@attention":
            beside = _beside_attention(layout)
            return {p.name for p in placed if (p.block.name, p.node.name) in beside}
    raise AllocationError(f"allocation.dense: no group {group!r}{nearest(group, GROUPS)}")


def _beside_attention(layout: Layout) -> set[tuple[str, str]]:
    """Find the linear maps that feed an attention op or read its output."""
    where = {f"{block.name}/{node.name}": (block.name, node) for block, node in layout.graph.nodes()}
    found = set()
    for block, node in layout.graph.nodes():
        if isinstance(node.op, Attention):
            found |= {(where[ref][0], where[ref][1].name) for ref in node.inputs}
        elif isinstance(node.op, Linear) and any(
            ref in where and isinstance(where[ref][1].op, Attention) for ref in node.inputs
        ):
            found.add((block.name, node.name))
    return found


def _expect_matches(
    patterns: Mapping[str, float] | Sequence[str], placed: Sequence[PlacedWeight], where: str
) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(p.name, pattern) for p in placed):
            raise AllocationError(
                f"{where}: {pattern!r} matches no weight{nearest(pattern, [p.name for p in placed])}"
            )


def _divide(
    rule: Allocation, bounds: Sequence[Bounds], placed: Sequence[PlacedWeight], budget: int, sparsity: float
) -> list[int]:
    size = sum(p.weight.size for p in placed)
    if size > MOST:
        raise AllocationError(f"{size} connections are more than the {MOST} that can be divided exactly")
    least, most = sum(b.lower for b in bounds), sum(b.upper for b in bounds)
    if not least <= budget <= most:
        raise AllocationError(
            f"sparsity {sparsity:g} leaves {budget} of {size} connections, but the allocation needs between "
            f"{least} and {most}; choose a sparsity from {_sparsity(most, size)} to {_sparsity(least, size)}"
        )
    slope = [b.propensity * p.weight.size for b, p in zip(bounds, placed, strict=True)]
    return rule.divide({p.name: b for p, b in zip(placed, bounds, strict=True)}, slope, budget)


def _sparsity(count: int, size: int) -> str:
    """Write the sparsity that leaves exactly ``count`` elements, with as few digits as possible."""
    exact = 1 - max(count, 0.25) / size  # a sparsity is below 1, also where nothing is left
    return next(
        text
        for digits in range(6, 18)
        if float(text := f"{exact:.{digits}g}") < 1 and round((1 - float(text)) * size) == count
    )
