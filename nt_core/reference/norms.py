"""References of the normalisations."""

# ruff: noqa: ARG001  (every reference has the signature of the contract)

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from nt_core.errors import NeuroTrailsError
from nt_core.graph.ops import BatchNorm, LayerNorm, Op, RMSNorm
from nt_core.reference.contract import Applied, Array, Cotangents, Inputs, Reference, Weights
from nt_core.reference.members import each_member

Axes = tuple[int, ...]


def batch_norm(op: BatchNorm, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Normalise each channel by the batch's statistics in training, else by the running statistics.

    The batch is normalised by its biased variance. The running variance is updated with the unbiased
    variance.

    Raises:
        NeuroTrailsError: in training with a single value per channel, whose variance is not defined.

    Example:
        >>> ones = {name: np.ones(1) for name in ("weight", "bias", "running_mean", "running_var")}
        >>> op = BatchNorm(channels=1, momentum=0.5)
        >>> _, _, running = batch_norm(op, (np.array([[0.0], [6.0]]),), ones, True)
        >>> running["running_mean"].tolist(), running["running_var"].tolist()
        ([2.0], [9.5])
    """
    (x,) = inputs
    axes = (0, *range(2, x.ndim))

    def wide(vector: Array) -> Array:
        return vector.reshape(-1, *[1] * (x.ndim - 2))

    if not training:
        deviation = np.sqrt(wide(weights["running_var"]) + op.eps)
        normal = (x - wide(weights["running_mean"])) / deviation
        return _scaled(normal, wide(weights["weight"]), axes, lambda d: d / deviation, wide(weights["bias"]))

    count = x.size // op.channels
    if count < 2:
        raise NeuroTrailsError(
            "batch_norm: expected more than one value per channel in training, found 1; use a larger batch"
        )
    mean, variance = x.mean(axes), x.var(axes)
    new = {"running_mean": mean, "running_var": variance * (count / (count - 1))}
    running = {name: (1 - op.momentum) * weights[name] + op.momentum * batch for name, batch in new.items()}
    normal, pull = _standardise(x, axes, op.eps)
    return _scaled(normal, wide(weights["weight"]), axes, pull, wide(weights["bias"]))._replace(
        running=running
    )


def layer_norm(op: LayerNorm, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Normalise the last axis by its mean and biased variance. (B, …, D) → (B, …, D)."""
    (x,) = inputs
    normal, pull = _standardise(x, (x.ndim - 1,), op.eps)
    return _scaled(normal, weights["weight"], tuple(range(x.ndim - 1)), pull, weights["bias"])


def rms_norm(op: RMSNorm, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Divide the last axis by its root mean square. (B, …, D) → (B, …, D).

    Example:
        >>> op = RMSNorm(features=2, eps=1e-12)
        >>> x = np.array([[1.0, 7.0]])
        >>> rms_norm(op, (x,), {"weight": np.array([1.0, 10.0])}, False).output.round(6).tolist()
        [[0.2, 14.0]]
    """
    (x,) = inputs
    root = np.sqrt((x * x).mean(-1, keepdims=True) + op.eps)
    normal = x / root

    def pull(d: Array) -> Array:
        return np.asarray((d - normal * (d * normal).mean(-1, keepdims=True)) / root)

    return _scaled(normal, weights["weight"], tuple(range(x.ndim - 1)), pull)


def _standardise(x: Array, axes: Axes, eps: float) -> tuple[Array, Callable[[Array], Array]]:
    """Subtract the mean over some axes, divide by the deviation, and return the result and its pullback."""
    centred = x - x.mean(axes, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(axes, keepdims=True) + eps)
    normal = centred / deviation

    def pull(d: Array) -> Array:
        along = (d * normal).mean(axes, keepdims=True)
        return np.asarray((d - d.mean(axes, keepdims=True) - normal * along) / deviation)

    return normal, pull


def _scaled(
    normal: Array, weight: Array, summed: Axes, pull: Callable[[Array], Array], bias: Array | None = None
) -> Applied:
    """Scale and shift a normalised batch; weights' gradients are sums over the axes of broadcasting."""

    def pullback(dy: Array) -> Cotangents:
        gradients = {"weight": (dy * normal).sum(summed)}
        if bias is not None:
            gradients["bias"] = dy.sum(summed)
        return (pull(dy * weight),), gradients

    return Applied(normal * weight if bias is None else normal * weight + bias, pullback)


NORMS: Mapping[type[Op], Reference] = {
    BatchNorm: each_member(batch_norm),
    LayerNorm: each_member(layer_norm),
    RMSNorm: each_member(rms_norm),
}
