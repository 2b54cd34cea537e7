"""Keras layers for ops: variants of Keras' own layers, with the differences stated."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from nt_core.graph.ops import Attention as AttentionOp
from nt_keras.engines.devices import has_accelerator
from nt_keras.engines.engine import ENGINE, padded_conv, with_dense_gradient
from nt_keras.network.kernels import mask_kernel, set_masks

MASK = "weight_mask"
"""Name of the variable beside a masked kernel: bool, True where a connection is active."""

register = keras.saving.register_keras_serializable(package="neurotrails")


class _Masked(keras.layers.Layer):  # type: ignore[misc]
    """Mixin that adds a mask beside the kernel of a layer of Keras.

    The computation does not use the mask, because the kernel has exact zeros. The optimiser finds the mask as
    ``layer.kernel.mask``.
    """

    def __init__(self, *args: Any, masked: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.masked = masked

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        if self.masked:
            self.mask = self.add_weight(
                shape=self.kernel.shape,
                dtype="bool",
                initializer="ones",
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
                name=MASK,
            )
            mask_kernel(self.kernel, self.mask)

    def save_own_variables(self, store: Any) -> None:
        """Save the mask too, because the layers of Keras save only the variables that they know by name."""
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: Any) -> None:
        """Load the variables of :meth:`save_own_variables`, the mask first, because it decides what stays."""
        if self.masked:
            variables = [*self._trainable_variables, *self._non_trainable_variables]
            place = next(number for number, each in enumerate(variables) if each is self.mask)
            if str(place) in store.keys():  # noqa: SIM118
                self.mask.assign(store[str(place)])
        keras.layers.Layer.load_own_variables(self, store)

    def set_weights(self, weights: Any) -> None:
        """Set the variables, the mask first, because it decides what stays."""
        set_masks(self.weights, weights)
        super().set_weights(weights)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "masked": self.masked}


@register
class Embedding(keras.layers.Embedding):  # type: ignore[misc]
    """``keras.layers.Embedding`` whose gradient is summed over all positions of a token."""

    def call(self, inputs: Any) -> Any:
        return ops.cast(ops.take(with_dense_gradient(self.embeddings), inputs, axis=0), self.compute_dtype)


@register
class Dense(_Masked, keras.layers.Dense):  # type: ignore[misc]
    """``keras.layers.Dense`` with a mask beside its kernel."""


@register
class PlainRMSNorm(keras.layers.Layer):  # type: ignore[misc]
    """Division of the last axis by its root mean square, without the scale of Keras' own layer."""

    def __init__(self, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def call(self, inputs: Any) -> Any:
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        root = ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + self.epsilon)
        return ops.cast(x * root, self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


class _Padded(keras.layers.Layer):  # type: ignore[misc]
    """Mixin that adds explicit padding to a layer of Keras that moves a window over images.

    Args:
        pads: ((top, bottom), (left, right)), in pixels.
    """

    fill = 0.0

    def __init__(self, *args: Any, pads: Any = ((0, 0), (0, 0)), **kwargs: Any) -> None:
        super().__init__(*args, padding="valid", data_format="channels_last", **kwargs)
        self.pads = tuple(tuple(side) for side in pads)

    def call(self, inputs: Any) -> Any:
        return super().call(self.padded(inputs))

    def padded(self, inputs: Any) -> Any:
        """Return a padded copy of images, if there is anything to pad."""
        if self.padding != "valid" or not any(map(any, self.pads)):
            return inputs
        return ops.pad(inputs, ((0, 0), *self.pads, (0, 0)), constant_values=self.fill)

    def compute_output_shape(self, input_shape: Any) -> Any:
        batch, height, width, channels = input_shape
        if self.padding == "valid":
            (top, bottom), (left, right) = self.pads
            height, width = height + top + bottom, width + left + right
        return super().compute_output_shape((batch, height, width, channels))

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "pads": self.pads}
        del config["padding"], config["data_format"]
        return config


