"""Elementwise ops, and ops that only join or rearrange elements."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nt_core.errors import GraphError
from nt_core.graph.ops.base import Op, expect_same
from nt_core.values import Shape


class Activation(Op):
    """An elementwise function; ``gelu`` is the exact function, with erf."""

    kind: Literal["activation"] = "activation"
    function: Literal["relu", "gelu", "silu", "tanh", "sigmoid"] = "relu"

    def output_shape(self, *inputs: Shape) -> Shape:
        return inputs[0]


class Dropout(Op):
    """Zero a share ``rate`` of the values in training and scale the rest by 1 / (1 − rate)."""

    kind: Literal["dropout"] = "dropout"
    rate: Annotated[float, Field(ge=0, lt=1)]

    def output_shape(self, *inputs: Shape) -> Shape:
        return inputs[0]


class _Elementwise(Op):
    arity: ClassVar[int | None] = None

    def output_shape(self, *inputs: Shape) -> Shape:
        return expect_same(inputs)


class Add(_Elementwise):
    """Sum of two or more tensors of one shape."""

    kind: Literal["add"] = "add"


class Multiply(_Elementwise):
    """Elementwise product of two or more tensors of one shape."""

    kind: Literal["multiply"] = "multiply"


class Concat(Op):
    """Join two or more tensors along ``axis`` of the example's shape (0: channels of an image)."""

    kind: Literal["concat"] = "concat"
    arity: ClassVar[int | None] = None
    axis: Annotated[int, Field(ge=0)] = 0

    def output_shape(self, *inputs: Shape) -> Shape:
        if any(self.axis >= len(shape) for shape in inputs):
            raise GraphError(f"expected shapes with an axis {self.axis}, found {list(inputs)}")
        expect_same([(*shape[: self.axis], *shape[self.axis + 1 :]) for shape in inputs])
        joined = sum(shape[self.axis] for shape in inputs)
        return (*inputs[0][: self.axis], joined, *inputs[0][self.axis + 1 :])


class Flatten(Op):
    """Join all axes into one, in C order. (C, H, W) → (C·H·W,)."""

    kind: Literal["flatten"] = "flatten"

    def output_shape(self, *inputs: Shape) -> Shape:
        return (math.prod(inputs[0]),)


AnyElementwise = Activation | Dropout | Flatten | Add | Multiply | Concat
