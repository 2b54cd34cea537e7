"""Policies: pure functions that select the pruned and the grown connections of a weight.

In go a weight's values, gradients, and mask, out comes a :class:`Swap`: a criterion scores positions one by
one, and :func:`swap` composes two of them into a policy and does the counting, the selection with its tie
rule, and the record of changes. Criteria use plain arithmetic only, so a backend may run them on its own
arrays by passing its own :class:`nt_core.masks.Arrays`. This room imports ``masks`` and the ground.
"""

from nt_core.policies.base import Criterion, Layer, Scorer, Swap
from nt_core.policies.compose import (
    Policy,
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
from nt_core.policies.criteria import (
    GROWS,
    PRUNES,
    AnyGrow,
    AnyPrune,
    AtRandom,
    CannistraciHebb,
    Gradient,
    Magnitude,
    MagnitudeAndGradient,
    Momentum,
    SignedMagnitude,
    SignFlip,
    SoftMagnitude,
)

__all__ = [
    "GROWS",
    "PRUNES",
    "AnyGrow",
    "AnyPrune",
    "AtRandom",
    "CannistraciHebb",
    "Criterion",
    "Gradient",
    "Layer",
    "Magnitude",
    "MagnitudeAndGradient",
    "Momentum",
    "Policy",
    "Scorer",
    "SignFlip",
    "SignedMagnitude",
    "SoftMagnitude",
    "Swap",
    "after",
    "count_below_zero",
    "drop_positions",
    "expect_finite",
    "net_swap",
    "scores",
    "share_by_sign",
    "swap",
    "union",
]
