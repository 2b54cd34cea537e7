"""Members that share every block: conversion of examples to network inputs, and of network outputs to logits.

The rows of a batch are member-major: the first 1/M of the rows belongs to member 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nt_core.graph.ops import Conv2d, Factors, Linear
from nt_core.reference.contract import Applied, Array, Cotangents, Inputs, Reference, Weights
from nt_core.structure import Layout
from nt_core.structure.base import divisible


def from_examples(layout: Layout, x: Array, *, training: bool) -> Array:
    """Return the network's input. (B, *input shape) → (rows, *input shape of the graph).

    Raises:
        DataError: in training, rows cannot be divided among members.
    """
    if layout.along == "heads":
        return x
    if not (training and layout.own_rows):
        x = np.tile(x, (layout.members, *[1] * (x.ndim - 1)))
    divisible(len(x), layout.members)
    if layout.along == "rows":
        return x
    own = x.reshape(layout.members, -1, *x.shape[1:])
    return np.moveaxis(own, 0, 1).reshape(own.shape[1], *layout.graph.input.shape)


def from_rows(layout: Layout, output: Array) -> Array:
    """Return the logits in the network's output: (M, B, *output shape)."""
    if layout.along == "rows":
        return output.reshape(layout.members, -1, *output.shape[1:])
    return np.moveaxis(output.reshape(len(output), layout.members, -1), 1, 0)


def to_rows(layout: Layout, logits: Array) -> Array:
    """Lay logits (or their gradients) out as the network's output; the inverse of :func:`from_rows`."""
    if layout.along == "rows":
        return logits.reshape(-1, *logits.shape[2:])
    return np.moveaxis(logits, 0, 1).reshape(logits.shape[1], -1)


def with_factors(reference: Reference, channels: int) -> Reference:
    """Extend a kernel's reference by the members' factors on inputs and outputs, if its op has factors.

    Args:
        reference: of a convolution or a linear map.
        channels: the axis of the kernel's inputs and outputs in a batch.
    """

    def scaled(op: Conv2d | Linear, inputs: Inputs, weights: Weights, training: bool) -> Applied:
        if (factors := op.factors) is None:
            return reference(op, inputs, weights, training)
        (x,) = inputs
        r, s = (_by_row(weights[f"{side}_factor"], x, factors, channels) for side in ("input", "output"))
        shared = reference(op.replace(factors=None, bias=False), (x * r,), weights, training)
        y = shared.output * s
        if op.bias:
            y = y + _by_row(weights["bias"], x, factors, channels)

        def pullback(dy: Array) -> Cotangents:
            (dx,), gradients = shared.pullback(dy * s)
            assert dx is not None
            gradients["input_factor"] = _sum_rows(dx * x, factors, channels)
            gradients["output_factor"] = _sum_rows(dy * shared.output, factors, channels)
            if op.bias:
                gradients["bias"] = _sum_rows(dy, factors, channels)
            return (dx * r,), gradients

        return Applied(y, pullback)

    return scaled


def each_member(reference: Reference) -> Reference:
    """Extend a normalisation's reference by own weights for each member's rows, if its op has members."""

    def member_by_member(op: Any, inputs: Inputs, weights: Weights, training: bool) -> Applied:
        if op.members is None:
            return reference(op, inputs, weights, training)
        divisible(len(inputs[0]), op.members)
        one = op.replace(members=None)
        applied = [
            reference(one, (x,), {name: value[m] for name, value in weights.items()}, training)
            for m, x in enumerate(np.split(inputs[0], op.members))
        ]

        def pullback(dy: Array) -> Cotangents:
            pulled = [each.pullback(d) for each, d in zip(applied, np.split(dy, op.members), strict=True)]
            names = pulled[0][1]
            gradients = {name: np.stack([weights[name] for _, weights in pulled]) for name in names}
            return (np.concatenate([inputs[0] for inputs, _ in pulled]),), gradients

        running = {name: np.stack([each.running[name] for each in applied]) for name in applied[0].running}
        return Applied(np.concatenate([each.output for each in applied]), pullback, running)

    return member_by_member


def _by_row(vectors: Array, x: Array, factors: Factors, channels: int) -> Array:
    """Spread members' vectors, (M, channels), over the rows of a batch."""
    divisible(len(x), factors.members)
    rows = np.repeat(vectors, len(x) // factors.members, axis=0)
    shape = [1] * x.ndim
    shape[0], shape[channels] = rows.shape
    return rows.reshape(shape)


def _sum_rows(gradient: Array, factors: Factors, channels: int) -> Array:
    """Sum a gradient over each member's rows, and over all axes but that of the channels."""
    own = np.moveaxis(gradient, channels, 1)
    own = own.reshape(factors.members, -1, *own.shape[1:])
    return np.asarray(own.sum(axis=(1, *range(3, own.ndim))))
