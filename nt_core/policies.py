"""Policies: pure functions that choose which connections of a weight are pruned and which are grown.

A criterion scores positions one by one; :func:`swap` composes two of them into a policy and does the
counting, the selection with its tie rule, and the record of what changed. Criteria and policies use
plain arithmetic only, so a backend may run them on its own arrays by passing its
own :class:`nt_core.arrays.Arrays`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from nt_core.arrays import Array, Draws, Moment
from nt_core.errors import TopologyError
from nt_core.values import Value, by_kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What a policy sees of one weight. All arrays are flat, in C order, and only read.

    Attributes:
        name: the weight's full name, which keys its random numbers.
        weights: (n,) floats.
        gradients: (n,) floats, ∂L/∂w of every position, inactive ones too: reduced over ranks and
            micro-batches, unscaled. None where no criterion reads them.
        active: (n,) bool.
    """

    name: str
    weights: Array
    gradients: Array | None
    active: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """What an update changed in one weight.

    Attributes:
        pruned: ascending positions that were active and are no longer.
        grown: ascending positions that were inactive and are active now.
        returned: how many were dropped and grown again at once: they keep value and optimiser state and
            count as neither pruned nor grown.
    """

    pruned: Array
    grown: Array
    returned: int = 0


class Criterion(Value, ABC):
    """Scores positions of a weight, elementwise; read over any slice, so it never sees a whole layer.

    To prune, the smallest scores go; to grow, the largest come.

    Attributes:
        uses_gradient: whether it reads ``layer.gradients``.
        by_sign: whether, in pruning, positive and negative weights give up their own shares.
        exact: whether it is plain arithmetic, which every backend computes to the same bits; others are
            computed by NumPy for all backends.
    """

    kind: str
    uses_gradient: ClassVar[bool] = False
    by_sign: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        """Return the scores of the positions in a slice, floats of the slice's length."""


class Magnitude(Criterion):
    """|w|; LeCun et al. 1989, Han et al. 2015."""

    kind: Literal["magnitude"] = "magnitude"

    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        return abs(layer.weights[where])


class SignedMagnitude(Criterion):
    """SET: the smallest positive weights and the negative ones closest to zero (Mocanu et al. 2018, alg. 1).

    Positive and negative weights give up the same share of theirs; zeros count as positive.
    """

    kind: Literal["signed_magnitude"] = "signed_magnitude"
    by_sign: ClassVar[bool] = True

    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        return abs(layer.weights[where])


class SoftMagnitude(Criterion):
    """Keep by sampling without replacement with probability ∝ |w|^temperature (Zhang et al. 2025, CHTs, §3).

    Exactly Gumbel top-k on temperature·log|w|; no multinomial call, which fails beyond 2^24 entries.
    """

    kind: Literal["soft_magnitude"] = "soft_magnitude"
    exact: ClassVar[bool] = False
    temperature: Annotated[float, Field(gt=0)] = 3.0

    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        with np.errstate(divide="ignore"):
            return self.temperature * np.log(abs(layer.weights[where]).astype(np.float64)) + draws.gumbel(
                where
            )


class Gradient(Criterion):
    """|∂L/∂w|; Evci et al. 2020 (RigL), §3."""

    kind: Literal["gradient"] = "gradient"
    uses_gradient: ClassVar[bool] = True

    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        assert layer.gradients is not None
        return abs(layer.gradients[where])


class MagnitudeAndGradient(Criterion):
    """|w| + λ·|∂L/∂w|; Yuan et al. 2021 (MEST), §3."""

    kind: Literal["magnitude_and_gradient"] = "magnitude_and_gradient"
    uses_gradient: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    gradient_factor: Annotated[float, Field(ge=0)] = 0.01

    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        assert layer.gradients is not None
        return abs(layer.weights[where]) + self.gradient_factor * abs(layer.gradients[where])


class AtRandom(Criterion):
    """Uniformly at random, by position."""

    kind: Literal["random"] = "random"

    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        return draws.uniform(where)


_Prunes = Annotated[
    Magnitude | SignedMagnitude | SoftMagnitude | MagnitudeAndGradient | AtRandom,
    Field(discriminator="kind"),
]
_Grows = Annotated[Gradient | AtRandom, Field(discriminator="kind")]
AnyPrune = Annotated[_Prunes, BeforeValidator(by_kind, json_schema_input_type=str | _Prunes)]
AnyGrow = Annotated[_Grows, BeforeValidator(by_kind, json_schema_input_type=str | _Grows)]

