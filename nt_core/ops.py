"""Ops: the closed, small set of things a network is written in.

An op knows its output shape, its weights and its multiply-adds; :mod:`nt_core.reference` holds what it
computes. Layouts are canonical: images are (channels, height, width), sequences (length, features),
convolution weights (out, in, kernel height, kernel width), linear weights (out, in). Shapes never carry the
batch axis. Paddings are explicit pairs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from nt_core.errors import GraphError
from nt_core.values import Count, Fraction, Shape, Value
from nt_core.weights import Init, Weight, kernel, table, vector

Pair = tuple[Count, Count]
NotNegative = Annotated[int, Field(ge=0)]
Padding = tuple[tuple[NotNegative, NotNegative], tuple[NotNegative, NotNegative]]
"""((top, bottom), (left, right)), in pixels."""


class Op(Value, ABC):
    """What all ops share: ``arity`` inputs (None: two or more), an output shape, weights, multiply-adds."""

    kind: str
    arity: ClassVar[int | None] = 1

    @abstractmethod
    def output_shape(self, *inputs: Shape) -> Shape:
        """Return the shape that comes out of these shapes.

        Raises:
            GraphError: an input does not fit; the message says what was expected and found.
        """

    def weights(self) -> tuple[Weight, ...]:
        """Return the arrays this op owns."""
        return ()

    def positions(self, *inputs: Shape) -> int:
        """Return how often each kernel element is used for one example: the output's positions."""
        return 0

    def product_multiply_adds(self, *inputs: Shape) -> int:
        """Return the multiply-adds among activations, which no mask can save (attention's own)."""
        return 0


class Conv2d(Op):
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
        return (weight, vector("bias", self.out_channels, "bias", 0.0)) if self.bias else (weight,)

    def positions(self, *inputs: Shape) -> int:
        return math.prod(self.output_shape(*inputs)[1:])


class Linear(Op):
    """Affine map of the last axis. (…, in) → (…, out), weight (out, in)."""

    kind: Literal["linear"] = "linear"
    in_features: Count
    out_features: Count
    bias: bool = True
    init: Init = "lecun_uniform"

    def output_shape(self, *inputs: Shape) -> Shape:
        (shape,) = inputs
        expect_features(shape, self.in_features)
        return (*shape[:-1], self.out_features)

    def weights(self) -> tuple[Weight, ...]:
        weight = kernel((self.out_features, self.in_features), self.init)
        return (weight, vector("bias", self.out_features, "bias", 0.0)) if self.bias else (weight,)

    def positions(self, *inputs: Shape) -> int:
        return math.prod(inputs[0][:-1])


class Embedding(Op):
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


class ClassToken(Op):
    """One learned vector before the first (Dosovitskiy et al. 2021, eq. 1). (T, D) → (T + 1, D)."""

    kind: Literal["class_token"] = "class_token"
    features: Count

    def output_shape(self, *inputs: Shape) -> Shape:
        length, features = expect_sequence(inputs[0])
        expect_features(inputs[0], self.features)
        return length + 1, features

    def weights(self) -> tuple[Weight, ...]:
        return (table(1, self.features),)


class Positions(Op):
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


