"""Members that share every block: conversion of examples to rows and back, and layers with own weights.

The rows of a batch are member-major: the first 1/M of the rows belongs to member 1.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from nt_core.structure.layout import Along
from nt_keras.engines import engine
from nt_keras.network.layers import BatchNorm, Conv2D, Dense, register


class _OfMembers(keras.layers.Layer):  # type: ignore[misc]
    """Base of layers that know the number of members of their rows."""

    def __init__(self, *args: Any, members: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.members = members

    def own(self, x: Any) -> Any:
        """Return each member's rows: (M·B, …) → (M, B, …)."""
        return ops.reshape(x, (self.members, -1, *x.shape[1:]))

    def wide(self, vectors: Any, own: Any) -> Any:
        """Spread members' vectors, (M, D), over their rows, (M, B, …, D)."""
        return ops.reshape(vectors, (self.members, *[1] * (len(own.shape) - 2), -1))

    def add_vectors(self, name: str, size: int, **kwargs: Any) -> Any:
        """Add a vector for each member, (M, size)."""
        return self.add_weight(shape=(self.members, size), initializer="zeros", name=name, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "members": self.members}


@register
class FromExamples(_OfMembers):
    """(B, *input shape) → (rows, *input shape of the graph); see :class:`nt_core.structure.Layout`."""

    def __init__(self, *, along: Along, own_rows: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.along, self.own_rows = along, own_rows

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if not (training and self.own_rows):
            inputs = ops.concatenate([inputs] * self.members, axis=0)
        if self.along == "rows":
            return inputs
        own = ops.moveaxis(self.own(inputs), 0, -2)
        return ops.reshape(own, (-1, *inputs.shape[1:-1], self.members * inputs.shape[-1]))

    def compute_output_shape(self, input_shape: Any) -> Any:
        channels = input_shape[-1] * (self.members if self.along == "channels" else 1)
        return (None, *input_shape[1:-1], channels)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "along": self.along, "own_rows": self.own_rows}


@register
class FromRows(_OfMembers):
    """Output of the network → logits, (B, M, *output shape)."""

    def __init__(self, *, along: Along, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.along = along

    def call(self, inputs: Any) -> Any:
        if self.along == "rows":
            return ops.swapaxes(self.own(inputs), 0, 1)
        return ops.reshape(inputs, (-1, self.members, inputs.shape[-1] // self.members))

    def compute_output_shape(self, input_shape: Any) -> Any:
        rest = input_shape[1:] if self.along == "rows" else (input_shape[-1] // self.members,)
        return (None, self.members, *rest)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "along": self.along}


class _Shared(_OfMembers):
    """Base of layers whose kernel members share: y_m = product(x_m ∘ r_m) ∘ s_m + b_m."""

    def __init__(self, *args: Any, biased: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, use_bias=False, **kwargs)
        self.biased = biased

    def add_factors(self, inputs: int, outputs: int) -> None:
        """Add r (M, inputs), s (M, outputs) and b (M, outputs)."""
        self.input_factor = self.add_vectors("input_factor", inputs)
        self.output_factor = self.add_vectors("output_factor", outputs)
        self.input_factor.decayed = self.output_factor.decayed = False
        if self.biased:
            self.bias = self.add_vectors("bias", outputs)

    def product(self, inputs: Any) -> Any:
        """Apply the shared kernel."""
        raise NotImplementedError

    def call(self, inputs: Any) -> Any:
        own = self.own(inputs)
        x = ops.reshape(own * self.wide(self.input_factor, own), (-1, *inputs.shape[1:]))
        y = self.own(self.product(x))
        return self.rows(y * self.wide(self.output_factor, y))

    def rows(self, own: Any) -> Any:
        """Add biases and return all rows: (M, B, …) → (M·B, …)."""
        own = own + self.wide(self.bias, own) if self.biased else own
        return ops.reshape(own, (-1, *own.shape[2:]))

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "biased": self.biased}
        del config["use_bias"]
        return config


@register
class MemberDense(_Shared, Dense):
    """A linear map of the last axis whose kernel members share."""

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.add_factors(input_shape[-1], self.units)

    def product(self, inputs: Any) -> Any:
        return ops.matmul(inputs, self.kernel)


@register
class MemberConv2D(_Shared, Conv2D):
    """A convolution whose kernel members share, scaled by channel.

    In TensorFlow, and with groups, activations are scaled. Elsewhere each member has a scaled kernel, which
    is smaller than activations. With scaled kernels, a step of a Wide-ResNet took 0.7 times as long in JAX,
    and 1.6 times as long in TensorFlow (``benchmarks/member_step.py``).
    """

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.add_factors(input_shape[-1], self.filters)

    def call(self, inputs: Any) -> Any:
        if engine.ENGINE == "tensorflow" or self.groups > 1:
            return super().call(inputs)
        own = self.own(inputs)
        results = []
        for number in range(self.members):
            scales = self.input_factor[number][:, None] * self.output_factor[number]
            results.append(self.convolution_op(self.padded(own[number]), self.kernel * scales))
        return self.rows(ops.stack(results))

    def product(self, inputs: Any) -> Any:
        return self.convolution_op(self.padded(inputs), self.kernel)


@register
class MemberBatchNorm(_OfMembers, BatchNorm):
    """Batch normalisation of each member's rows separately."""

    def build(self, input_shape: Any) -> None:
        size = input_shape[-1]
        self.gamma, self.beta = self.add_vectors("gamma", size), self.add_vectors("beta", size)
        kept = {"trainable": False, "autocast": False}
        self.moving_mean = self.add_vectors("moving_mean", size, **kept)
        self.moving_variance = self.add_vectors("moving_variance", size, **kept)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        own = self.own(inputs)
        y = self.normalise(own, tuple(range(1, len(own.shape) - 1)), training)
        return ops.reshape(y, (-1, *inputs.shape[1:]))


@register
class MemberNorm(_OfMembers):
    """Scale, and perhaps shift, of each member behind a normalisation that has none."""

    def __init__(self, *, biased: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.biased = biased

    def build(self, input_shape: Any) -> None:
        self.gamma = self.add_vectors("gamma", input_shape[-1])
        self.beta = self.add_vectors("beta", input_shape[-1]) if self.biased else None
        self.built = True

    def call(self, inputs: Any) -> Any:
        own = self.own(inputs)
        y = own * self.wide(self.gamma, own)
        y = y + self.wide(self.beta, own) if self.biased else y
        return ops.reshape(y, (-1, *inputs.shape[1:]))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "biased": self.biased}
