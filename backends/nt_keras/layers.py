"""The Keras layers that ops need: Keras' own where they compute the same, with the differences stated."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

MASK = "weight_mask"
"""The variable beside a masked kernel: bool, True where a connection is active."""

register = keras.saving.register_keras_serializable(package="neurotrails")


class _Masked(keras.layers.Layer):  # type: ignore[misc]
    """Adds a mask beside the kernel of a layer of Keras.

    The mask takes no part in the computation, for the kernel has exact zeros; the optimiser finds it as
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
            self.kernel.mask = self.mask

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "masked": self.masked}


@register
class Dense(_Masked, keras.layers.Dense):  # type: ignore[misc]
    """``keras.layers.Dense`` with a mask beside its kernel."""


@register
class Conv2D(_Masked, keras.layers.Conv2D):  # type: ignore[misc]
    """``keras.layers.Conv2D`` with explicit paddings and a mask beside its kernel.

    Args:
        pads: ((top, bottom), (left, right)), in pixels.
    """

    def __init__(self, *args: Any, pads: Any = ((0, 0), (0, 0)), **kwargs: Any) -> None:
        super().__init__(*args, padding="valid", data_format="channels_last", **kwargs)
        self.pads = tuple(tuple(side) for side in pads)
        if self.strides == (1, 1) and self.pads == tuple(((k - 1) // 2, k // 2) for k in self.kernel_size):
            self.padding = "same"  # the same numbers without a padded copy

    def call(self, inputs: Any) -> Any:
        if self.padding == "valid" and any(map(any, self.pads)):
            inputs = ops.pad(inputs, ((0, 0), *self.pads, (0, 0)))
        return super().call(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        if self.padding == "same":
            return super().compute_output_shape(input_shape)
        batch, height, width, channels = input_shape
        (top, bottom), (left, right) = self.pads
        return super().compute_output_shape((batch, height + top + bottom, width + left + right, channels))

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "pads": self.pads}
        del config["padding"], config["data_format"]
        return config


@register
class BatchNorm(keras.layers.BatchNormalization):  # type: ignore[misc]
    """Batch normalisation as :class:`nt_core.ops.BatchNorm` has it.

    Keras' own puts the *biased* variance of a batch into the moving one; here it is the unbiased one.
    ``momentum`` is Keras': 1 − the weight of the new batch.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        if training:
            mean, variance = ops.moments(x, axes=self._reduction_axes)
            count = ops.cast(ops.size(x), x.dtype) / x.shape[self.axis]
            new = 1.0 - self.momentum
            unbiased = variance * (count / (count - 1))
            self.moving_mean.assign(self.moving_mean * self.momentum + mean * new)
            self.moving_variance.assign(self.moving_variance * self.momentum + unbiased * new)
        else:
            mean, variance = (ops.cast(v, x.dtype) for v in (self.moving_mean, self.moving_variance))
        y = ops.batch_normalization(
            x=x,
            mean=mean,
            variance=variance,
            axis=self.axis,
            offset=ops.cast(self.beta, x.dtype),
            scale=ops.cast(self.gamma, x.dtype),
            epsilon=self.epsilon,
        )
        return ops.cast(y, self.compute_dtype)


@register
class MaxPool2D(keras.layers.MaxPooling2D):  # type: ignore[misc]
    """``keras.layers.MaxPooling2D`` whose explicit padding counts as −∞.

    Args:
        pads: ((top, bottom), (left, right)), in pixels.
    """

    def __init__(self, *args: Any, pads: Any = ((0, 0), (0, 0)), **kwargs: Any) -> None:
        super().__init__(*args, data_format="channels_last", **kwargs)
        self.pads = tuple(tuple(side) for side in pads)

    def call(self, inputs: Any) -> Any:
        if any(map(any, self.pads)):
            inputs = ops.pad(inputs, ((0, 0), *self.pads, (0, 0)), constant_values=-math.inf)
        return super().call(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        batch, height, width, channels = input_shape
        (top, bottom), (left, right) = self.pads
        return super().compute_output_shape((batch, height + top + bottom, width + left + right, channels))

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "pads": self.pads}
        del config["data_format"]
        return config


@register
class Attention(keras.layers.Layer):  # type: ignore[misc]
    """Scaled dot-product attention of projected queries, keys and values, as :class:`nt_core.ops.Attention`.

    ``keras.ops.dot_product_attention`` rounds its softmax to float32 and takes no rotary positions.
    """

    def __init__(
        self, heads: int, kv_heads: int, causal: bool, rotary_base: float | None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.heads, self.kv_heads, self.causal, self.rotary_base = heads, kv_heads, causal, rotary_base

    def call(self, queries: Any, keys: Any, values: Any) -> Any:
        q, k, v = (
            ops.reshape(x, (-1, x.shape[1], heads, x.shape[2] // heads))
            for x, heads in ((queries, self.heads), (keys, self.kv_heads), (values, self.kv_heads))
        )
        length, size = q.shape[1], q.shape[3]
        if self.rotary_base is not None:
            cosine, sine = _rotary(length, size, self.rotary_base, q.dtype)
            q, k = _rotate(q, cosine, sine), _rotate(k, cosine, sine)
        if self.heads != self.kv_heads:
            k, v = (ops.repeat(x, self.heads // self.kv_heads, axis=2) for x in (k, v))
        scores = ops.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(size)
        if self.causal:
            seen = ops.arange(length)[:, None] >= ops.arange(length)[None, :]
            scores = ops.where(seen, scores, ops.cast(-math.inf, scores.dtype))
        mixed = ops.einsum("bhqk,bkhd->bqhd", ops.softmax(scores, axis=-1), v)
        return ops.reshape(mixed, (-1, length, self.heads * size))

    def compute_output_shape(self, queries_shape: Any, keys_shape: Any, values_shape: Any) -> Any:
        return queries_shape

    def get_config(self) -> dict[str, Any]:
        names = ("heads", "kv_heads", "causal", "rotary_base")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _rotary(length: int, size: int, base: float, dtype: str) -> tuple[Any, Any]:
    """Return cosine and sine of each position's angles, (1, T, 1, d): data that compilers may fold."""
    import numpy as np

    angles = np.arange(length)[:, None] / base ** (np.arange(0, size, 2) / size)
    angles = np.concatenate([angles, angles], axis=-1)[None, :, None]
    return ops.cast(np.cos(angles), dtype), ops.cast(np.sin(angles), dtype)


def _rotate(x: Any, cosine: Any, sine: Any) -> Any:
    first, second = ops.split(x, 2, axis=-1)
    return x * cosine + ops.concatenate([-second, first], axis=-1) * sine