@register
class Conv2D(_Masked, _Padded, keras.layers.Conv2D):  # type: ignore[misc]
    """``keras.layers.Conv2D`` with explicit paddings and a mask beside its kernel."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.strides == (1, 1) and self.pads == tuple(((k - 1) // 2, k // 2) for k in self.kernel_size):
            self.padding = "same"  # the same numbers without a padded copy

    def padded(self, inputs: Any) -> Any:
        """Leave the padding to the convolution, where the engine's convolution takes any padding."""
        return inputs if self._takes_pads else super().padded(inputs)

    @property
    def _takes_pads(self) -> bool:
        return ENGINE == "jax" and self.groups == 1 and self.padding == "valid"

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Convolve; on CPUs group by group, because XLA, which Keras calls, takes up to 100 times as long."""
        if self._takes_pads:
            return padded_conv(inputs, ops.convert_to_tensor(kernel), self.strides, self.pads)
        if ENGINE == "torch" and self.kernel_size == (1, 1) and not has_accelerator():
            # With strides and few channels, PyTorch's gradient writes past its memory.
            inputs = inputs[:, :: self.strides[0], :: self.strides[1]]
            return ops.conv(inputs, kernel, data_format=self.data_format)
        depthwise = self.groups == inputs.shape[-1] == self.filters
        if self.groups == 1 or ENGINE == "torch" or (depthwise and ENGINE == "jax") or has_accelerator():
            return super().convolution_op(inputs, kernel)
        where = {"strides": self.strides, "padding": self.padding, "data_format": self.data_format}
        if depthwise and self.strides[0] == self.strides[1]:
            return ops.depthwise_conv(inputs, ops.transpose(kernel, (0, 1, 3, 2)), **where)
        pairs = zip(ops.split(inputs, self.groups, -1), ops.split(kernel, self.groups, -1), strict=True)
        return ops.concatenate([ops.conv(x, part, **where) for x, part in pairs], axis=-1)


@register
class BatchNorm(keras.layers.BatchNormalization):  # type: ignore[misc]
    """Batch normalisation of :class:`nt_core.graph.ops.BatchNorm`.

    The moving variance is updated with the unbiased variance of a batch; Keras' own layer takes the *biased*
    one.
    ``momentum`` is that of Keras: 1 − the weight of the new batch.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.normalise(inputs, self._reduction_axes, training)

    def normalise(self, inputs: Any, axes: tuple[int, ...], training: bool | None) -> Any:
        """Normalise over some axes; statistics have the shape of the other axes."""
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        mean, variance, gamma, beta = (
            ops.reshape(ops.cast(v, x.dtype), shape)
            for v in (self.moving_mean, self.moving_variance, self.gamma, self.beta)
        )
        moving, by_batch = (mean, variance), training and self.trainable
        if by_batch:
            mean = ops.mean(x, axis=axes, keepdims=True)
            # Keras' moments are E[x²] − E[x]² in PyTorch, which cancels where a mean is large.
            variance = ops.mean(ops.square(x - mean), axis=axes, keepdims=True)
            self._move(math.prod(ops.shape(x)[axis] for axis in axes), moving, (mean, variance))
        scale = ops.rsqrt(variance + self.epsilon) * gamma
        return ops.cast(x * scale + (beta - mean * scale), self.compute_dtype)

    def _move(self, count: Any, moving: tuple[Any, Any], batch: tuple[Any, Any]) -> None:
        """Update the moving statistics by a batch's; a single value has variance 0, as in Keras."""
        count = ops.cast(count, moving[0].dtype)
        unbiased = batch[1] * (count / ops.maximum(count - 1, 1))
        old, new = self.momentum, 1 - self.momentum
        for kept, before, now in zip(
            (self.moving_mean, self.moving_variance), moving, (batch[0], unbiased), strict=True
        ):
            kept.assign(ops.reshape(before * old + now * new, kept.shape))


@register
class MaxPool2D(_Padded, keras.layers.MaxPooling2D):  # type: ignore[misc]
    """``keras.layers.MaxPooling2D`` whose explicit padding counts as −∞, and whose maximum of NaN is NaN."""

    fill = -math.inf

    def call(self, inputs: Any) -> Any:
        pooled = super().call(inputs)
        if ENGINE != "tensorflow":
            return pooled
        # TensorFlow's maximum leaves NaN out.
        unknown = super().call(ops.cast(ops.isnan(inputs), inputs.dtype))
        return ops.where(unknown > 0, ops.cast(math.nan, inputs.dtype), pooled)


