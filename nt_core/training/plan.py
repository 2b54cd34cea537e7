"""Plans: the length of a training and its phases."""

from __future__ import annotations

import fractions
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, model_validator

from nt_core.errors import SpecError
from nt_core.training.recipe import LearningRate
from nt_core.values import Count, Value

Positive = Annotated[float, Field(gt=0)]
Ratio = fractions.Fraction
ONCE: Final = Ratio(1)


class Phase(Value):
    """A phase of a training.

    Attributes:
        steps: number of optimiser steps.
        factors: on the optimiser's learning rate, each for an equal share of the phase; none: the recipe's
            own schedule over the whole training.
        escape: drop fraction of the prune-and-grow after the phase's last step, once a member was saved;
            None: no prune-and-grow.
    """

    steps: Count
    factors: tuple[float, ...] = ()
    escape: float | None = None


class Timeline(Value):
    """Phases of a whole training, as a trainer reads them from a plan.

    Example:
        >>> timeline = Timeline(phases=(Phase(steps=4, factors=(1,)), Phase(steps=2, factors=(0.1, 0.01))))
        >>> timeline.total_steps, [timeline.factor(LearningRate(), step) for step in (0, 4, 5)]
        (6, [1.0, 0.1, 0.01])
    """

    phases: tuple[Phase, ...]

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return sum(phase.steps for phase in self.phases)

    @property
    def escapes(self) -> Mapping[int, float]:
        """Steps (counted from 1) that are followed by an escape → drop fraction of the escape."""
        ends = [sum(phase.steps for phase in self.phases[: i + 1]) for i in range(len(self.phases))]
        pairs = zip(ends, self.phases, strict=True)
        return {end: phase.escape for end, phase in pairs if phase.escape is not None}

    def member_after(self, step: int) -> int:
        """Return the number, from 1, of the member that is saved before the escape after ``step``."""
        return sorted(self.escapes).index(step) + 1

    def factor(self, learning_rate: LearningRate, step: int) -> float:
        """Return the factor on the learning rate for the optimiser step ``step``, counted from 0.

        Where a phase has factors of its own, only the warm-up of the recipe's schedule is applied.
        """
        into = step
        for phase in self.phases:
            if into < phase.steps or phase is self.phases[-1]:
                break
            into -= phase.steps
        if not phase.factors:
            return learning_rate.at(step, self.total_steps)
        share = min(into * len(phase.factors) // phase.steps, len(phase.factors) - 1)
        return phase.factors[share] * learning_rate.rising(step, self.total_steps)


class Plan(Value, ABC):
    """Length of a training.

    Attributes:
        epochs: number of passes over the data; a fraction is rounded up to whole steps.
        steps: number of optimiser steps. Give this or ``epochs``, not both.
        extend: factor on the length, at most 1/(1 − S) (see :func:`longest_of`); ``auto``: exactly 1/(1 − S).
    """

    epochs: Positive | None = None
    steps: Count | None = None
    extend: Annotated[float, Field(ge=1)] | Literal["auto"] = 1.0

    @model_validator(mode="after")
    def _expect_one_length(self) -> Plan:
        if self.epochs is not None and self.steps is not None:
            raise SpecError(
                f"plan: expected epochs or steps, found both (epochs={self.epochs:g}, steps={self.steps}); "
                "leave one out"
            )
        return self

    def total_steps(self, steps_per_epoch: int, limit: Ratio = ONCE) -> int:
        """Return the optimiser steps of the whole training.

        Args:
            steps_per_epoch: of the data at the recipe's batch size.
            limit: largest value of ``extend``, and the value of ``auto``.

        Raises:
            SpecError: neither epochs nor steps are given, or ``extend`` exceeds the limit.

        Example:
            >>> OneRun(epochs=2.5).total_steps(steps_per_epoch=10)
            25
            >>> OneRun(steps=100, extend="auto").total_steps(10, limit=longest_of(0.8))
            500
        """
        return math.floor(self._given_steps(steps_per_epoch) * self.extension(limit))

    def extension(self, limit: Ratio) -> Ratio:
        """Return ``extend`` as an exact number.

        Raises:
            SpecError: ``extend`` exceeds the limit.
        """
        if self.extend == "auto":
            return limit
        extend = _exact(self.extend)
        if extend > limit:
            raise SpecError(
                f"plan.extend: expected at most 1/(1 − sparsity) = {float(limit):g}, found {self.extend:g} "
                "(1 where training is dense); lower it, or write auto for the limit"
            )
        return extend

    def _given_steps(self, steps_per_epoch: int) -> int:
        if self.steps is not None:
            return self.steps
        if (epochs := self._given_epochs()) is None:
            raise SpecError(
                "plan: neither epochs nor steps are given; say how long with epochs: 20, or --epochs 20"
            )
        steps = epochs * steps_per_epoch
        whole = round(steps)
        return whole if math.isclose(steps, whole, rel_tol=1e-14) else math.ceil(steps)

    def _given_epochs(self) -> float | None:
        return self.epochs

    @abstractmethod
    def timeline(self, steps_per_epoch: int, limit: Ratio = ONCE) -> Timeline:
        """Return the phases; arguments and errors as for :meth:`total_steps`."""


class OneRun(Plan):
    """One training from start to end.

    Attributes:
        epochs: number of passes over the data; a fraction is rounded up to whole steps.
        steps: number of optimiser steps. Give this or ``epochs``, not both. Both may be left out where the
            caller's own loop sets the length.
        at_once: number of independent members that are trained at a time, one group after another, each saved
            at its end; None: all together. The results are the same as if all were trained together.
    """

    kind: Literal["one_run"] = "one_run"
    at_once: Count | None = None

    def timeline(self, steps_per_epoch: int, limit: Ratio = ONCE) -> Timeline:
        return Timeline(phases=(Phase(steps=self.total_steps(steps_per_epoch, limit)),))


class ExploreRefine(Plan):
    """EDST: one sparse network explores, then becomes one member after another (arXiv 2106.14568, §3.2).

    Exploration yields no member. Each refinement ends with a saved member. One large prune-and-grow (escape)
    then moves the network away from this member, the learning rate is raised again, and the next refinement
    begins. The topology's own updates continue throughout, on a schedule over the whole training.

    Attributes:
        epochs: number of passes over the data in the whole training; None: the sum of ``explore`` and all
            refinements.
        steps: number of optimiser steps of the whole training. Give this or ``epochs``, not both. With
            either, ``explore`` and ``refine`` are proportions; without, both are epochs.
        explore: length of the exploration, at the optimiser's learning rate, in epochs or as a proportion.
        refine: length of each refinement, in the same unit.
        members: M, at least 2, each made by one refinement.
        escape: share of every weight's connections that is replaced between members.
        rates: factors on the learning rate in the equal parts of a refinement.
    """

    kind: Literal["explore_refine"] = "explore_refine"
    explore: Positive = 150
    refine: Positive = 100
    members: Annotated[int, Field(ge=2, le=4096)] = 3
    escape: Annotated[float, Field(gt=0, le=1)] = 0.8
    rates: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (0.1, 0.01)

    def _given_epochs(self) -> float:
        return self.explore + self.members * self.refine if self.epochs is None else self.epochs

    def timeline(self, steps_per_epoch: int, limit: Ratio = ONCE) -> Timeline:
        """Return the phases: exploration, then M refinements, with ends rounded to whole steps.

        Raises:
            SpecError: there are too few steps.

        Example:
            >>> timeline = ExploreRefine(steps=45, members=3).timeline(steps_per_epoch=1)
            >>> [phase.steps for phase in timeline.phases], dict(timeline.escapes)
            ([15, 10, 10, 10], {25: 0.8, 35: 0.8})
        """
        total = self.total_steps(steps_per_epoch, limit)
        unit = total / (self.explore + self.members * self.refine)
        ends = [0, *(round(unit * (self.explore + k * self.refine)) for k in range(self.members + 1))]
        steps = [after - before for before, after in itertools.pairwise(ends)]
        if min(steps[0], *(each // len(self.rates) for each in steps[1:])) < 1:
            raise SpecError(
                f"plan: {total} steps are too few for an exploration and {self.members} refinements with "
                f"{len(self.rates)} learning rates each; train longer, or ask for fewer members"
            )
        explore = Phase(steps=steps[0], factors=(1.0,))
        refine = [Phase(steps=each, factors=self.rates, escape=self.escape) for each in steps[1:]]
        return Timeline(phases=(explore, *refine[:-1], refine[-1].replace(escape=None)))


def _one_run(value: Any) -> Any:
    return {"kind": "one_run"} | value if isinstance(value, dict) else value


_Plans = Annotated[OneRun | ExploreRefine, Field(discriminator="kind")]
AnyPlan = Annotated[_Plans, BeforeValidator(_one_run)]
"""Any plan; in a file, a plan without a kind is ``one_run``."""


def longest_of(sparsity: float) -> Ratio:
    """Return 1/(1 − S) exactly, the largest extension of sparse training (arXiv 2505.17909, §4).

    Example:
        >>> longest_of(0.8)
        Fraction(5, 1)
    """
    return 1 / (1 - _exact(sparsity))


def _exact(number: float) -> Ratio:
    """Return a number as the exact fraction of its decimal notation: 0.8 is 4/5."""
    return Ratio(repr(float(number)))
