"""Computation of each op for all heads at once: a grouped convolution, a batched product, one long batch.

A value that heads share has shape (B, …); heads' own values have shape (M, B, …). Heads' images are in memory
as the channels of one image, because grouped convolutions read and write this layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from nt_core.graph import ops
from nt_torch.network.convolution import convolve

Modules: TypeAlias = Sequence[nn.Module]
Read: TypeAlias = Sequence[tuple[Tensor, bool]]
"""Inputs of an op, each with a flag: True for heads' own values, False for a shared value."""

Batched: TypeAlias = Callable[[Any, Modules, Read], Tensor]
"""(op, each head's module, inputs) → (M, B, …)."""


def _convolution(op: ops.Conv2d, modules: Modules, read: Read) -> Tensor:
    (x, own), groups = read[0], op.groups
    if own or groups > 1:
        (x,), groups = _spread(modules, read), groups * len(modules)
        x = _as_channels(x)
    bias = _joined(modules, "bias") if op.bias else None
    return _from_channels(convolve(op, x, _joined(modules, "weight"), bias, groups=groups), modules)


def _linear(op: ops.Linear, modules: Modules, read: Read) -> Tensor:
    x, own = read[0]
    if not own:
        bias = _joined(modules, "bias") if op.bias else None
        wide = functional.linear(x, _joined(modules, "weight"), bias)
        return wide.view(*x.shape[:-1], len(modules), op.out_features).movedim(-2, 0)
    rows, weight = x.flatten(1, -2), _stacked(modules, "weight").transpose(1, 2)
    if op.bias:
        found = torch.baddbmm(_stacked(modules, "bias")[:, None], rows, weight)
    else:
        found = torch.bmm(rows, weight)
    return found.view(*x.shape[:-1], op.out_features)


def _embedding(op: ops.Embedding, modules: Modules, read: Read) -> Tensor:
    (tokens,) = _spread(modules, read)
    first = torch.arange(len(modules), device=tokens.device).view(-1, *[1] * (tokens.ndim - 1))
    return functional.embedding(tokens + first * op.vocabulary, _joined(modules, "weight"))


def _class_token(_: ops.ClassToken, modules: Modules, read: Read) -> Tensor:
    (x,) = _spread(modules, read)
    return torch.cat([_stacked(modules, "weight")[:, None].expand(-1, x.shape[1], -1, -1), x], dim=2)


def _positions(_: ops.Positions, modules: Modules, read: Read) -> Tensor:
    return read[0][0] + _stacked(modules, "weight")[:, None]


def _batch_norm(op: ops.BatchNorm, modules: Modules, read: Read) -> Tensor:
    """Normalise every head's channels as those of one image, because channels are normalised separately."""
    (x,) = _spread(modules, read)
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (_joined(modules, name) for name in names)
    training = modules[0].training
    found = functional.batch_norm(
        _as_channels(x), mean, variance, weight, bias, training, op.momentum, op.eps
    )
    if training:
        with torch.no_grad():
            running = zip(modules, mean.chunk(len(modules)), variance.chunk(len(modules)), strict=True)
            for module, own_mean, own_variance in running:
                module.get_buffer("running_mean").copy_(own_mean)
                module.get_buffer("running_var").copy_(own_variance)
                module.get_buffer("num_batches_tracked").add_(1)
    return _from_channels(found, modules)


def _layer_norm(op: ops.LayerNorm, modules: Modules, read: Read) -> Tensor:
    x, own = read[0]
    normal = functional.layer_norm(x, (op.features,), eps=op.eps)
    weight, bias = (_by_feature(modules, name, x.ndim + (not own)) for name in ("weight", "bias"))
    return (normal * weight + bias).to(normal.dtype)


def _rms_norm(op: ops.RMSNorm, modules: Modules, read: Read) -> Tensor:
    x, own = read[0]
    normal = functional.rms_norm(x, (op.features,), eps=op.eps)
    return (normal * _by_feature(modules, "weight", x.ndim + (not own))).to(normal.dtype)


def _elementwise(_: ops.Op, modules: Modules, read: Read) -> Tensor:
    alone = not any(own for _, own in read)
    inputs = _spread(modules, read) if alone else [x for x, _ in read]
    found: Tensor = modules[0](*inputs)
    return found


def _by_channels(_: ops.Op, modules: Modules, read: Read) -> Tensor:
    """Compute an op with every head's images as the channels of one image."""
    return _from_channels(modules[0](_as_channels(*_spread(modules, read))), modules)


def _by_rows(_: ops.Op, modules: Modules, read: Read) -> Tensor:
    """Compute an op with every head's examples as one long batch."""
    inputs = _spread(modules, read)
    found: Tensor = modules[0](*[x.flatten(0, 1) for x in inputs])
    return found.view(len(modules), inputs[0].shape[1], *found.shape[1:])


def _global_avg_pool(op: ops.GlobalAvgPool, modules: Modules, read: Read) -> Tensor:
    x, own = read[0]
    return (_by_channels if x.ndim + (not own) == 5 else _by_rows)(op, modules, read)


def _spread(modules: Modules, read: Read) -> list[Tensor]:
    """Return inputs as heads' own values; shared values are expanded."""
    return [x if own else x.expand(len(modules), *x.shape) for x, own in read]


def _as_channels(x: Tensor) -> Tensor:
    """(M, B, C, …) → (B, M·C, …)."""
    return x.transpose(0, 1).flatten(1, 2)


def _from_channels(x: Tensor, modules: Modules) -> Tensor:
    """(B, M·C, …) → (M, B, C, …)."""
    return x.view(len(x), len(modules), x.shape[1] // len(modules), *x.shape[2:]).transpose(0, 1)


def _stacked(modules: Modules, name: str) -> Tensor:
    return torch.stack([getattr(module, name) for module in modules])


def _joined(modules: Modules, name: str) -> Tensor:
    """Join heads' vectors or kernels along their first axis; kernels keep their memory format."""
    return torch.cat([getattr(module, name) for module in modules])


def _by_feature(modules: Modules, name: str, ndim: int) -> Tensor:
    """Return heads' vectors, reshaped for a product with values of ``ndim`` axes: (M, 1, …, features)."""
    vectors = _stacked(modules, name)
    return vectors.view(len(modules), *[1] * (ndim - 2), vectors.shape[1])


BATCHED: Final[Mapping[type[ops.Op], Batched]] = MappingProxyType(
    {
        ops.Conv2d: _convolution,
        ops.Linear: _linear,
        ops.Embedding: _embedding,
        ops.ClassToken: _class_token,
        ops.Positions: _positions,
        ops.BatchNorm: _batch_norm,
        ops.LayerNorm: _layer_norm,
        ops.RMSNorm: _rms_norm,
        ops.Activation: _elementwise,
        ops.MaxPool2d: _by_channels,
        ops.AvgPool2d: _by_channels,
        ops.GlobalAvgPool: _global_avg_pool,
        ops.Flatten: _by_rows,
        ops.ToSequence: _by_rows,
        ops.Transpose: _by_rows,
        ops.TakeToken: _by_rows,
        ops.Dropout: _elementwise,
        ops.Add: _elementwise,
        ops.Multiply: _elementwise,
        ops.Concat: _by_rows,
        ops.Attention: _by_rows,
    }
)
"""Op → its function for all heads at once; the keys are exactly :data:`nt_core.graph.ops.OPS`."""
