"""Conversion between canonical layouts of :mod:`nt_core` and Keras' (channels last, kernels (…, in, out))."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nt_core.graph.ops import Conv2d, Linear, Op
from nt_core.values import Shape

IMAGE = 3
"""The rank of one example's image; all other ranks have the same layout in both."""

LINES = 16
"""Lines transposed at a time; 8 to 32 took the same time, all at once up to four times as long."""


def kernel_axes(op: Op, weight: str) -> tuple[int, ...] | None:
    """Return the canonical axes in Keras' order; None: the same order.

    Example:
        >>> kernel_axes(Conv2d(in_channels=3, out_channels=8, kernel=(5, 5)), "weight")
        (2, 3, 1, 0)
    """
    if weight != "weight":
        return None
    return {Conv2d: (2, 3, 1, 0), Linear: (1, 0)}.get(type(op))


def to_keras(array: NDArray[Any], axes: tuple[int, ...] | None) -> NDArray[Any]:
    """Convert an array from the canonical layout to Keras' layout.

    Example:
        >>> to_keras(np.zeros((8, 3, 5, 5)), (2, 3, 1, 0)).shape
        (5, 5, 3, 8)
    """
    return array if axes is None else _lay_out(array.transpose(axes), axis=-1)


def to_canonical(array: NDArray[Any], axes: tuple[int, ...] | None) -> NDArray[Any]:
    """Convert an array from Keras' layout to the canonical layout; the inverse of :func:`to_keras`."""
    return array if axes is None else _lay_out(array.transpose(np.argsort(axes)), axis=1)


def _lay_out(view: NDArray[Any], axis: int) -> NDArray[Any]:
    """Copy a transposed view, a few lines of an axis at a time, because wide views do not fit the cache."""
    copy = np.empty(view.shape, view.dtype)
    source, target = np.moveaxis(view, axis, 0), np.moveaxis(copy, axis, 0)
    for start in range(0, len(source), LINES):
        target[start : start + LINES] = source[start : start + LINES]
    return copy


def example_shape(shape: Shape) -> Shape:
    """Return the shape of one example in Keras: (C, H, W) → (H, W, C).

    Example:
        >>> example_shape((3, 32, 48)), example_shape((128, 768))
        ((32, 48, 3), (128, 768))
    """
    return (*shape[1:], shape[0]) if len(shape) == IMAGE else shape


def batch_to_keras(batch: NDArray[Any]) -> NDArray[Any]:
    """Convert a batch from the canonical layout to Keras' layout: (B, C, H, W) → (B, H, W, C)."""
    return np.moveaxis(batch, 1, -1) if batch.ndim == IMAGE + 1 else batch


def axis_in_keras(axis: int, shape: Shape) -> int:
    """Return the number in Keras of an example's axis, counted with the batch axis.

    Example:
        >>> [axis_in_keras(axis, (3, 32, 48)) for axis in range(3)], axis_in_keras(1, (128, 768))
        ([3, 1, 2], 2)
    """
    return (axis or IMAGE) if len(shape) == IMAGE else axis + 1
