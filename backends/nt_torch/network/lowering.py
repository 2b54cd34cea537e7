"""One lowering for each op: the PyTorch module that computes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, scaled_dot_product_attention

from nt_core.graph import ops
from nt_core.values import Shape
from nt_torch.network.convolution import convolve, is_strided_pointwise
from nt_torch.network.members import MemberBatchNorm, MemberConv2d, MemberLinear, MemberNorm

Lowering = Callable[[Any, Sequence[Shape]], nn.Module]
"""(op, its inputs' shapes for one example) → module whose parameters have the names of the op's weights."""


class _Conv2d(nn.Conv2d):
    """A convolution that PyTorch's own module does not support, or computes more slowly."""

    def __init__(self, op: ops.Conv2d) -> None:
        super().__init__(
            op.in_channels, op.out_channels, op.kernel, op.stride, groups=op.groups, bias=op.bias
        )
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self.op, x, self.weight, self.bias)


class _MaxPool2d(nn.Module):
    def __init__(self, op: ops.MaxPool2d) -> None:
        super().__init__()
        (top, bottom), (left, right) = op.padding
        self.pads = (left, right, top, bottom)
        self.kernel, self.stride = op.kernel, op.stride

    def forward(self, x: Tensor) -> Tensor:
        if any(self.pads):
            x = pad(x, self.pads, value=-math.inf)
        return max_pool2d(x, self.kernel, self.stride)


class _GlobalAvgPool(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.axes = (2, 3) if len(shape) == 3 else (1,)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.axes)


class _ToSequence(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class _Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class _ClassToken(nn.Module):
    def __init__(self, op: ops.ClassToken) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, op.features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.weight.expand(x.shape[0], -1, -1), x], dim=1)


class _Positions(nn.Module):
    def __init__(self, op: ops.Positions) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(op.length, op.features))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class _TakeToken(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.index]


class _Add(nn.Module):
    def forward(self, *xs: Tensor) -> Tensor:
        total = xs[0] + xs[1]
        for x in xs[2:]:
            total = total + x
        return total


class _Multiply(nn.Module):
    def forward(self, *xs: Tensor) -> Tensor:
        return math.prod(xs[1:], start=xs[0])


class _Concat(nn.Module):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.cat(xs, dim=self.axis + 1)


class _Attention(nn.Module):
    def __init__(self, op: ops.Attention) -> None:
        super().__init__()
        self.op = op

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        op = self.op
        q, k, v = _split(queries, op.heads), _split(keys, op.kv_heads), _split(values, op.kv_heads)
        if op.rotary_base is not None:
            cosine, sine = _rotary(q, op)
            q, k = _rotate(q, cosine, sine), _rotate(k, cosine, sine)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=op.causal, enable_gqa=op.heads != op.kv_heads)
        return mixed.transpose(1, 2).flatten(2)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _rotary(q: Tensor, op: ops.Attention) -> tuple[Tensor, Tensor]:
    length, size = q.shape[-2:]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    exponents = torch.arange(0, size, 2, device=q.device, dtype=wide) / size
    angles = torch.arange(length, device=q.device, dtype=wide)[:, None] * op.frequencies(exponents)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(q.dtype), angles.sin().to(q.dtype)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


def _conv2d(op: ops.Conv2d, _: Sequence[Shape]) -> nn.Module:
    if op.factors is not None:
        return MemberConv2d(op, op.factors)
    (top, bottom), (left, right) = op.padding
    if top != bottom or left != right or is_strided_pointwise(op):
        return _Conv2d(op)
    return nn.Conv2d(
        op.in_channels,
        op.out_channels,
        op.kernel,
        op.stride,
        padding=(top, left),
        groups=op.groups,
        bias=op.bias,
    )


def _linear(op: ops.Linear, _: Sequence[Shape]) -> nn.Module:
    if op.factors is not None:
        return MemberLinear(op, op.factors)
    return nn.Linear(op.in_features, op.out_features, bias=op.bias)


def _batch_norm(op: ops.BatchNorm, shapes: Sequence[Shape]) -> nn.Module:
    if op.members is not None:
        return MemberBatchNorm(op, op.members)
    kind = nn.BatchNorm1d if len(shapes[0]) == 1 else nn.BatchNorm2d
    return kind(op.channels, eps=op.eps, momentum=op.momentum)


def _layer_norm(op: ops.LayerNorm, _: Sequence[Shape]) -> nn.Module:
    if op.members is not None:
        return MemberNorm(nn.LayerNorm(op.features, eps=op.eps, elementwise_affine=False), op, op.members)
    return nn.LayerNorm(op.features, eps=op.eps)


def _rms_norm(op: ops.RMSNorm, _: Sequence[Shape]) -> nn.Module:
    if op.members is not None:
        return MemberNorm(nn.RMSNorm(op.features, eps=op.eps, elementwise_affine=False), op, op.members)
    return nn.RMSNorm(op.features, eps=op.eps)


ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
)

LOWERINGS: Mapping[type[ops.Op], Lowering] = MappingProxyType(
    {
        ops.Conv2d: _conv2d,
        ops.Linear: _linear,
        ops.Embedding: lambda op, _: nn.Embedding(op.vocabulary, op.features),
        ops.ClassToken: lambda op, _: _ClassToken(op),
        ops.Positions: lambda op, _: _Positions(op),
        ops.BatchNorm: _batch_norm,
        ops.LayerNorm: _layer_norm,
        ops.RMSNorm: _rms_norm,
        ops.Activation: lambda op, _: ACTIVATIONS[op.function](),
        ops.MaxPool2d: lambda op, _: _MaxPool2d(op),
        ops.AvgPool2d: lambda op, _: nn.AvgPool2d(op.kernel, op.stride),
        ops.GlobalAvgPool: lambda _, shapes: _GlobalAvgPool(shapes[0]),
        ops.Flatten: lambda *_: nn.Flatten(),
        ops.ToSequence: lambda *_: _ToSequence(),
        ops.Transpose: lambda *_: _Transpose(),
        ops.TakeToken: lambda op, _: _TakeToken(op.index),
        ops.Dropout: lambda op, _: nn.Dropout(op.rate),
        ops.Add: lambda *_: _Add(),
        ops.Multiply: lambda *_: _Multiply(),
        ops.Concat: lambda op, _: _Concat(op.axis),
        ops.Attention: lambda op, _: _Attention(op),
    }
)
"""Op → lowering; the keys are exactly :data:`nt_core.graph.ops.OPS`."""
