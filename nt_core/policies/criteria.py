"""Criteria of pruning and growth, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from nt_core.masks import Array, Draws, Rule, link_scores
from nt_core.policies.base import Criterion, Layer, Scorer
from nt_core.values import by_kind, kinds_of


class Magnitude(Criterion):
    """Magnitude |w|; LeCun et al. 1989, Han et al. 2015."""

    kind: Literal["magnitude"] = "magnitude"

    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        return abs(layer.weights[where])


class SignedMagnitude(Criterion):
    """SET: the smallest positive weights and the negative ones closest to zero (Mocanu et al. 2018, alg. 1).

    The same share of positive and of negative weights is pruned. Zeros count as positive.
    """

    kind: Literal["signed_magnitude"] = "signed_magnitude"
    by_sign: ClassVar[bool] = True

    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        return abs(layer.weights[where])


class SoftMagnitude(Criterion):
    """Keep by sampling without replacement with probability ∝ |w|^temperature (Zhang et al. 2025, CHTs, §3).

    The sampling is exactly Gumbel top-k on temperature·log|w|, because a multinomial call fails beyond 2^24
    entries. Weights of exactly 0, which were grown and have not moved yet, have the probability 0, so they go
    before all others; which of them, if not all, is uniformly random.

    Attributes:
        temperature: the exponent of |w|; the larger it is, the more the largest weights are favoured.
    """

    kind: Literal["soft_magnitude"] = "soft_magnitude"
    uses_random: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    temperature: Annotated[float, Field(gt=0)] = 3.0

    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        score = abs(layer.weights[where]).astype(np.float64)
        unmoved = score == 0
        np.log(score, where=~unmoved, out=score)
        score *= self.temperature
        score += draws.gumbel(where)
        if unmoved.any():
            below = self.temperature * SMALLEST_LOG + LEAST_GUMBEL
            score[unmoved] = below * (1 + draws.uniform(where)[unmoved])
        return score


class Gradient(Criterion):
    """Gradient magnitude |∂L/∂w|; Evci et al. 2020 (RigL), §3."""

    kind: Literal["gradient"] = "gradient"
    uses_gradient: ClassVar[bool] = True

    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        assert layer.gradients is not None
        return abs(layer.gradients[where])


class MagnitudeAndGradient(Criterion):
    """Weighted sum |w| + λ·|∂L/∂w|; Yuan et al. 2021 (MEST), §3.

    Attributes:
        gradient_factor: λ.
    """

    kind: Literal["magnitude_and_gradient"] = "magnitude_and_gradient"
    uses_gradient: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    gradient_factor: Annotated[float, Field(ge=0)] = 0.01

    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        assert layer.gradients is not None
        return abs(layer.weights[where]) + self.gradient_factor * abs(layer.gradients[where])


class AtRandom(Criterion):
    """Uniformly random scores, by position."""

    kind: Literal["random"] = "random"
    uses_random: ClassVar[bool] = True

    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        return draws.uniform(where)


class SignFlip(Criterion):
    """Deep R: prune connections whose weight has changed its sign (Bellec et al. 2018, alg. 1).

    Each position, active or not, has one sign for the whole training, the sign of its initial draw. The score
    is sign·w; connections of scores below 0 are pruned.
    """

    kind: Literal["sign_flip"] = "sign_flip"
    uses_random: ClassVar[bool] = True
    from_start: ClassVar[bool] = True
    only_below_zero: ClassVar[bool] = True

    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        return layer.weights[where] * (1 - 2 * (draws.uniform(where) < 0.5))


class Momentum(Criterion):
    """Magnitude of the exponentially smoothed ∂L/∂w; Dettmers & Zettlemoyer 2019 (SNFS), §3.

    Attributes:
        beta: of the smoothing: m ← beta·m + (1 − beta)·∂L/∂w at every optimiser step, from 0.
    """

    kind: Literal["momentum"] = "momentum"
    exact: ClassVar[bool] = False
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.9

    @property
    def smoothing(self) -> float:
        return self.beta

    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        assert layer.momentum is not None
        return abs(layer.momentum[where])


class CannistraciHebb(Criterion):
    """Links that the mask's own paths of length 3 make likely, without a gradient (Zhang et al. 2024, CHT).

    Positions that no path reaches rank below all others, in random order.

    Attributes:
        rule: score of paths, see :data:`nt_core.masks.Rule`; CHT: ``ch3_l3``, CHTs: ``ch2_l3n``.
        soft: whether positions are sampled without replacement with probability ∝ score (Zhang et al. 2025,
            CHTs, §3), instead of taken by largest score.
    """

    kind: Literal["cannistraci_hebb"] = "cannistraci_hebb"
    uses_mask: ClassVar[bool] = True
    uses_random: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    rule: Rule = "ch3_l3"
    soft: bool = False

    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        return self.scorer(layer, draws)(where)

    def scorer(self, layer: Layer, draws: Draws) -> Scorer:
        shape = (layer.shape[0], -1) if layer.shape else (1, -1)
        found = link_scores(layer.active.reshape(shape), self.rule).reshape(-1)

        def score(where: slice) -> Array:
            likely = found[where].astype(np.float64)
            reached = likely > 0
            if self.soft:
                likely = np.log(likely, where=reached, out=likely) + draws.gumbel(where)
            return np.where(reached, likely, draws.uniform(where) - UNREACHED)

        return score


SMALLEST_LOG = -750.0
"""Below the logarithm of every positive double."""

LEAST_GUMBEL = -5.0
"""Below every Gumbel number that is made of 52 bits."""

UNREACHED = 1e6
"""Subtracted from the score of positions that no path reaches; exceeds any logarithm with Gumbel noise."""

_Prunes = Annotated[
    Magnitude | SignedMagnitude | SoftMagnitude | MagnitudeAndGradient | SignFlip | AtRandom,
    Field(discriminator="kind"),
]
_Grows = Annotated[Gradient | Momentum | CannistraciHebb | AtRandom, Field(discriminator="kind")]
AnyPrune = Annotated[_Prunes, BeforeValidator(by_kind, json_schema_input_type=str | _Prunes)]
AnyGrow = Annotated[_Grows, BeforeValidator(by_kind, json_schema_input_type=str | _Grows)]

PRUNES: Final[Mapping[str, type[Criterion]]] = kinds_of(_Prunes)
GROWS: Final[Mapping[str, type[Criterion]]] = kinds_of(_Grows)
"""Every criterion that prunes, and every one that grows, by its name in a spec file."""