Policy = Callable[[Layer, int, Moment], Swap]
"""(layer, count, moment) → what changes. Pure: the same arguments give the same swap."""


def swap(prune: Criterion, grow: Criterion, *, regrow: bool = False) -> Policy:
    """Compose a policy that prunes ``count`` connections of a weight and grows as many.

    Args:
        prune: the smallest scores among the active go.
        grow: the largest scores among the inactive come.
        regrow: whether those just pruned are among the candidates for growth.

    Returns:
        A policy. Where fewer positions are inactive than asked for, and the pruned may not return, it swaps
        as many as there are.

    Example:
        >>> from nt_core.random import Random
        >>> rigl = swap(prune=Magnitude(), grow=Gradient())
        >>> layer = Layer(name="w", weights=np.array([3., .1, 0., 0.]), gradients=np.array([0., 0., 1., 2.]),
        ...               active=np.array([True, True, False, False]))
        >>> rigl(layer, 1, Moment(step=100, random=Random(seed=0)))
        Swap(pruned=array([1]), grown=array([3]), returned=0)
    """

    def policy(layer: Layer, count: int, moment: Moment) -> Swap:
        inactive = layer.active.shape[0] - moment.arrays.count(layer.active)
        k = count if regrow else min(count, inactive)
        drop = drop_positions(prune, layer, k, moment)
        candidates = ~layer.active if regrow else layer.active
        if regrow:
            candidates[drop] = True
        score = scores(grow, layer, moment, "grow")
        found = moment.arrays.top_k(score, candidates, k, inverse=not regrow)
        return net_swap(layer, drop, found, moment)

    return policy


def scores(criterion: Criterion, layer: Layer, moment: Moment, purpose: str) -> Callable[[slice], Array]:
    """Return a criterion's scores of one layer as a function of a slice; negated to prune."""
    draws = moment.draws(layer.name, purpose)
    if purpose == "prune":
        return lambda where: -criterion(layer, where, draws)
    return lambda where: criterion(layer, where, draws)


def drop_positions(criterion: Criterion, layer: Layer, count: int, moment: Moment) -> Array:
    """Choose the ``count`` active positions of smallest score, ascending.

    Raises:
        TopologyError: more are asked for than are active.
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
    """Return the positions of both, ascending."""
    flags = ~moment.arrays.ones(layer.active.shape[0])
    flags[some] = True
    flags[others] = True
    return moment.arrays.nonzero(flags)


def share_by_sign(count: int, positive: int, negative: int) -> int:
    """Return how many of ``count`` the positive weights give up: their share, rounded half up.

    Example:
        >>> share_by_sign(3, positive=5, negative=5), share_by_sign(3, positive=1, negative=9)
        (2, 0)
    """
    total = positive + negative
    if not 0 <= count <= total:
        raise TopologyError(f"prune: {count} positions requested, {total} available; choose 0 to {total}")
    return (2 * count * positive + total) // (2 * total) if total else 0


def net_swap(layer: Layer, dropped: Array, found: Array, moment: Moment) -> Swap:
    """Record a drop and a growth; what was dropped and found again did not change.

    ``dropped`` are active positions and ``found`` inactive or just dropped ones, all ascending.
    """
    again = layer.active[found]
    returned = moment.arrays.count(again)
    if not returned:
        return Swap(pruned=dropped, grown=found)
    left = moment.arrays.ones(layer.active.shape[0])
    left[found[again]] = False
    return Swap(pruned=dropped[left[dropped]], grown=found[~again], returned=returned)


def expect_finite(layer: Layer, moment: Moment, *, gradients: bool) -> None:
    """Check what a policy will read.

    Raises:
        TopologyError: a weight or gradient is NaN or infinite; names the weight, the step and the position.
    """
    for what, array in (("value", layer.weights), ("gradient", layer.gradients if gradients else None)):
        if array is None:
            continue
        position = moment.arrays.first_not_finite(array)
        if position is not None:
            raise TopologyError(
                f"weight {layer.name!r}, step {moment.step}: {what} {float(array[position])} at flat "
                f"position {position}, expected a finite number; the topology was left as it was. "
                "Skip this batch, lower the learning rate, or clip the gradient"
            )