class _Table(keras.layers.Layer):  # type: ignore[misc]
    """Base of layers with a table of learned vectors, (rows, features)."""

    def __init__(self, rows: int, features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rows, self.features = rows, features

    def build(self, input_shape: Any) -> None:
        self.table = self.add_weight(shape=(self.rows, self.features), initializer="zeros", name="table")
        self.built = True

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rows": self.rows, "features": self.features}


@register
class ClassToken(_Table):
    """Concatenation of the table's rows and each sequence. (B, T, D) → (B, rows + T, D)."""

    def call(self, inputs: Any) -> Any:
        token = ops.broadcast_to(self.table, (ops.shape(inputs)[0], self.rows, self.features))
        return ops.concatenate([token, inputs], axis=1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        batch, length, features = input_shape
        return batch, self.rows + length, features


@register
class Positions(_Table):
    """Addition of the table to each sequence. (B, rows, D) → (B, rows, D)."""

    def call(self, inputs: Any) -> Any:
        return inputs + self.table

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@register
class LayerNorm(keras.layers.LayerNormalization):  # type: ignore[misc]
    """``keras.layers.LayerNormalization`` whose second derivative is correct in TensorFlow too.

    TensorFlow's moments treat the mean in the variance as constant, which is correct for the first derivative
    only.
    """

    def call(self, inputs: Any) -> Any:
        if ENGINE != "tensorflow":
            return super().call(inputs)
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        centred = x - ops.mean(x, axis=self.axis, keepdims=True)
        variance = ops.mean(ops.square(centred), axis=self.axis, keepdims=True)
        gamma, beta = ops.cast(self.gamma, x.dtype), ops.cast(self.beta, x.dtype)
        return ops.cast(centred * (ops.rsqrt(variance + self.epsilon) * gamma) + beta, self.compute_dtype)


@register
class TakeToken(keras.layers.Layer):  # type: ignore[misc]
    """Selection of the vector at one position. (B, T, D) → (B, D)."""

    def __init__(self, index: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.index = index

    def call(self, inputs: Any) -> Any:
        return inputs[:, self.index]

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape[0], input_shape[2]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "index": self.index}


@register
class Attention(keras.layers.Layer):  # type: ignore[misc]
    """Scaled dot-product attention of projected queries, keys and values, as the op ``Attention``."""

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        causal: bool,
        rotary_base: float | None,
        rotary_scaling: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.heads, self.kv_heads, self.causal = heads, kv_heads, causal
        self.rotary_base, self.rotary_scaling = rotary_base, rotary_scaling

    def call(self, queries: Any, keys: Any, values: Any) -> Any:
        q, k, v = (
            ops.reshape(x, (-1, x.shape[1], heads, x.shape[2] // heads))
            for x, heads in ((queries, self.heads), (keys, self.kv_heads), (values, self.kv_heads))
        )
        length, size = q.shape[1], q.shape[3]
        if self.rotary_base is not None:
            cosine, sine = _rotary(length, self._frequencies(size), q.dtype)
            q, k = _rotate(q, cosine, sine), _rotate(k, cosine, sine)
        if self.heads != self.kv_heads:
            k, v = (ops.repeat(x, self.heads // self.kv_heads, axis=2) for x in (k, v))
        # Keras' function has fused kernels; without them it is slower in JAX, and rounds float64.
        fused = ENGINE == "torch" or self.compute_dtype in ("float16", "bfloat16")
        attend = ops.dot_product_attention if fused else _attend
        mixed = attend(q, k, v, scale=1 / math.sqrt(size), is_causal=self.causal)
        return ops.reshape(mixed, (-1, length, self.heads * size))

    def _frequencies(self, size: int) -> Any:
        names = ("heads", "kv_heads", "rotary_base", "rotary_scaling")
        op = AttentionOp(**{name: getattr(self, name) for name in names})
        return op.frequencies(np.arange(0, size, 2) / size)

    def compute_output_shape(self, queries_shape: Any, keys_shape: Any, values_shape: Any) -> Any:
        return queries_shape

    def get_config(self) -> dict[str, Any]:
        names = ("heads", "kv_heads", "causal", "rotary_base", "rotary_scaling")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _attend(q: Any, k: Any, v: Any, *, scale: float, is_causal: bool) -> Any:
    """Attend in every head. (B, T, heads, d) each, and out."""
    scores = ops.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if is_causal:
        length = q.shape[1]
        seen = ops.arange(length)[:, None] >= ops.arange(length)[None, :]
        scores = ops.where(seen, scores, ops.cast(-math.inf, scores.dtype))
    return ops.einsum("bhqk,bkhd->bqhd", ops.softmax(scores, axis=-1), v)


def _rotary(length: int, frequencies: Any, dtype: str) -> tuple[Any, Any]:
    """Return cosine and sine of each position's angles, (1, T, 1, d): constants that compilers may fold."""
    angles = np.arange(length)[:, None] * frequencies
    angles = np.concatenate([angles, angles], axis=-1)[None, :, None]
    return ops.cast(np.cos(angles), dtype), ops.cast(np.sin(angles), dtype)


def _rotate(x: Any, cosine: Any, sine: Any) -> Any:
    first, second = ops.split(x, 2, axis=-1)
    return x * cosine + ops.concatenate([-second, first], axis=-1) * sine
