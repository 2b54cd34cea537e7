"""The arrays of one comparison, drawn so that rounding cannot decide the result."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from nt_core.graph import ops
from nt_core.graph.ops import Op
from nt_core.masks import Mask
from nt_core.reference import REFERENCE, Applied, Array, Inputs, Reference, Weights, forward
from nt_core.reference.images import unfold
from nt_core.testing.cases import Case
from nt_core.testing.data import generator, random_input, random_values

FloatType = type[np.float32] | type[np.float64]

MARGIN = 5e-6
"""Distance of activations from a kink in float32, as a share of the largest activation in their tensor.

The gradients of ReLU and max pooling jump where an input is 0 or two inputs are equal. A backend whose
activations differ there by one rounding has another gradient, which is correct nevertheless.
"""
SPREAD = 0.05
"""Smallest deviation by which batch norm divides in float32, as a share of the channel's largest value."""
ATTEMPTS = 20
NOISE, NOISY = 1e-6, 3
"""A relative change of values that is about the rounding of float32 in a long sum; how many are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The arrays of one comparison, in the dtype for the backend.

    Attributes:
        values: every weight of the layout by its full name.
        x: (B, *input shape).
        upstream: (M, B, *output shape), the gradient of a loss with respect to the logits of training.
        ties: whether sums are exact in any order, so that nothing is rounded.
    """

    values: Mapping[str, Array]
    x: Array
    upstream: Array
    ties: bool = False

    def exact(self) -> Problem:
        """Return the same numbers in float64."""
        return self._in(np.float64)

    def rounded(self) -> tuple[Problem, ...]:
        """Return nearly the same numbers, from which results differ as much as by rounding in float32.

        The first are the same in float32. The values of the others differ by :data:`NOISE`: a deep
        network may then pass a kink on the other side, where its gradients jump.
        """
        if self.ties:
            return ()
        return self._in(np.float32), *(self._noisy(seed) for seed in range(NOISY))

    def _noisy(self, seed: int) -> Problem:
        draw, exact = generator(seed, "noise"), self.exact()
        values = {
            name: value * (1 + NOISE * draw.standard_normal(value.shape))
            for name, value in exact.values.items()
        }
        return replace(exact, values=values)

    def _in(self, dtype: FloatType) -> Problem:
        values = {name: in_dtype(value, dtype) for name, value in self.values.items()}
        return replace(
            self, values=values, x=in_dtype(self.x, dtype), upstream=in_dtype(self.upstream, dtype)
        )


def problem(case: Case, dtype: FloatType, masks: Mapping[str, Mask] = MappingProxyType({})) -> Problem:
    """Draw the values, inputs and upstream gradients of a case, with its name as seed, under masks.

    In float32 the draw is repeated, up to :data:`ATTEMPTS` times, until rounding cannot decide the comparison
    (see :func:`clearance`). If no draw is clear, the clearest is taken. The first draw of a case with ties is
    taken, because its sums are exact.
    """
    seed = zlib.crc32(case.name.encode())
    best, most = _draw(case, seed, dtype, masks), -1.0
    if case.ties or np.dtype(dtype) == np.float64:
        return best
    for attempt in range(ATTEMPTS):
        drawn = _draw(case, seed + attempt, dtype, masks)
        found = clearance(case, drawn)
        if found > most:
            best, most = drawn, found
        if found >= 1:
            break
    return best


def clearance(case: Case, drawn: Problem) -> float:
    """Return the clearance of a training pass from decisions by rounding; 1 or more is clear.

    The clearance is the smallest distance found, as a share of :data:`MARGIN` or :data:`SPREAD`, and infinite
    where there are no kinks. Exact ties are left out, because they come from equal numbers in every backend.
    """
    found = [math.inf]

    def watch(gaps: Array, scale: Array, asked: float) -> None:
        share = gaps / np.maximum(scale, 1e-30) / asked
        found.append(float(share.min(where=share > 0, initial=math.inf)))

    def activation(op: ops.Activation, inputs: Inputs, weights: Weights, training: bool) -> Applied:
        if op.function == "relu":
            size = np.abs(inputs[0])
            watch(size, size.max(), MARGIN)
        return REFERENCE[ops.Activation](op, inputs, weights, training)

    def max_pool2d(op: ops.MaxPool2d, inputs: Inputs, weights: Weights, training: bool) -> Applied:
        windows = unfold(inputs[0], op.kernel, op.stride, op.padding, -np.inf)
        ranked = np.sort(windows.reshape(*windows.shape[:4], -1))
        watch(ranked[..., -1:] - ranked[..., :-1], np.abs(inputs[0]).max(), MARGIN)
        return REFERENCE[ops.MaxPool2d](op, inputs, weights, training)

    def batch_norm(op: ops.BatchNorm, inputs: Inputs, weights: Weights, training: bool) -> Applied:
        (x,) = inputs
        axes = (0, *range(2, x.ndim))
        watch(x.std(axes), np.abs(x).max(axes), SPREAD)
        return REFERENCE[ops.BatchNorm](op, inputs, weights, training)

    watching: Mapping[type[Op], Reference] = {
        **REFERENCE,
        ops.Activation: activation,
        ops.MaxPool2d: max_pool2d,
        ops.BatchNorm: batch_norm,
    }
    exact = drawn.exact()
    forward(case.layout, exact.values, exact.x, training=True, references=watching)
    return min(found)


def in_dtype(array: Array, dtype: FloatType) -> Array:
    """Return floats in a dtype and token numbers as they are."""
    return array.astype(dtype) if array.dtype.kind == "f" else array


def masked(value: Array, mask: Mask | None) -> Array:
    """Return a value with its inactive elements exactly 0."""
    return value if mask is None else np.where(mask.dense(), value, value.dtype.type(0))


def _draw(case: Case, seed: int, dtype: FloatType, masks: Mapping[str, Mask]) -> Problem:
    rows = case.batch // case.structure.members if case.layout.own_rows else case.batch
    shape = (case.structure.members, rows, *case.graph.output_shape)
    values = random_values(case.layout, seed, dtype, ties=case.ties)
    return Problem(
        values={name: masked(value, masks.get(name)) for name, value in values.items()},
        x=random_input(case.graph, case.batch, seed, dtype, ties=case.ties),
        upstream=generator(seed, "upstream").normal(size=shape).astype(dtype),
        ties=case.ties,
    )
