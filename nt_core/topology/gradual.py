"""Gradual pruning: training starts dense, and connections only go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import model_validator

from nt_core.errors import SpecError
from nt_core.masks import Moment
from nt_core.policies import AnyPrune, Criterion, Layer, Magnitude, Policy, Swap
from nt_core.structure import Layout
from nt_core.topology.allocation import ERK, AnyAllocation, allocated
from nt_core.topology.base import SparseTopology, full_counts
from nt_core.topology.choosing import prune_to
from nt_core.topology.schedules import cubic_sparsity
from nt_core.values import Count, Fraction


class GradualPruning(SparseTopology):
    """Start dense and prune the smallest magnitudes, never growing (Zhu & Gupta 2017, §3).

    Sparsity rises as S·(1 − (1 − t)³) from ``begin`` to ``end``; with ``begin`` = ``end`` it is reached in
    one shot: dense, prune, go on.

    Attributes:
        sparsity: the final one.
        allocation: the final counts, where ``scope`` is ``layer``.
        prune: the criterion by which connections are pruned.
        begin: share of training before the first pruning.
        end: share of training at which the final sparsity is reached.
        interval: optimiser steps between prunings.
        scope: ``global`` ranks all weights together; ``layer`` keeps to the allocation.
    """

    kind: Literal["gradual_pruning"] = "gradual_pruning"
    updates: ClassVar[bool] = True
    allocation: AnyAllocation = ERK()
    prune: AnyPrune = Magnitude()
    begin: Fraction = 0.0
    end: Fraction = 0.75
    interval: Count = 100
    scope: Literal["layer", "global"] = "global"

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

    @property
    def competition(self) -> Literal["layer", "global"]:
        return self.scope

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        return (self.prune,)

    @property
    def sparsity_from_start(self) -> float:
        return 0.0

    def counts(self, layout: Layout) -> Mapping[str, int]:
        return allocated(layout, self.allocation, self.sparsity)

    def initial_counts(self, layout: Layout) -> Mapping[str, int]:
        return full_counts(layout)

    def due(self, step: int, total_steps: int) -> bool:
        """Tell whether a pruning follows the ``step``-th optimiser step (counted from 1)."""
        begin, end = self.window(total_steps)
        return step == end or (begin < step < end and (step - begin) % self.interval == 0)

    def next_due(self, step: int, total_steps: int) -> int | None:
        """Return the first step after ``step`` that a pruning follows."""
        begin, end = self.window(total_steps)
        passed = max(0, step - begin) // self.interval
        return min(begin + (passed + 1) * self.interval, end) if step < end else None

    def window(self, total_steps: int) -> tuple[int, int]:
        """Return the steps of the first and the last pruning."""
        end = max(1, round(self.end * total_steps))
        return min(round(self.begin * total_steps), end), end

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
        begin, end = self.window(total_steps)
        reached = 1.0 if moment.step >= end else cubic_sparsity(1.0, moment.step, begin, end)
        return prune_to(self.prune, layers, moment, targets, reached, together=self.scope == "global")

    def step_flops(self, sparse: int, dense: int) -> float:
        """Return the mean over the training: 1 − (1 − u)³ is 3/4 on average while pruning, 1 afterwards."""
        reached = 0.75 * (self.end - self.begin) + (1 - self.end)
        return 3 * (dense - (dense - sparse) * reached)

    def chosen(self, active: int, size: int) -> int:
        return size - active
