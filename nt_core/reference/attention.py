"""Reference of attention: grouped key/value heads, a causal mask, rotary positions."""

# ruff: noqa: ARG001  (every reference has the signature of the contract)

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from nt_core.graph.ops import Attention, Op
from nt_core.reference.contract import Applied, Array, Cotangents, Inputs, Reference, Weights


def attention(op: Attention, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Attend: softmax(Q·Kᵀ/√d)·V in each head; Vaswani et al. 2017, §3.2. (B, T, heads·d) out.

    Query head h reads key/value head ⌊h / (heads / kv_heads)⌋ (Ainslie et al. 2023).

    Example:
        >>> x = np.array([[[1.0], [1.0]]])
        >>> op = Attention(heads=1, kv_heads=1, causal=True)
        >>> attention(op, (x, x, np.array([[[2.0], [4.0]]])), {}, False).output.tolist()
        [[[2.0], [3.0]]]
    """
    queries, keys, values = inputs
    q, k, v = split_heads(queries, op.heads), split_heads(keys, op.kv_heads), split_heads(values, op.kv_heads)
    length, size = q.shape[2:]
    shared = op.heads // op.kv_heads
    if op.rotary_base is not None:
        angles = op.frequencies(np.arange(0, size, 2) / size) * np.arange(length)[:, None]
        q, k = rotate(q, angles), rotate(k, angles)
    k, v = np.repeat(k, shared, 1), np.repeat(v, shared, 1)
    scale = 1 / math.sqrt(size)
    scores = q @ k.swapaxes(2, 3) * scale
    if op.causal:
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    share = np.exp(scores - scores.max(-1, keepdims=True))
    share = share / share.sum(-1, keepdims=True)

    def pullback(dy: Array) -> Cotangents:
        d_out = split_heads(dy, op.heads)
        d_share = d_out @ v.swapaxes(2, 3)
        d_scores = share * (d_share - (d_share * share).sum(-1, keepdims=True)) * scale
        d_q, d_k = d_scores @ k, _sum_shared(d_scores.swapaxes(2, 3) @ q, shared)
        if op.rotary_base is not None:
            d_q, d_k = rotate(d_q, -angles), rotate(d_k, -angles)
        d_v = _sum_shared(share.swapaxes(2, 3) @ d_out, shared)
        return (join_heads(d_q), join_heads(d_k), join_heads(d_v)), {}

    return Applied(join_heads(share @ v), pullback)


def rotate(x: Array, angles: Array) -> Array:
    """Turn component i with i + d/2 by an angle; Su et al. 2021, §3.2.2. (B, heads, T, d).

    Args:
        x: queries or keys of each head.
        angles: (T, d/2), in radians; the negative ones give the inverse and the transpose.

    Example:
        >>> x = np.ones((1, 1, 2, 2))
        >>> rotate(x, np.array([[0.0], [1.0]]))[0, 0].round(4).tolist()
        [[1.0, 1.0], [-0.3012, 1.3818]]
    """
    half = x.shape[3] // 2
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    low, high = x[..., :half], x[..., half:]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)


def split_heads(x: Array, heads: int) -> Array:
    """Divide features among heads. (B, T, heads·d) → (B, heads, T, d)."""
    batch, length, features = x.shape
    return x.reshape(batch, length, heads, features // heads).swapaxes(1, 2)


def join_heads(x: Array) -> Array:
    """Join the features of all heads. (B, heads, T, d) → (B, T, heads·d)."""
    batch, heads, length, size = x.shape
    return x.swapaxes(1, 2).reshape(batch, length, heads * size)


def _sum_shared(x: Array, shared: int) -> Array:
    batch, heads, length, size = x.shape
    return np.asarray(x.reshape(batch, heads // shared, shared, length, size).sum(2))


ATTENTION: Mapping[type[Op], Reference] = {
    Attention: attention,
}
