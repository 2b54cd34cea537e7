"""References of the ops on sequences: conversion of images, positions, class tokens."""

# ruff: noqa: ARG001  (every reference has the signature of the contract)

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nt_core.graph.ops import ClassToken, Op, Positions, TakeToken, ToSequence, Transpose
from nt_core.reference.contract import Applied, Array, Cotangents, Inputs, Reference, Weights


def to_sequence(op: ToSequence, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Read the pixels of images row by row. (B, C, H, W) → (B, H·W, C).

    Example:
        >>> image = np.array([[[[1, 2], [3, 4]], [[10, 20], [30, 40]]]])
        >>> to_sequence(ToSequence(), (image,), {}, False).output.tolist()
        [[[1, 10], [2, 20], [3, 30], [4, 40]]]
    """
    (x,) = inputs
    batch, channels, height, width = x.shape

    def pullback(dy: Array) -> Cotangents:
        return (dy.swapaxes(1, 2).reshape(x.shape),), {}

    return Applied(x.reshape(batch, channels, height * width).swapaxes(1, 2), pullback)


def transpose(op: Transpose, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Swap length and features. (B, T, D) → (B, D, T)."""
    return Applied(inputs[0].swapaxes(1, 2), lambda dy: ((dy.swapaxes(1, 2),), {}))


def class_token(op: ClassToken, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Put the same learned vector before every sequence. (B, T, D) → (B, T + 1, D).

    Example:
        >>> x, token = np.array([[[1.0], [2.0]], [[3.0], [4.0]]]), {"weight": np.array([[7.0]])}
        >>> y, pullback, _ = class_token(ClassToken(features=1), (x,), token, False)
        >>> y[..., 0].tolist(), pullback(y)[1]["weight"].tolist()
        ([[7.0, 1.0, 2.0], [7.0, 3.0, 4.0]], [[14.0]])
    """
    (x,) = inputs
    token = np.broadcast_to(weights["weight"], (len(x), 1, op.features))

    def pullback(dy: Array) -> Cotangents:
        return (dy[:, 1:],), {"weight": dy[:, :1].sum(0)}

    return Applied(np.concatenate([token, x], 1), pullback)


def positions(op: Positions, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Add the same table to every sequence. (B, T, D) → (B, T, D)."""
    return Applied(inputs[0] + weights["weight"], lambda dy: ((dy,), {"weight": dy.sum(0)}))


def take_token(op: TakeToken, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Take the vector at one position. (B, T, D) → (B, D)."""
    (x,) = inputs

    def pullback(dy: Array) -> Cotangents:
        spread = np.zeros(x.shape, dy.dtype)
        spread[:, op.index] = dy
        return (spread,), {}

    return Applied(x[:, op.index], pullback)


SEQUENCES: Mapping[type[Op], Reference] = {
    ClassToken: class_token,
    Positions: positions,
    ToSequence: to_sequence,
    Transpose: transpose,
    TakeToken: take_token,
}
