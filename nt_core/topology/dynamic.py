"""Dynamic sparse training: connections are pruned and as many grown, again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, model_validator

from nt_core.errors import SpecError
from nt_core.masks import Moment
from nt_core.policies import AnyGrow, AnyPrune, Criterion, Gradient, Layer, Magnitude, Policy, Swap
from nt_core.structure import Layout
from nt_core.topology.allocation import ERK, AnyAllocation, allocated
from nt_core.topology.base import Competition, SparseTopology
from nt_core.topology.choosing import (
    Rounding,
    redistribute,
    share_of,
    swap_by_policy,
    swap_each,
    swap_globally,
)
from nt_core.topology.schedules import SCHEDULES, ScheduleName
from nt_core.values import Count, Fraction, Value


class DropFraction(Value):
    """How large a share of a weight's connections an update replaces.

    Attributes:
        start: the share at step 0.
        schedule: how it falls, the name of one of :data:`nt_core.topology.schedules.SCHEDULES`.
        until: the share of training after which the topology stays as it is (RigL: 0.75).
        floor: the share at which a falling schedule ends, instead of 0 (0.005 in the code of NeuroTrails,
            arXiv 2505.17909). With a floor the end step itself has an update, as in that code.

    Raises:
        SpecError: the floor exceeds the start, or the schedule does not fall.
    """

    start: Fraction = 0.5
    schedule: ScheduleName = "cosine"
    until: Fraction = 1.0
    floor: Fraction = 0.0

    @model_validator(mode="after")
    def _check(self) -> DropFraction:
        if self.floor > self.start:
            raise SpecError(
                f"drop_fraction.floor: expected at most start={self.start:g}, found {self.floor:g}"
            )
        if self.floor and self.schedule == "constant":
            raise SpecError(
                f"drop_fraction.floor: a constant fraction never falls to {self.floor:g}; leave the floor "
                "out, or choose another schedule"
            )
        return self

    def end_step(self, total_steps: int) -> int:
        """Return the step at which the schedule ends; without a floor it has no update."""
        return round(self.until * total_steps)

    def at(self, step: int, total_steps: int) -> float:
        """Return the share at a step: floor + schedule(start − floor) up to the end step, 0 after it.

        Example:
            >>> DropFraction(start=0.5, until=1.0).at(50, 100)
            0.25
            >>> code = DropFraction(start=0.5, until=0.8, floor=0.1)
            >>> [round(code.at(step, 100), 4) for step in (0, 40, 80, 81)]
            [0.5, 0.3, 0.1, 0.0]
        """
        end = self.end_step(total_steps)
        if step > end:
            return 0.0
        return self.floor + SCHEDULES[self.schedule](self.start - self.floor, step, end)


def _spell_out(value: Any) -> Any:
    return {"start": value} if isinstance(value, int | float) else value


class Semantics(Value):
    """Choices in which families of code differ without saying so; recorded with every result.

    Attributes:
        optimizer_step: whether the optimiser's step of an update is ``taken`` before the update (ITOP,
            NeuroTrails) or ``replaced`` by it (RigL's original code).
        regrow: whether connections just pruned may ``return`` at once, with their value and optimiser state
            (RigL's original code), or must stay ``out``.
        grown_value: grown connections start at ``zero``, or at a new draw from the ``initial`` distribution.
        rounding: how fraction·active becomes a number of connections: ``floor``, ``ceil`` (the code of
            NeuroTrails for vision, and of FreeTickets), or ``nearest``, of which a half goes up.
    """

    optimizer_step: Literal["taken", "replaced"] = "taken"
    regrow: Literal["out", "return"] = "out"
    grown_value: Literal["zero", "initial"] = "zero"
    rounding: Rounding = "floor"


class Dynamic(SparseTopology):
    """Dynamic sparse training: every ``interval`` steps some connections are pruned and as many grown.

    Attributes:
        sparsity: 1 − active / size over all sparsifiable weights.
        allocation: how the active connections are divided among weights.
        prune: the criterion by which connections are pruned.
        grow: the criterion by which connections are grown.
        drop_fraction: the share that is replaced; a number in a file means cosine from there to the end.
        interval: ΔT, optimiser steps between updates.
        scope: ``layer`` keeps each weight's count; ``global`` lets all compete and keeps the total; with
            ``momentum`` each weight prunes its share, and grown connections are divided among weights in
            proportion to the mean |momentum| of their connections (SNFS), which keeps the total.
        semantics: see :class:`Semantics`.
    """

    kind: Literal["dynamic"] = "dynamic"
    updates: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    allocation: AnyAllocation = ERK()
    prune: AnyPrune = Magnitude()
    grow: AnyGrow = Gradient()
    drop_fraction: Annotated[
        DropFraction, BeforeValidator(_spell_out, json_schema_input_type=Fraction | DropFraction)
    ] = DropFraction()
    interval: Count = 100
    scope: Competition = "layer"
    semantics: Semantics = Semantics()

    @model_validator(mode="after")
    def _check(self) -> Dynamic:
        if self.scope == "momentum" and self.grow.smoothing is None:
            raise SpecError(
                f"topology.scope: 'momentum' needs grow 'momentum', found {self.grow.kind!r}; change either"
            )
        return self

    @property
    def competition(self) -> Competition:
        return self.scope

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        return self.prune, self.grow

    @property
    def takes_policy(self) -> bool:
        return self.scope == "layer"

    @property
    def replaces_step(self) -> bool:
        return self.semantics.optimizer_step == "replaced"

    @property
    def draws_grown(self) -> bool:
        return self.semantics.grown_value == "initial"

    @property
    def _regrow(self) -> bool:
        return self.semantics.regrow == "return"

    def counts(self, layout: Layout) -> Mapping[str, int]:
        return allocated(layout, self.allocation, self.sparsity)

    def due(self, step: int, total_steps: int) -> bool:
        return step % self.interval == 0 and self.drop_fraction.at(step, total_steps) > 0

    def next_due(self, step: int, total_steps: int) -> int | None:
        """Return the first step after ``step`` that an update follows; drop fractions never rise again.

        Example:
            >>> rigl = Dynamic(sparsity=0.5)
            >>> rigl.next_due(100, 1000), rigl.next_due(900, 1000)
            (200, None)
        """
        later = (step // self.interval + 1) * self.interval
        return later if later <= total_steps and self.due(later, total_steps) else None

    def swaps(
        self,
        layers: Sequence[Layer],
        moment: Moment,
        *,
        total_steps: int,
        targets: Mapping[str, int],
        policy: Policy | None = None,
        fraction: float | None = None,
    ) -> Mapping[str, Swap]:
        fraction = self.drop_fraction.at(moment.step, total_steps) if fraction is None else fraction
        rounding = self.semantics.rounding
        if policy is not None:
            return swap_by_policy(policy, layers, moment, fraction, rounding)
        choose = {"layer": swap_each, "global": swap_globally, "momentum": redistribute}[self.scope]
        return choose(self.prune, self.grow, layers, moment, fraction, self._regrow, rounding)

    def step_flops(self, sparse: int, dense: int) -> float:
        if self.momentum_beta is not None:
            return 2.0 * sparse + dense  # the gradient of every weight is dense at every step
        if self.reads_gradient():
            return (3 * sparse * self.interval + 2 * sparse + dense) / (self.interval + 1)
        return 3.0 * sparse

    def chosen(self, active: int, size: int) -> int:
        count = self._most(active)
        return count if self._regrow else min(count, size - active)

    def exchanged(self, active: int, size: int) -> int:
        return min(self._most(active), size - active)

    def _most(self, active: int) -> int:
        return share_of(active, self.drop_fraction.start, self.semantics.rounding)
