"""One lowering for each op: its computation in Keras, on channels-last tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import keras

from nt_core import GraphError
from nt_core.graph import ops
from nt_core.values import Shape
from nt_keras.engines.engine import ENGINE
from nt_keras.engines.layouts import IMAGE, axis_in_keras
from nt_keras.network import layers, members

Tensor = Any
Compute = Callable[..., Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """An op in Keras.

    Attributes:
        compute: tensors of the op's inputs → tensor of its output.
        layer: holds the op's weights; None for an op without weights.
        variables: weight of the op → attribute of the layer.
    """

    compute: Compute
    layer: keras.layers.Layer | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a layer.

    Attributes:
        name: of the layer.
        dtype: policy of the layer; None: Keras' global policy.
        masked: whether kernels get masks.
        seed: of the layer's random numbers, if it draws any.
    """

    name: str
    dtype: Any
    masked: bool
    seed: int

    @property
    def common(self) -> dict[str, Any]:
        """Arguments that every layer takes."""
        return {"name": self.name, "dtype": self.dtype}


Lowering = Callable[[Any, Sequence[Shape], Settings], Lowered]
"""(op, its inputs' canonical shapes for one example, settings) → the op in Keras."""

KERNEL = {"weight": "kernel", "bias": "bias"}
SCALE = {"weight": "gamma", "bias": "beta"}


def _holding(layer: keras.layers.Layer, variables: Mapping[str, str]) -> Lowered:
    return Lowered(compute=layer, layer=layer, variables=variables)


def _conv2d(op: ops.Conv2d, _: Sequence[Shape], settings: Settings) -> Lowered:
    kind, own, variables = _kernel(op, layers.Conv2D, members.MemberConv2D)
    layer = kind(
        op.out_channels,
        op.kernel,
        op.stride,
        pads=op.padding,
        groups=op.groups,
        masked=settings.masked,
        kernel_initializer="zeros",
        **own,
        **settings.common,
    )
    return _holding(layer, variables)


def _linear(op: ops.Linear, _: Sequence[Shape], settings: Settings) -> Lowered:
    kind, own, variables = _kernel(op, layers.Dense, members.MemberDense)
    layer = kind(
        op.out_features, masked=settings.masked, kernel_initializer="zeros", **own, **settings.common
    )
    return _holding(layer, variables)


def _kernel(
    op: ops.Conv2d | ops.Linear, alone: type[keras.layers.Layer], shared: type[keras.layers.Layer]
) -> tuple[type[keras.layers.Layer], dict[str, Any], dict[str, str]]:
    """Return the layer of an op's kernel, the layer's arguments, and the attributes of the op's weights."""
    variables = {weight.name: KERNEL.get(weight.name, weight.name) for weight in op.weights()}
    if op.factors is None:
        return alone, {"use_bias": op.bias}, variables
    return shared, {"members": op.factors.members, "biased": op.bias}, variables


def _embedding(op: ops.Embedding, _: Sequence[Shape], settings: Settings) -> Lowered:
    layer = layers.Embedding(op.vocabulary, op.features, embeddings_initializer="zeros", **settings.common)
    return _holding(layer, {"weight": "embeddings"})


def _batch_norm(op: ops.BatchNorm, _: Sequence[Shape], settings: Settings) -> Lowered:
    own = {"momentum": 1 - op.momentum, "epsilon": op.eps, **settings.common}
    layer = (
        layers.BatchNorm(**own) if op.members is None else members.MemberBatchNorm(members=op.members, **own)
    )
    return _holding(layer, {**SCALE, "running_mean": "moving_mean", "running_var": "moving_variance"})


def _layer_norm(op: ops.LayerNorm, _: Sequence[Shape], settings: Settings) -> Lowered:
    if op.members is not None:
        plain = layers.LayerNorm(
            epsilon=op.eps, center=False, scale=False, dtype=settings.dtype, name=f"{settings.name}-plain"
        )
        return _scaled(plain, op.members, SCALE, settings)
    layer = layers.LayerNorm(epsilon=op.eps, **settings.common)
    return _holding(layer, SCALE)


def _rms_norm(op: ops.RMSNorm, _: Sequence[Shape], settings: Settings) -> Lowered:
    if op.members is not None:
        plain = layers.PlainRMSNorm(op.eps, dtype=settings.dtype, name=f"{settings.name}-plain")
        return _scaled(plain, op.members, {"weight": "gamma"}, settings)
    layer = keras.layers.RMSNormalization(epsilon=op.eps, **settings.common)
    return _holding(layer, {"weight": "scale"})


def _scaled(
    plain: keras.layers.Layer, count: int, variables: Mapping[str, str], settings: Settings
) -> Lowered:
    """Scale the output of a normalisation for each member."""
    own = members.MemberNorm(members=count, biased=len(variables) > 1, **settings.common)
    return Lowered(compute=lambda x: own(plain(x)), layer=own, variables=variables)


def _max_pool2d(op: ops.MaxPool2d, _: Sequence[Shape], settings: Settings) -> Lowered:
    return Lowered(compute=layers.MaxPool2D(op.kernel, op.stride, pads=op.padding, **settings.common))


def _avg_pool2d(op: ops.AvgPool2d, _: Sequence[Shape], settings: Settings) -> Lowered:
    return Lowered(
        compute=keras.layers.AveragePooling2D(
            op.kernel, op.stride, data_format="channels_last", **settings.common
        )
    )


