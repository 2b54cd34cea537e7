"""Contract of an op's reference: a function that returns the output and the pullback of gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from numpy.typing import NDArray

Array = NDArray[Any]
"""A NumPy array; activations carry the batch on axis 0: (B, *shape)."""

Inputs = tuple[Array, ...]
Weights = Mapping[str, Array]
"""The arrays an op owns, by their names within the op."""

Cotangents = tuple[tuple[Array | None, ...], dict[str, Array]]
"""Gradients of the inputs, None for token numbers, and of the trained weights by name."""

Pullback = Callable[[Array], Cotangents]
"""Function from the gradient of the output, (B, *output shape), to the gradients of inputs and weights."""


class Applied(NamedTuple):
    """An op applied to a batch.

    Attributes:
        output: (B, *output shape), in the dtype of the inputs.
        pullback: the reverse-mode derivative at this point.
        running: new values of the op's running statistics; empty in evaluation, and for ops without
            statistics.
    """

    output: Array
    pullback: Pullback
    running: Mapping[str, Array] = MappingProxyType({})


Reference = Callable[[Any, Inputs, Weights, bool], Applied]
"""``(op, inputs, weights, training) -> Applied``: the reference of an op.

A reference is a pure function of an op's type. It computes in the dtype of its inputs and changes no
argument.
"""
