"""Linear maps and embeddings."""

from __future__ import annotations

import math
from typing import Final, Literal

from nt_core.errors import GraphError
from nt_core.graph.ops.base import ScaledOp, SharedOp, expect_features
from nt_core.graph.weights import Init, Weight, kernel, table, vector
from nt_core.values import Count, Shape

_FOR_IMAGES: Final = (
    "b.global_avg_pool(x) or b.flatten(x) before it, b.conv(x, channels, kernel=1) to map the channels of "
    "each pixel, or b.to_sequence(x) before it for a sequence of pixels"
)


class Linear(ScaledOp):
    """Affine map of the last axis of features or a sequence. (…, in) → (…, out), weight (out, in)."""

    kind: Literal["linear"] = "linear"
    in_features: Count
    out_features: Count
    bias: bool = True
    init: Init = "lecun_uniform"

    def output_shape(self, *inputs: Shape) -> Shape:
        (shape,) = inputs
        expect_features(shape, self.in_features, _FOR_IMAGES)
        return (*shape[:-1], self.out_features)

    def weights(self) -> tuple[Weight, ...]:
        weight = kernel((self.out_features, self.in_features), self.init)
        if self.factors is not None:
            return weight, *self.factors.weights(self.in_features, self.out_features, bias=self.bias)
        return (weight, vector("bias", self.out_features, "bias", 0.0)) if self.bias else (weight,)

    def positions(self, *inputs: Shape) -> int:
        return math.prod(inputs[0][:-1])


class Embedding(SharedOp):
    """A row of a table for each token. (length,) of token numbers → (length, features)."""

    kind: Literal["embedding"] = "embedding"
    vocabulary: Count
    features: Count

    def output_shape(self, *inputs: Shape) -> Shape:
        (shape,) = inputs
        if len(shape) != 1:
            raise GraphError(f"expected token numbers of shape (length,), found shape {shape}")
        return (*shape, self.features)

    def weights(self) -> tuple[Weight, ...]:
        return (table(self.vocabulary, self.features),)


AnyDense = Linear | Embedding
