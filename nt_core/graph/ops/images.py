"""Ops on images: convolution and pooling."""

from __future__ import annotations

import math
from typing import Literal

from nt_core.errors import GraphError
from nt_core.graph.ops.base import Op, Padding, Pair, ScaledOp, expect_image, windows
from nt_core.graph.weights import Init, Weight, kernel, vector
from nt_core.values import Count, Shape


class Conv2d(ScaledOp):
    """2-D convolution. (in, H, W) → (out, H', W'), weight (out, in / groups, kh, kw)."""

    kind: Literal["conv2d"] = "conv2d"
    in_channels: Count
    out_channels: Count
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    groups: Count = 1
    bias: bool = False
    init: Init = "he_normal"

    def output_shape(self, *inputs: Shape) -> Shape:
        (shape,) = inputs
        expect_image(shape, self.in_channels)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise GraphError(
                f"expected channels divisible by groups={self.groups}, "
                f"found in_channels={self.in_channels}, out_channels={self.out_channels}"
            )
        return (self.out_channels, *windows(shape, self.kernel, self.stride, self.padding))

    def weights(self) -> tuple[Weight, ...]:
        weight = kernel((self.out_channels, self.in_channels // self.groups, *self.kernel), self.init)
        if self.factors is not None:
            return weight, *self.factors.weights(self.in_channels, self.out_channels, bias=self.bias)
        return (weight, vector("bias", self.out_channels, "bias", 0.0)) if self.bias else (weight,)

    def positions(self, *inputs: Shape) -> int:
        return math.prod(self.output_shape(*inputs)[1:])


class MaxPool2d(Op):
    """Largest value of each window; padding counts as −∞. (C, H, W) → (C, H', W')."""

    kind: Literal["max_pool2d"] = "max_pool2d"
    kernel: Pair
    stride: Pair
    padding: Padding = ((0, 0), (0, 0))

    def output_shape(self, *inputs: Shape) -> Shape:
        (shape,) = inputs
        expect_image(shape)
        if any(p >= k for pads, k in zip(self.padding, self.kernel, strict=True) for p in pads):
            raise GraphError(
                f"expected padding below the kernel, found padding {self.padding} at {self.kernel}"
            )
        return (shape[0], *windows(shape, self.kernel, self.stride, self.padding))


class AvgPool2d(Op):
    """Mean of each window. (C, H, W) → (C, H', W')."""

    kind: Literal["avg_pool2d"] = "avg_pool2d"
    kernel: Pair
    stride: Pair

    def output_shape(self, *inputs: Shape) -> Shape:
        (shape,) = inputs
        expect_image(shape)
        return (shape[0], *windows(shape, self.kernel, self.stride, ((0, 0), (0, 0))))


class GlobalAvgPool(Op):
    """Mean over all positions. (C, H, W) → (C,), or (T, D) → (D,)."""

    kind: Literal["global_avg_pool"] = "global_avg_pool"

    def output_shape(self, *inputs: Shape) -> Shape:
        (shape,) = inputs
        if len(shape) not in (2, 3):
            raise GraphError(
                "expected an image (channels, height, width) or a sequence (length, features), "
                f"found shape {shape}"
            )
        return shape[:1] if len(shape) == 3 else shape[1:]


AnyImageOp = Conv2d | MaxPool2d | AvgPool2d | GlobalAvgPool
