"""Ops on sequences of vectors: conversion of images, class tokens, positions."""

from __future__ import annotations

from typing import Literal

from nt_core.errors import GraphError
from nt_core.graph.ops.base import NotNegative, Op, SharedOp, expect_image, expect_sequence
from nt_core.graph.weights import Weight, table
from nt_core.values import Count, Shape


class ToSequence(Op):
    """The pixels of an image, row by row, as vectors of their channels. (C, H, W) → (H·W, C)."""

    kind: Literal["to_sequence"] = "to_sequence"

    def output_shape(self, *inputs: Shape) -> Shape:
        expect_image(inputs[0])
        channels, height, width = inputs[0]
        return height * width, channels


class Transpose(Op):
    """Swap length and features of a sequence. (T, D) → (D, T)."""

    kind: Literal["transpose"] = "transpose"

    def output_shape(self, *inputs: Shape) -> Shape:
        return expect_sequence(inputs[0])[::-1]


class ClassToken(SharedOp):
    """One learned vector before the first (Dosovitskiy et al. 2021, eq. 1). (T, D) → (T + 1, D)."""

    kind: Literal["class_token"] = "class_token"
    features: Count

    def output_shape(self, *inputs: Shape) -> Shape:
        length, features = expect_sequence(inputs[0])
        if features != self.features:
            raise GraphError(f"expected {self.features} features on the last axis, found shape {inputs[0]}")
        return length + 1, features

    def weights(self) -> tuple[Weight, ...]:
        return (table(1, self.features),)


class Positions(SharedOp):
    """Add a learned vector at each place (Dosovitskiy et al. 2021, eq. 1). (T, D) → (T, D)."""

    kind: Literal["positions"] = "positions"
    length: Count
    features: Count

    def output_shape(self, *inputs: Shape) -> Shape:
        (shape,) = inputs
        if expect_sequence(shape) != (self.length, self.features):
            raise GraphError(f"expected a sequence {self.length, self.features}, found shape {shape}")
        return shape

    def weights(self) -> tuple[Weight, ...]:
        return (table(self.length, self.features),)


class TakeToken(Op):
    """Vector at one position of a sequence; 0 is the position of :class:`ClassToken`. (T, D) → (D,)."""

    kind: Literal["take_token"] = "take_token"
    index: NotNegative = 0

    def output_shape(self, *inputs: Shape) -> Shape:
        length, features = expect_sequence(inputs[0])
        if self.index >= length:
            raise GraphError(f"expected an index below the length {length}, found {self.index}")
        return (features,)


AnySequenceOp = ClassToken | Positions | ToSequence | Transpose | TakeToken
