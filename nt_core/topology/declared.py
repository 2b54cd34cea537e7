"""Declarations of topologies: sparsity, initial masks, and the schedule of updates during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from nt_core.errors import SpecError, TopologyError
from nt_core.policies import AnyGrow, AnyPrune, Criterion, Gradient, Magnitude, Momentum, Policy
from nt_core.structure import Layout, Single
from nt_core.structure.fission import divide_counts
from nt_core.topology.allocation import ERK, AnyAllocation, Sparsity, allocate
from nt_core.topology.at_init import PruneAtInit
from nt_core.topology.schedules import SCHEDULES
from nt_core.values import Count, Fraction, Value

Scope = Literal["layer", "global"]


class DropFraction(Value):
    """Share of a weight's connections that an update replaces.

    Attributes:
        start: the share at step 0.
        schedule: ``constant``, ``cosine`` or ``linear``.
        until: the share of training after which the topology is fixed (RigL: 0.75).
    """

    start: Fraction = 0.5
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    until: Fraction = 1.0

    def end_step(self, total_steps: int) -> int:
        """Return the first step without updates."""
        return round(self.until * total_steps)

    def at(self, step: int, total_steps: int) -> float:
        """Return the share at a step.

        Example:
            >>> DropFraction(start=0.5, until=1.0).at(50, 100)
            0.25
        """
        return SCHEDULES[self.schedule](self.start, step, self.end_step(total_steps))


def _spell_out(value: Any) -> Any:
    return {"start": value} if isinstance(value, int | float) else value


class Semantics(Value):
    """Details of updates in which published codes differ silently; recorded with every result.

    Attributes:
        optimizer_step: whether the optimiser's step is ``taken`` before an update (ITOP, NeuroTrails) or
            ``replaced`` by it (RigL's original code).
        regrow: whether connections just pruned may ``return`` at once, with their value and optimiser state
            (RigL's original code), or must stay ``out``.
        grown_value: initial value of grown connections: ``zero``, or a new draw from the ``initial``
            distribution.
    """

    optimizer_step: Literal["taken", "replaced"] = "taken"
    regrow: Literal["out", "return"] = "out"
    grown_value: Literal["zero", "initial"] = "zero"


class Dense(Value):
    """No masks."""

    kind: Literal["dense"] = "dense"


class Static(Value):
    """Random masks, drawn once."""

    kind: Literal["static"] = "static"
    sparsity: Sparsity
    allocation: AnyAllocation = ERK()


class Dynamic(Value):
    """Dynamic sparse training: every ``interval`` steps some connections are pruned and as many grown.

    Attributes:
        sparsity: 1 − active / size over all sparsifiable weights.
        allocation: division of the active connections among weights.
        prune: criterion of the pruned connections.
        grow: criterion of the grown connections.
        drop_fraction: share of connections that an update replaces; a number in a file means a cosine
            schedule from this number to the end.
        interval: ΔT, optimiser steps between updates.
        scope: ``layer`` keeps each weight's count. With ``global`` all weights compete, and the total is
            kept. With ``momentum`` each weight prunes its share, and the grown connections are divided among
            weights in proportion to the mean |momentum| of their connections (SNFS), which keeps the total.
        semantics: see :class:`Semantics`.
    """

    kind: Literal["dynamic"] = "dynamic"
    sparsity: Sparsity
    allocation: AnyAllocation = ERK()
    prune: AnyPrune = Magnitude()
    grow: AnyGrow = Gradient()
    drop_fraction: Annotated[
        DropFraction, BeforeValidator(_spell_out, json_schema_input_type=Fraction | DropFraction)
    ] = DropFraction()
    interval: Count = 100
    scope: Literal["layer", "global", "momentum"] = "layer"
    semantics: Semantics = Semantics()

    @model_validator(mode="after")
    def _check(self) -> Dynamic:
        if self.scope == "momentum" and not isinstance(self.grow, Momentum):
            raise SpecError(
                f"topology.scope: 'momentum' needs grow 'momentum', found {self.grow.kind!r}; change either"
            )
        return self

    def due(self, step: int, total_steps: int) -> bool:
        """Return whether an update follows the ``step``-th optimiser step (counted from 1)."""
        return step % self.interval == 0 and self.drop_fraction.at(step, total_steps) > 0

    def next_due(self, step: int, total_steps: int) -> int | None:
        """Return the first step after ``step`` that is followed by an update; None: no further update.

        Only the next multiple of ``interval`` is tried, because drop fractions never rise again.
        """
        later = (step // self.interval + 1) * self.interval
        return later if later <= total_steps and self.due(later, total_steps) else None


class GradualPruning(Value):
    """Pruning of the smallest magnitudes from a dense start, without growth (Zhu & Gupta 2017, §3).

    Sparsity rises as S·(1 − (1 − t)³) from ``begin`` to ``end``. With ``begin`` = ``end`` the network is
    pruned in one shot.

    Attributes:
        sparsity: final sparsity.
        allocation: of the final counts, where ``scope`` is ``layer``.
        prune: criterion of the pruned connections.
        begin: share of training before the first pruning.
        end: share of training at which the final sparsity is reached.
        interval: optimiser steps between prunings.
        scope: ``global`` ranks all weights together; ``layer`` keeps to the allocation.
    """

    kind: Literal["gradual_pruning"] = "gradual_pruning"
    sparsity: Sparsity
    allocation: AnyAllocation = ERK()
    prune: AnyPrune = Magnitude()
    begin: Fraction = 0.0
    end: Fraction = 0.75
    interval: Count = 100
    scope: Scope = "global"

    @model_validator(mode="after")
    def _check(self) -> GradualPruning:
        if self.begin > self.end:
            raise SpecError(f"topology.begin: expected at most end={self.end:g}, found {self.begin:g}")
        if self.prune.only_below_zero:
            raise SpecError(
                f"topology.prune: {self.prune.kind!r} itself decides how many connections go, but gradual "
                "pruning does that by its schedule; choose another criterion"
            )
        return self

    def due(self, step: int, total_steps: int) -> bool:
        """Return whether a pruning follows the ``step``-th optimiser step (counted from 1)."""
        begin, end = self.window(total_steps)
        return step == end or (begin < step < end and (step - begin) % self.interval == 0)

    def next_due(self, step: int, total_steps: int) -> int | None:
        """Return the first step after ``step`` that is followed by a pruning."""
        begin, end = self.window(total_steps)
        passed = max(0, step - begin) // self.interval
        return min(begin + (passed + 1) * self.interval, end) if step < end else None

    def window(self, total_steps: int) -> tuple[int, int]:
        """Return the steps of the first and the last pruning."""
        end = max(1, round(self.end * total_steps))
        return min(round(self.begin * total_steps), end), end


AnyTopology = Annotated[Dense | Static | PruneAtInit | Dynamic | GradualPruning, Field(discriminator="kind")]


def final_counts(topology: AnyTopology, layout: Layout) -> Mapping[str, int]:
    """Return the number of active elements of each sparsifiable weight at the end of training.

    Where ``scope`` is not ``"layer"``, the total is exact, and the division among weights is the
    allocation's, because the true division depends on the training.
    """
    if layout.divided:
        return divide_counts(layout, final_counts(topology, Single().layout(layout.graph)))
    if isinstance(topology, Dense):
        return {placed.name: placed.weight.size for placed in layout.sparsifiable}
    counts = allocate(layout.whole or layout, topology.allocation, topology.sparsity)
    return {placed.name: counts[placed.name] for placed in layout.sparsifiable}


def criteria(topology: Dynamic | GradualPruning) -> tuple[Criterion, ...]:
    """Return the criteria of a topology."""
    return (topology.prune, topology.grow) if isinstance(topology, Dynamic) else (topology.prune,)


def due(topology: AnyTopology, step: int, total_steps: int) -> bool:
    """Return whether an update follows the ``step``-th optimiser step (counted from 1).

    Example:
        >>> due(Static(sparsity=0.5), 100, 1000), due(Dynamic(sparsity=0.5), 100, 1000)
        (False, True)
    """
    return isinstance(topology, Dynamic | GradualPruning) and topology.due(step, total_steps)


def expect_escapes(escapes: Mapping[int, float], topology: AnyTopology) -> Mapping[int, float]:
    """Return the escapes of a caller, after a check that they are possible.

    Raises:
        TopologyError: the topology does not prune and grow, or a drop fraction is not above 0 and at most 1.
    """
    if escapes and not isinstance(topology, Dynamic):
        raise TopologyError(f"escapes: expected a dynamic topology, found {topology.kind}; leave them out")
    for step, fraction in escapes.items():
        if not 0 < fraction <= 1:
            raise TopologyError(
                f"escapes: expected a drop fraction above 0 and at most 1 after step {step}, found {fraction}"
            )
    return escapes


def expect_shardable(topology: AnyTopology) -> None:
    """Check that updates can be selected by processes of which each holds a part of every weight.

    Raises:
        TopologyError: the topology reads more than each weight's elements.
    """
    whole = []
    if isinstance(topology, Dynamic | GradualPruning):
        whole = [each.kind for each in criteria(topology) if each.uses_mask]
    scope = getattr(topology, "scope", "layer")
    if whole or scope != "layer":
        raise TopologyError(
            f"topology: weights are sharded, but {whole[0] if whole else f'scope {scope}'} reads more than "
            "one part; train with DistributedDataParallel, or choose scope layer and elementwise criteria"
        )


def next_due(topology: AnyTopology, step: int, total_steps: int) -> int | None:
    """Return the first step after ``step`` that is followed by an update; None: no further update.

    Example:
        >>> next_due(Dynamic(sparsity=0.5), 100, 1000), next_due(Dynamic(sparsity=0.5), 900, 1000)
        (200, None)
    """
    if not isinstance(topology, Dynamic | GradualPruning):
        return None
    return topology.next_due(step, total_steps)


def reads_gradient(topology: AnyTopology, policy: Policy | None = None) -> bool:
    """Return whether updates read the dense gradient; a user's own policy always may."""
    if not isinstance(topology, Dynamic | GradualPruning):
        return False
    return policy is not None or any(criterion.uses_gradient for criterion in criteria(topology))


def momentum_beta(topology: AnyTopology) -> float | None:
    """Return the smoothing of the dense gradient at every step; None: the topology does not read it.

    Example:
        >>> momentum_beta(Dynamic(sparsity=0.5, grow=Momentum(beta=0.8))), momentum_beta(Dense())
        (0.8, None)
    """
    grow = topology.grow if isinstance(topology, Dynamic) else None
    return grow.beta if isinstance(grow, Momentum) else None


def replaces_step(topology: AnyTopology) -> bool:
    """Return whether an update replaces the optimiser's step."""
    return isinstance(topology, Dynamic) and topology.semantics.optimizer_step == "replaced"
