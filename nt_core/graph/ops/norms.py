"""Normalisations."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from nt_core.errors import GraphError
from nt_core.graph.ops.base import MemberNorm, expect_features
from nt_core.graph.weights import Weight, vector
from nt_core.values import Count, Fraction, Shape


class BatchNorm(MemberNorm):
    """Normalise each channel over batch and positions (Ioffe & Szegedy 2015). (C, …) → (C, …).

    ``momentum`` is the weight of the new batch: running = (1 − momentum)·running + momentum·batch, with the
    unbiased variance of the batch, as in PyTorch. With ``members``, each member has its own statistics,
    scales and shifts for its rows of a member-major batch. In the other normalisations, each member has its
    own scales and shifts.
    """

    kind: Literal["batch_norm"] = "batch_norm"
    channels: Count
    momentum: Fraction = 0.1
    eps: Annotated[float, Field(gt=0)] = 1e-5

    def output_shape(self, *inputs: Shape) -> Shape:
        (shape,) = inputs
        if len(shape) not in (1, 3) or shape[0] != self.channels:
            raise GraphError(f"expected {self.channels} channels on the first axis, found shape {shape}")
        return shape

    def weights(self) -> tuple[Weight, ...]:
        return (
            vector("weight", self.channels, "scale", 1.0, self.members),
            vector("bias", self.channels, "bias", 0.0, self.members),
            vector("running_mean", self.channels, "running", 0.0, self.members),
            vector("running_var", self.channels, "running", 1.0, self.members),
        )


_FOR_IMAGES: Final = (
    "b.norm(x) to normalise its channels over the batch, or b.to_sequence(x) before it to normalise the "
    "channels of each pixel"
)


class _LastAxisNorm(MemberNorm):
    features: Count

    def output_shape(self, *inputs: Shape) -> Shape:
        expect_features(inputs[0], self.features, _FOR_IMAGES)
        return inputs[0]


class LayerNorm(_LastAxisNorm):
    """Normalise the last axis of features or a sequence (Ba et al. 2016). (…, D) → (…, D)."""

    kind: Literal["layer_norm"] = "layer_norm"
    eps: Annotated[float, Field(gt=0)] = 1e-5

    def weights(self) -> tuple[Weight, ...]:
        return (
            vector("weight", self.features, "scale", 1.0, self.members),
            vector("bias", self.features, "bias", 0.0, self.members),
        )


class RMSNorm(_LastAxisNorm):
    """Divide the last axis of features or a sequence by its root mean square (Zhang & Sennrich 2019).

    (…, D) → (…, D).
    """

    kind: Literal["rms_norm"] = "rms_norm"
    eps: Annotated[float, Field(gt=0)] = 1e-6

    def weights(self) -> tuple[Weight, ...]:
        return (vector("weight", self.features, "scale", 1.0, self.members),)


AnyNorm = BatchNorm | LayerNorm | RMSNorm
