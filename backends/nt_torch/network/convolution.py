"""Convolution of :class:`nt_core.graph.ops.Conv2d`: any padding, on every device."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import conv2d, pad

from nt_core.graph.ops import Conv2d


def convolve(
    op: Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, *, groups: int | None = None
) -> Tensor:
    """Convolve images. (B, in, H, W) → (B, out, H', W').

    Args:
        op: kernel size, strides, padding and groups.
        x: images.
        weight: (out, in / groups, *kernel).
        bias: (out,).
        groups: number of groups of channels; None: that of the op.
    """
    groups = op.groups if groups is None else groups
    (top, bottom), (left, right) = op.padding
    if is_strided_pointwise(op):
        # On CPUs PyTorch's own gradient writes past its memory where images are channels last and channels
        # few; a convolution of the subsampled image does not.
        return conv2d(x[:, :, :: op.stride[0], :: op.stride[1]], weight, bias, groups=groups)
    if top != bottom or left != right:
        return conv2d(pad(x, (left, right, top, bottom)), weight, bias, op.stride, groups=groups)
    return conv2d(x, weight, bias, op.stride, (top, left), groups=groups)


def is_strided_pointwise(op: Conv2d) -> bool:
    """Return whether a convolution only selects pixels and mixes their channels."""
    return op.kernel == (1, 1) and op.stride != (1, 1) and not any(map(any, op.padding))
