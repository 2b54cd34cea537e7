"""Members that share every block: conversion of examples to rows and back, and modules with own weights.

The rows of a batch are member-major: the first 1/M of the rows belongs to member 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, linear

from nt_core.graph import ops
from nt_core.structure import Layout
from nt_core.structure.base import divisible
from nt_torch.network.convolution import convolve


def from_examples(layout: Layout, x: Tensor, *, training: bool) -> Tensor:
    """Return the network's input. (B, *input shape) → (rows, *input shape of the graph).

    Raises:
        DataError: in training, rows cannot be divided among members.
    """
    if layout.along == "heads":
        return x
    if training and layout.own_rows:
        divisible(len(x), layout.members)
    else:
        x = x.expand(layout.members, *x.shape).flatten(0, 1)
    if layout.along == "rows":
        return x
    return _own(x, layout.members).transpose(0, 1).flatten(1, 2)


def from_rows(layout: Layout, output: Tensor) -> Tensor:
    """Return the logits in the network's output: (M, B, *output shape)."""
    if layout.along == "rows":
        return _own(output, layout.members)
    return output.reshape(len(output), layout.members, -1).transpose(0, 1)


class _Shared(nn.Module):
    """Base of modules with a kernel that members share, and each member's factors."""

    def __init__(self, op: ops.Conv2d | ops.Linear, factors: ops.Factors) -> None:
        super().__init__()
        self.members = factors.members
        shapes = {weight.name: weight.shape for weight in op.weights()}
        self.weight = nn.Parameter(torch.empty(shapes["weight"]))
        self.input_factor = nn.Parameter(torch.empty(shapes["input_factor"]))
        self.output_factor = nn.Parameter(torch.empty(shapes["output_factor"]))
        self.bias = nn.Parameter(torch.empty(shapes["bias"])) if op.bias else None


class MemberLinear(_Shared):
    """Linear map y_m = ((x_m ∘ r_m)·Wᵀ) ∘ s_m + b_m, with one product for all members."""

    def forward(self, x: Tensor) -> Tensor:
        own = _own(x, self.members)
        y = linear(own * _wide(self.input_factor, own), self.weight)
        y = y * _wide(self.output_factor, y)
        return (y if self.bias is None else y + _wide(self.bias, y)).flatten(0, 1)


class MemberConv2d(_Shared):
    """Convolution with each member's scaled kernel W ∘ s_m·r_mᵀ, because kernels are smaller than images."""

    def __init__(self, op: ops.Conv2d, factors: ops.Factors) -> None:
        super().__init__(op, factors)
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        biases = [None] * self.members if self.bias is None else self.bias
        columns = zip(x.chunk(self.members), self.input_factor, self.output_factor, biases, strict=True)
        return torch.cat([convolve(self.op, own, self._kernel(r, s), bias) for own, r, s, bias in columns])

    def _kernel(self, r: Tensor, s: Tensor) -> Tensor:
        outputs, inputs = self.weight.shape[:2]
        by_group = r.view(self.op.groups, 1, inputs).expand(-1, outputs // self.op.groups, -1)
        return self.weight * (by_group.reshape(outputs, inputs) * s[:, None])[:, :, None, None]


class MemberBatchNorm(nn.Module):
    """Batch normalisation of each member's rows separately."""

    def __init__(self, op: ops.BatchNorm, members: int) -> None:
        super().__init__()
        self.op = op
        shape = (members, op.channels)
        self.weight, self.bias = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.empty(shape))
        self.register_buffer("running_var", torch.empty(shape))

    def forward(self, x: Tensor) -> Tensor:
        columns = zip(self.running_mean, self.running_var, self.weight, self.bias, strict=True)
        own = zip(x.chunk(len(self.weight)), columns, strict=True)
        return torch.cat(
            [
                batch_norm(rows, *vectors, self.training, self.op.momentum, self.op.eps)
                for rows, vectors in own
            ]
        )


class MemberNorm(nn.Module):
    """Normalisation of the last axis with own scales and shifts for each member."""

    def __init__(self, norm: nn.Module, op: ops.LayerNorm | ops.RMSNorm, members: int) -> None:
        super().__init__()
        self.norm, self.members = norm, members
        shape = (members, op.features)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape)) if isinstance(op, ops.LayerNorm) else None

    def forward(self, x: Tensor) -> Tensor:
        own = _own(self.norm(x), self.members)
        scaled = own * _wide(self.weight, own)
        return (scaled if self.bias is None else scaled + _wide(self.bias, own)).flatten(0, 1)


def _own(x: Tensor, members: int) -> Tensor:
    """Return each member's rows: (M·B, …) → (M, B, …)."""
    return x.reshape(members, -1, *x.shape[1:])


def _wide(vectors: Tensor, own: Tensor) -> Tensor:
    """Spread members' vectors, (M, D), over their rows, (M, B, …, D)."""
    return vectors.view(len(vectors), *[1] * (own.ndim - 2), -1)