def _global_avg_pool(_: ops.GlobalAvgPool, shapes: Sequence[Shape], settings: Settings) -> Lowered:
    kind = (
        keras.layers.GlobalAveragePooling2D
        if len(shapes[0]) == IMAGE
        else keras.layers.GlobalAveragePooling1D
    )
    return Lowered(compute=kind(data_format="channels_last", **settings.common))


def _to_sequence(op: ops.ToSequence, shapes: Sequence[Shape], settings: Settings) -> Lowered:
    """Join height and width; channels are last already."""
    return Lowered(compute=keras.layers.Reshape(op.output_shape(*shapes), **settings.common))


def _class_token(op: ops.ClassToken, _: Sequence[Shape], settings: Settings) -> Lowered:
    return _holding(layers.ClassToken(1, op.features, **settings.common), {"weight": "table"})


def _positions(op: ops.Positions, _: Sequence[Shape], settings: Settings) -> Lowered:
    return _holding(layers.Positions(op.length, op.features, **settings.common), {"weight": "table"})


def _flatten(_: ops.Flatten, shapes: Sequence[Shape], settings: Settings) -> Lowered:
    """Flatten in canonical order: (B, H, W, C) → (B, C·H·W)."""
    layer = keras.layers.Flatten(data_format="channels_last", **settings.common)
    if len(shapes[0]) != IMAGE:
        return Lowered(compute=layer)
    return Lowered(compute=lambda x: layer(keras.ops.transpose(x, (0, 3, 1, 2))))


def _attention(op: ops.Attention, _: Sequence[Shape], settings: Settings) -> Lowered:
    scaling = None if op.rotary_scaling is None else op.rotary_scaling.model_dump()
    layer = layers.Attention(op.heads, op.kv_heads, op.causal, op.rotary_base, scaling, **settings.common)
    return Lowered(compute=layer)


def _pointwise(function: Callable[[Tensor], Tensor], settings: Settings) -> Lowered:
    return Lowered(compute=keras.layers.Activation(function, **settings.common))


@layers.register  # type: ignore[untyped-decorator]
def exact_gelu(x: Tensor) -> Tensor:
    """Return x·Φ(x), because TensorFlow's own function rounds √2 to float32, in float64 too."""
    return 0.5 * x * (1 + keras.ops.erf(x * math.sqrt(0.5)))


@layers.register  # type: ignore[untyped-decorator]
def relu(x: Tensor) -> Tensor:
    """Return max(x, 0), and NaN of NaN; the gradient at 0 is 0.

    TensorFlow 2.21 with oneDNN fuses its own function with a bias, and XLA in JAX 0.10 with a mean. Both make
    0 of NaN, so that a network that has diverged gives finite logits.
    """
    if ENGINE == "torch":
        return keras.activations.relu(x)
    return keras.ops.where(x <= 0, keras.ops.zeros((), x.dtype), x)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "relu": relu,
        "gelu": exact_gelu,
        "silu": keras.activations.silu,
        "tanh": keras.activations.tanh,
        "sigmoid": keras.activations.sigmoid,
    }
)


def _merging(layer: keras.layers.Layer) -> Lowered:
    """Adapt a layer that reads a list to several inputs."""
    return Lowered(compute=lambda *xs: layer(list(xs)))


LOWERINGS: Mapping[type[ops.Op], Lowering] = MappingProxyType(
    {
        ops.Conv2d: _conv2d,
        ops.Linear: _linear,
        ops.Embedding: _embedding,
        ops.ClassToken: _class_token,
        ops.Positions: _positions,
        ops.BatchNorm: _batch_norm,
        ops.LayerNorm: _layer_norm,
        ops.RMSNorm: _rms_norm,
        ops.Activation: lambda op, _, settings: _pointwise(ACTIVATIONS[op.function], settings),
        ops.MaxPool2d: _max_pool2d,
        ops.AvgPool2d: _avg_pool2d,
        ops.GlobalAvgPool: _global_avg_pool,
        ops.Flatten: _flatten,
        ops.ToSequence: _to_sequence,
        ops.Transpose: lambda _, __, settings: Lowered(
            compute=keras.layers.Permute((2, 1), **settings.common)
        ),
        ops.TakeToken: lambda op, _, settings: Lowered(compute=layers.TakeToken(op.index, **settings.common)),
        ops.Dropout: lambda op, _, settings: Lowered(
            # PyTorch keeps a seed in 31 bits.
            compute=keras.layers.Dropout(op.rate, seed=settings.seed % 2**31, **settings.common)
        ),
        ops.Add: lambda _, __, settings: _merging(keras.layers.Add(**settings.common)),
        ops.Multiply: lambda _, __, settings: _merging(keras.layers.Multiply(**settings.common)),
        ops.Concat: lambda op, shapes, settings: _merging(
            keras.layers.Concatenate(axis=axis_in_keras(op.axis, shapes[0]), **settings.common)
        ),
        ops.Attention: _attention,
    }
)
"""Op → lowering; the keys are exactly :data:`nt_core.graph.ops.OPS`."""


def find_lowering(op: ops.Op, where: str) -> Lowering:
    """Return the lowering of an op.

    Args:
        op: the op.
        where: place of the op, for the error.

    Raises:
        GraphError: the op has no lowering.

    Example:
        >>> find_lowering(ops.Flatten(), "block 'classifier', op 'flatten1'").__name__
        '_flatten'
    """
    if type(op) not in LOWERINGS:
        raise GraphError(
            f"{where} ({op.kind}): nt_keras has no lowering for {type(op).__name__}; add one to "
            "nt_keras.network.lowering.LOWERINGS, or write the block in other ops"
        )
    return LOWERINGS[type(op)]