class BatchNorm(Op):
    """Normalise each channel over batch and positions (Ioffe & Szegedy 2015). (C, …) → (C, …).

    ``momentum`` is the weight of the new batch: running = (1 − momentum)·running + momentum·batch, with the
    unbiased variance of the batch, as PyTorch has it.
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
            vector("weight", self.channels, "scale", 1.0),
            vector("bias", self.channels, "bias", 0.0),
            vector("running_mean", self.channels, "running", 0.0),
            vector("running_var", self.channels, "running", 1.0),
        )


class _LastAxisNorm(Op):
    features: Count

    def output_shape(self, *inputs: Shape) -> Shape:
        expect_features(inputs[0], self.features)
        return inputs[0]


class LayerNorm(_LastAxisNorm):
    """Normalise the last axis (Ba et al. 2016). (…, D) → (…, D)."""

    kind: Literal["layer_norm"] = "layer_norm"
    eps: Annotated[float, Field(gt=0)] = 1e-5

    def weights(self) -> tuple[Weight, ...]:
        return vector("weight", self.features, "scale", 1.0), vector("bias", self.features, "bias", 0.0)


class RMSNorm(_LastAxisNorm):
    """Divide the last axis by its root mean square (Zhang & Sennrich 2019). (…, D) → (…, D)."""

    kind: Literal["rms_norm"] = "rms_norm"
    eps: Annotated[float, Field(gt=0)] = 1e-6

    def weights(self) -> tuple[Weight, ...]:
        return (vector("weight", self.features, "scale", 1.0),)


class Activation(Op):
    """An elementwise function; ``gelu`` is the exact one, with erf."""

    kind: Literal["activation"] = "activation"
    function: Literal["relu", "gelu", "silu", "tanh", "sigmoid"] = "relu"

    def output_shape(self, *inputs: Shape) -> Shape:
        return inputs[0]


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


class Flatten(Op):
    """All axes in one, in C order. (C, H, W) → (C·H·W,)."""

    kind: Literal["flatten"] = "flatten"

    def output_shape(self, *inputs: Shape) -> Shape:
        return (math.prod(inputs[0]),)


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


class TakeToken(Op):
    """The vector at one place of a sequence; 0 is where :class:`ClassToken` puts its own. (T, D) → (D,)."""

    kind: Literal["take_token"] = "take_token"
    index: NotNegative = 0

    def output_shape(self, *inputs: Shape) -> Shape:
        length, features = expect_sequence(inputs[0])
        if self.index >= length:
            raise GraphError(f"expected an index below the length {length}, found {self.index}")
        return (features,)


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


class Attention(Op):
    """Scaled dot-product attention (Vaswani et al. 2017, §3.2) of projected queries, keys and values.

    Inputs: queries (T, heads·d), keys and values (T, kv_heads·d); output (T, heads·d). Fewer ``kv_heads``
    than ``heads`` share each key/value head among heads/kv_heads query heads (Ainslie et al. 2023).
    ``rotary_base`` turns queries and keys by rotary positions (Su et al. 2021) in the half-split layout:
    component i is paired with i + d/2.
    """

    kind: Literal["attention"] = "attention"
    arity: ClassVar[int | None] = 3
    heads: Count
    kv_heads: Count
    causal: bool = False
    rotary_base: Annotated[float, Field(gt=0)] | None = None

    def output_shape(self, *inputs: Shape) -> Shape:
        queries, keys, values = inputs
        if any(len(shape) != 2 for shape in inputs):
            raise GraphError(f"expected three shapes (length, features), found {list(inputs)}")
        if self.heads % self.kv_heads or queries[1] % self.heads:
            raise GraphError(
                f"expected heads={self.heads} to divide the {queries[1]} query features "
                f"and kv_heads={self.kv_heads} to divide heads"
            )
        size = queries[1] // self.heads
        expected = (queries[0], self.kv_heads * size)
        if keys != expected or values != expected:
            raise GraphError(f"expected keys and values of shape {expected}, found {keys} and {values}")
        if self.rotary_base is not None and size % 2:
            raise GraphError(f"expected an even head size for rotary positions, found {size}")
        return queries

    def product_multiply_adds(self, *inputs: Shape) -> int:
        length, features = inputs[0]
        return 2 * length * length * features


AnyOp = Annotated[
    Conv2d
    | Linear
    | Embedding
    | ClassToken
    | Positions
    | BatchNorm
    | LayerNorm
    | RMSNorm
    | Activation
    | MaxPool2d
    | AvgPool2d
    | GlobalAvgPool
    | Flatten
    | ToSequence
    | Transpose
    | TakeToken
    | Dropout
    | Add
    | Multiply
    | Concat
    | Attention,
    Field(discriminator="kind"),
]
OPS: tuple[type[Op], ...] = get_args(get_args(AnyOp)[0])
"""Every op there is; each backend's table of lowerings has exactly these keys."""


def expect_image(shape: Shape, channels: int | None = None) -> None:
    """Raise unless a shape is (channels, height, width)."""
    if len(shape) != 3 or (channels is not None and shape[0] != channels):
        wanted = "channels" if channels is None else channels
        raise GraphError(f"expected an image ({wanted}, height, width), found shape {shape}")


def expect_sequence(shape: Shape) -> tuple[int, int]:
    """Raise unless a shape is (length, features); return it."""
    if len(shape) != 2:
        raise GraphError(f"expected a sequence (length, features), found shape {shape}")
    return shape[0], shape[1]


def expect_features(shape: Shape, features: int) -> None:
    """Raise unless the last axis of a shape has so many features."""
    if not shape or shape[-1] != features:
        raise GraphError(f"expected {features} features on the last axis, found shape {shape}")


def expect_same(shapes: tuple[Shape, ...] | list[Shape]) -> Shape:
    """Raise unless all shapes are equal; return that shape."""
    if len(set(shapes)) != 1:
        raise GraphError(f"expected equal shapes, found {' and '.join(map(str, shapes))}")
    return shapes[0]


def windows(shape: Shape, kernel: Pair, stride: Pair, padding: Padding) -> tuple[int, int]:
    """Return how many windows fit along height and width."""
    sizes = [
        (size + sum(pads) - k) // s + 1
        for size, k, s, pads in zip(shape[1:], kernel, stride, padding, strict=True)
    ]
    if min(sizes) < 1:
        raise GraphError(f"expected room for a {kernel} window, found image {shape} with padding {padding}")
    return sizes[0], sizes[1]
