"""References of convolution and pooling, computed on the windows of an image."""

# ruff: noqa: ARG001  (every reference has the signature of the contract)

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from nt_core.graph.ops import AvgPool2d, Conv2d, GlobalAvgPool, MaxPool2d, Op, Padding, Pair
from nt_core.reference.contract import Applied, Array, Cotangents, Inputs, Reference, Weights
from nt_core.reference.members import with_factors
from nt_core.values import Shape

NO_PADDING: Padding = ((0, 0), (0, 0))


def unfold(x: Array, kernel: Pair, stride: Pair, padding: Padding = NO_PADDING, fill: float = 0.0) -> Array:
    """Lay the windows of images side by side. (B, C, H, W) → (B, C, H', W', kh, kw), read-only.

    Example:
        >>> unfold(np.arange(6.0).reshape(1, 1, 2, 3), (2, 2), (1, 1))[0, 0, 0].tolist()
        [[[0.0, 1.0], [3.0, 4.0]], [[1.0, 2.0], [4.0, 5.0]]]
    """
    padded = np.pad(x, ((0, 0), (0, 0), *padding), constant_values=fill)
    return sliding_window_view(padded, kernel, axis=(2, 3))[:, :, :: stride[0], :: stride[1]]


def fold(windows: Array, shape: Shape, stride: Pair, padding: Padding = NO_PADDING) -> Array:
    """Add windows up at their positions in an image of ``shape``; the transpose of :func:`unfold`.

    Example:
        >>> fold(np.ones((1, 1, 1, 2, 1, 2)), (1, 1, 1, 3), (1, 1))[0, 0].tolist()
        [[1.0, 2.0, 1.0]]
    """
    (top, bottom), (left, right) = padding
    rows, columns, *kernel = windows.shape[2:]
    height, width = shape[2:]
    padded = np.zeros((*shape[:2], height + top + bottom, width + left + right), windows.dtype)
    for i, j in np.ndindex(*kernel):
        reached = np.s_[:, :, i : i + stride[0] * rows : stride[0], j : j + stride[1] * columns : stride[1]]
        padded[reached] += windows[..., i, j]
    return padded[:, :, top : top + height, left : left + width]


def conv2d(op: Conv2d, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Correlate images with a kernel, group by group. (B, in, H, W) → (B, out, H', W').

    Example:
        >>> op = Conv2d(in_channels=1, out_channels=1, kernel=(1, 2), padding=((0, 0), (1, 0)))
        >>> kernel = {"weight": np.array([[[[10.0, 1.0]]]])}
        >>> conv2d(op, (np.array([[[[1.0, 2.0]]]]),), kernel, False).output.tolist()
        [[[[1.0, 12.0]]]]
    """
    (x,) = inputs
    weight, groups = weights["weight"], op.groups
    windows = unfold(x, op.kernel, op.stride, op.padding)
    batch, _, rows, columns = windows.shape[:4]
    inside = (groups, op.in_channels // groups, *op.kernel)
    patches = windows.reshape(batch, *inside[:2], rows, columns, *op.kernel)
    patches = patches.transpose(1, 2, 5, 6, 0, 3, 4).reshape(groups, -1, batch * rows * columns)
    matrix = weight.reshape(groups, op.out_channels // groups, -1)
    y = (matrix @ patches).reshape(op.out_channels, batch, rows, columns).swapaxes(0, 1)

    def pullback(dy: Array) -> Cotangents:
        columns_of_dy = dy.swapaxes(0, 1).reshape(groups, op.out_channels // groups, -1)
        gradients = {"weight": (columns_of_dy @ patches.swapaxes(1, 2)).reshape(weight.shape)}
        if op.bias:
            gradients["bias"] = dy.sum((0, 2, 3))
        back = (matrix.swapaxes(1, 2) @ columns_of_dy).reshape(*inside, batch, rows, columns)
        back = back.transpose(4, 0, 1, 5, 6, 2, 3).reshape(windows.shape)
        return (fold(back, x.shape, op.stride, op.padding),), gradients

    return Applied(y + weights["bias"][:, None, None] if op.bias else y, pullback)


def max_pool2d(op: MaxPool2d, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Take the largest value of each window; the first of equal values in C order gets the gradient.

    Example:
        >>> op = MaxPool2d(kernel=(1, 2), stride=(1, 2))
        >>> y, pullback, _ = max_pool2d(op, (np.ones((1, 1, 1, 4)),), {}, False)
        >>> pullback(np.ones((1, 1, 1, 2)))[0][0].tolist()
        [[[[1.0, 0.0, 1.0, 0.0]]]]
    """
    (x,) = inputs
    windows = unfold(x, op.kernel, op.stride, op.padding, -np.inf)
    flat = windows.reshape(*windows.shape[:4], -1)
    first = flat.argmax(-1)[..., None]

    def pullback(dy: Array) -> Cotangents:
        spread = np.zeros(flat.shape, dy.dtype)
        np.put_along_axis(spread, first, dy[..., None], -1)
        return (fold(spread.reshape(windows.shape), x.shape, op.stride, op.padding),), {}

    return Applied(np.take_along_axis(flat, first, -1)[..., 0], pullback)


def avg_pool2d(op: AvgPool2d, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Take the mean of each window; pixels that do not fill a window are left out."""
    (x,) = inputs
    windows = unfold(x, op.kernel, op.stride)
    share = 1 / (op.kernel[0] * op.kernel[1])

    def pullback(dy: Array) -> Cotangents:
        spread = np.broadcast_to((dy * share)[..., None, None], windows.shape)
        return (fold(spread, x.shape, op.stride),), {}

    return Applied(windows.mean((4, 5)), pullback)


def global_avg_pool(op: GlobalAvgPool, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Take the mean over all positions. (B, C, H, W) → (B, C), or (B, T, D) → (B, D)."""
    (x,) = inputs
    axes = (2, 3) if x.ndim == 4 else (1,)
    share = 1 / math.prod(x.shape[axis] for axis in axes)

    def pullback(dy: Array) -> Cotangents:
        return (np.broadcast_to(np.expand_dims(dy * share, axes), x.shape),), {}

    return Applied(x.mean(axes), pullback)


IMAGES: Mapping[type[Op], Reference] = {
    Conv2d: with_factors(conv2d, channels=1),
    MaxPool2d: max_pool2d,
    AvgPool2d: avg_pool2d,
    GlobalAvgPool: global_avg_pool,
}
