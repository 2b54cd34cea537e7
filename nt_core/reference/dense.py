"""References of linear maps and embeddings."""

# ruff: noqa: ARG001  (every reference has the signature of the contract)

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nt_core.graph.ops import Embedding, Linear, Op
from nt_core.reference.contract import Applied, Array, Cotangents, Inputs, Reference, Weights
from nt_core.reference.members import with_factors


def linear(op: Linear, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Map the last axis: y = x·Wᵀ + b. (B, …, in) → (B, …, out).

    Example:
        >>> values = {"weight": np.array([[1.0, 2.0]]), "bias": np.array([0.5])}
        >>> op = Linear(in_features=2, out_features=1)
        >>> y, pullback, _ = linear(op, (np.array([[3.0, 4.0]]),), values, False)
        >>> y.tolist(), pullback(np.array([[1.0]]))[1]["weight"].tolist()
        ([[11.5]], [[3.0, 4.0]])
    """
    (x,) = inputs
    weight = weights["weight"]
    y = x @ weight.T
    outer = tuple(range(x.ndim - 1))

    def pullback(dy: Array) -> Cotangents:
        gradients = {"weight": np.tensordot(dy, x, (outer, outer))}
        if op.bias:
            gradients["bias"] = dy.sum(outer)
        return (dy @ weight,), gradients

    return Applied(y + weights["bias"] if op.bias else y, pullback)


def embedding(op: Embedding, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Look rows up; a token that occurs n times gets the sum of n gradients. (B, T) → (B, T, features)."""
    (tokens,) = inputs
    table = weights["weight"]

    def pullback(dy: Array) -> Cotangents:
        gradient = np.zeros(table.shape, dy.dtype)
        np.add.at(gradient, tokens, dy)
        return (None,), {"weight": gradient}

    return Applied(table[tokens], pullback)


DENSE: Mapping[type[Op], Reference] = {
    Linear: with_factors(linear, channels=-1),
    Embedding: embedding,
}
