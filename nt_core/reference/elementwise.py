"""References of elementwise ops, and of ops that only rearrange elements."""

# ruff: noqa: ARG001  (every reference has the signature of the contract)

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from scipy import special

from nt_core.errors import NeuroTrailsError
from nt_core.graph.ops import Activation, Add, Concat, Dropout, Flatten, Multiply, Op
from nt_core.reference.contract import Applied, Array, Cotangents, Inputs, Reference, Weights

Function = Callable[[Array], Array]


def activation(op: Activation, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Apply a function to each element; the derivative of ``relu`` at 0 is 0.

    Example:
        >>> y, pullback, _ = activation(Activation(), (np.array([[-1.0, 0.0, 2.0]]),), {}, False)
        >>> y.tolist(), pullback(np.ones((1, 3)))[0][0].tolist()
        ([[0.0, 0.0, 2.0]], [[0.0, 0.0, 1.0]])
    """
    (x,) = inputs
    function, derivative = FUNCTIONS[op.function]
    return Applied(function(x), lambda dy: ((dy * derivative(x),), {}))


def dropout(op: Dropout, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Return the input, because the reference draws nothing at random.

    Raises:
        NeuroTrailsError: in training at a rate above 0, where values would be dropped.
    """
    if training and op.rate:
        raise NeuroTrailsError(
            f"dropout: expected rate 0 in training, found {op.rate}; the reference draws nothing at random, "
            "so compare without dropout or in evaluation"
        )
    return Applied(inputs[0], lambda dy: ((dy,), {}))


def add(op: Add, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Sum the inputs."""
    total = inputs[0]
    for x in inputs[1:]:
        total = total + x
    return Applied(total, lambda dy: ((dy,) * len(inputs), {}))


def multiply(op: Multiply, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Multiply the inputs; each gradient is the product of the others, without a division.

    Example:
        >>> y, pullback, _ = multiply(Multiply(), (np.array([[2.0]]), np.array([[0.0]])), {}, False)
        >>> [g.tolist() for g in pullback(np.array([[3.0]]))[0]]
        [[[0.0]], [[6.0]]]
    """

    def pullback(dy: Array) -> Cotangents:
        return tuple(dy * _product(inputs[:i] + inputs[i + 1 :]) for i in range(len(inputs))), {}

    return Applied(_product(inputs), pullback)


def concat(op: Concat, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Join the inputs along an axis of the example's shape."""
    axis = op.axis + 1
    ends = np.cumsum([x.shape[axis] for x in inputs])[:-1]
    return Applied(np.concatenate(inputs, axis), lambda dy: (tuple(np.split(dy, ends, axis)), {}))


def flatten(op: Flatten, inputs: Inputs, weights: Weights, training: bool) -> Applied:
    """Put all axes of each example into one, in C order."""
    (x,) = inputs
    return Applied(x.reshape(len(x), math.prod(x.shape[1:])), lambda dy: ((dy.reshape(x.shape),), {}))


def _product(arrays: Inputs) -> Array:
    product = arrays[0]
    for array in arrays[1:]:
        product = product * array
    return product


def _gelu_derivative(x: Array) -> Array:
    density = np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return np.asarray(_normal_below(x) + x * density)


def _normal_below(x: Array) -> Array:
    return np.asarray(0.5 * (1 + special.erf(x * math.sqrt(0.5))))


def _silu_derivative(x: Array) -> Array:
    s = special.expit(x)
    return np.asarray(s * (1 + x * (1 - s)))


FUNCTIONS: Mapping[str, tuple[Function, Function]] = MappingProxyType(
    {
        "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(x.dtype)),
        "gelu": (lambda x: x * _normal_below(x), _gelu_derivative),
        "silu": (lambda x: x * special.expit(x), _silu_derivative),
        "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
        "sigmoid": (special.expit, lambda x: special.expit(x) * special.expit(-x)),
    }
)
"""Each activation and its derivative, as functions of the input."""


ELEMENTWISE: Mapping[type[Op], Reference] = {
    Activation: activation,
    Dropout: dropout,
    Flatten: flatten,
    Add: add,
    Multiply: multiply,
    Concat: concat,
}
