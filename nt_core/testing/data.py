"""Values, inputs and masks for a comparison: arbitrary, never zero, and keyed by name."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nt_core.graph import BlockGraph, Tokens, Weight
from nt_core.masks import Mask
from nt_core.reference import Array
from nt_core.structure import Layout

GRID = 0.25
"""The step of values with ties: a power of two, so that short sums of products are exact in any dtype."""


def generator(seed: int, key: str) -> np.random.Generator:
    """Return a generator for one array, whose random numbers do not depend on the other arrays."""
    return np.random.default_rng([seed, zlib.crc32(key.encode())])


def random_values(
    layout: Layout, seed: int, dtype: DTypeLike = np.float64, *, ties: bool = False
) -> dict[str, Array]:
    """Draw every array of a layout: no element is 0 and running variances are positive.

    Args:
        layout: of the arrays.
        seed: keys the values.
        dtype: of the values; float32 values are the rounded float64 values.
        ties: whether values are a few small multiples of :data:`GRID`.

    Returns:
        Arrays by full name.

    Example:
        >>> from nt_core import Single
        >>> from nt_core.testing.models import perceptron
        >>> values = random_values(Single().layout(perceptron()), seed=0)
        >>> values["head1/hidden1/linear1.weight"].shape, all((v != 0).all() for v in values.values())
        ((6, 7), True)
    """
    return {
        placed.name: _draw(placed.weight, generator(seed, placed.name), ties).astype(dtype)
        for placed in layout.weights
    }


def random_input(
    graph: BlockGraph, batch: int, seed: int, dtype: DTypeLike = np.float64, *, ties: bool = False
) -> Array:
    """Draw a batch that a graph can read: int64 token numbers, or numbers around 0. (batch, *shape)."""
    draw = generator(seed, "input")
    shape = (batch, *graph.input.shape)
    if isinstance(graph.input, Tokens):
        return draw.integers(0, graph.input.vocabulary, shape)
    return (draw.integers(-2, 3, shape) * GRID if ties else draw.normal(size=shape)).astype(dtype)


def random_masks(layout: Layout, seed: int) -> dict[str, Mask]:
    """Draw a mask for every weight that may have one, by full name.

    The first mask is full. The others keep about two thirds, and some connections of every output, so that
    activations and gradients still flow, and no batch norm divides a constant by its deviation.
    """
    masks = {}
    for number, placed in enumerate(layout.sparsifiable):
        draw = generator(seed, f"mask {placed.name}")
        rows = placed.weight.shape[0]
        active = draw.random((rows, placed.weight.size // rows)) < (0.6 if number else 1.0)
        active[np.arange(rows), draw.integers(active.shape[1], size=rows)] = True
        masks[placed.name] = Mask.from_dense(active.reshape(placed.weight.shape))
    return masks


def _draw(weight: Weight, draw: np.random.Generator, ties: bool) -> Array:
    signs = draw.choice([-1.0, 1.0], weight.shape)
    if weight.name == "running_var":
        return draw.uniform(0.5, 2.0, weight.shape)
    if ties:
        return np.asarray(signs * draw.integers(1, 3, weight.shape) * GRID)
    if weight.role == "kernel":
        return np.asarray(draw.normal(size=weight.shape) / math.sqrt(math.prod(weight.shape[1:])))
    return np.asarray(signs * draw.uniform(0.2, 1.5, weight.shape))


class Blobs:
    """Three classes of six features that a small network can learn; a :class:`nt_core.training.Batches`.

    Args:
        size: number of examples.
        shuffle: whether each epoch has an order of its own, as training sets do.

    Example:
        >>> [len(labels) for _, labels in Blobs(50).epoch(1, batch_size=20)]
        [20, 20, 10]
    """

    def __init__(self, size: int = 90, shuffle: bool = True) -> None:
        rng = np.random.default_rng(0)
        self.labels = rng.integers(0, 3, size)
        self.inputs = rng.standard_normal((size, 6)).astype(np.float32)
        self.inputs[np.arange(size), self.labels] += 3
        self.shuffle = shuffle

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(
        self, number: int, batch_size: int, first: int = 0
    ) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        """Yield (inputs (B, 6), labels (B,)); the last batch may be smaller."""
        order = np.arange(len(self))
        if self.shuffle:
            order = np.random.default_rng(number).permutation(order)
        for start in range(first * batch_size, len(order), batch_size):
            part = order[start : start + batch_size]
            yield self.inputs[part], self.labels[part]
