"""Initial values and masks: drawn in the core, so that every backend starts from the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import TopologyError
from nt_core.graph import Weight
from nt_core.masks import Mask, Scores, top_k
from nt_core.random import Random, Stream
from nt_core.structure import Layout, PlacedWeight, Single
from nt_core.structure.fission import divide_masks
from nt_core.topology.base import DeclaredTopology

PART: Final = 1 << 18
"""Values drawn at a time."""


def initial_values(
    layout: Layout, seed: int, *, into: Callable[[PlacedWeight], NDArray[np.float32]] | None = None
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Draw every array of an ensemble, one after another; dense, without masks.

    Heads start from different values because their names differ. Pieces of one weight start from that
    weight's values. Scales and running variances are 1, biases and running means 0.

    Args:
        layout: of the ensemble.
        seed: keys all values.
        into: returns the array of a weight's shape into which its values are written; None: new arrays.

    Yields:
        (full name, float32 array of the weight's shape).

    Example:
        >>> import nt_models
        >>> from nt_core import Single
        >>> layout = Single().layout(nt_models.mlp(inputs=4, hidden=(3,), classes=2))
        >>> [(name, array.shape) for name, array in initial_values(layout, seed=0)][:2]
        [('head1/hidden1/linear1.weight', (3, 4)), ('head1/hidden1/linear1.bias', (3,))]
    """
    random = Random(seed)
    for placed in layout.weights:
        stream = random.at(weight=layout.source(placed.name), purpose="initial")
        values = into(placed) if into else np.empty(placed.weight.shape, np.float32)
        _fill(values.reshape(-1), placed.weight, stream)
        yield placed.name, values


def draw(weight: Weight, stream: Stream, positions: slice | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Draw the values of some positions from a weight's initial distribution.

    Args:
        weight: declares the distribution.
        stream: the random numbers.
        positions: (n,) flat positions, or a slice of them.

    Returns:
        (n,) float32.
    """
    distribution, parameter = weight.init
    match distribution:
        case "normal":
            values = parameter * stream.normal(positions)
        case "around_one":
            values = 1 + parameter * stream.normal(positions)
        case "uniform":
            values = parameter * (2 * stream.uniform(positions) - 1)
        case "signs":
            values = np.where(stream.uniform(positions) < 0.5, -parameter, parameter)
        case "constant":
            values = np.full(stream.uniform(positions).shape, parameter)
    return values.astype(np.float32)


def _fill(flat: NDArray[np.float32], weight: Weight, stream: Stream) -> None:
    """Draw part by part, because float64 draws of a whole weight would take twice its size."""
    for start in range(0, flat.size, PART):
        flat[start : start + PART] = draw(weight, stream, slice(start, min(start + PART, flat.size), 1))


def initial_masks(topology: DeclaredTopology, layout: Layout, seed: int) -> Iterator[tuple[str, Mask]]:
    """Draw the masks training starts from, one after another; none where the topology is dense.

    Each mask has exactly the topology's initial count, uniformly at random by position unless the topology
    scores positions otherwise. Gradual pruning starts full, and so does pruning at initialisation, until
    :func:`nt_core.topology.saliency_masks` has chosen.

    Example:
        >>> import nt_models
        >>> from nt_core import Single, Static
        >>> layout = Single().layout(nt_models.mlp(inputs=4, hidden=(3,), classes=2))
        >>> [(name, mask.count) for name, mask in initial_masks(Static(sparsity=0.5), layout, seed=0)]
        [('head1/hidden1/linear1.weight', 5), ('head1/classifier/linear1.weight', 4)]
    """
    if layout.divided:
        whole = initial_masks(topology, Single().layout(layout.graph), seed)
        yield from divide_masks(layout, whole, seed)
        return
    for placed, count in _initial_counts(topology, layout):
        stream = Random(seed).at(weight=placed.name, purpose="mask")
        yield placed.name, _best(placed.weight, topology.initial_scores(placed, stream), count)


def magnitude_masks(
    topology: DeclaredTopology, layout: Layout, values: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[str, Mask]]:
    """Select the masks that keep the largest magnitudes of trained weights, with the allocated counts.

    Of equal magnitudes the lowest positions are kept. Equal weights of two heads get equal masks.

    Args:
        topology: gives the counts.
        layout: of the ensemble.
        values: full name → array, for each sparsifiable weight at least.

    Raises:
        TopologyError: a value is NaN.

    Example:
        >>> import nt_models
        >>> from nt_core import Single, Static
        >>> layout = Single().layout(nt_models.mlp(inputs=4, hidden=(), classes=1))
        >>> values = {"head1/classifier/linear1.weight": np.array([[0.5, -3.0, 0.0, 2.0]])}
        >>> [mask.flat().tolist() for _, mask in magnitude_masks(Static(sparsity=0.5), layout, values)]
        [[1, 3]]
    """
    for placed, count in _initial_counts(topology, layout):
        size = np.abs(values[placed.name]).reshape(-1)
        if np.isnan(size).any():
            raise TopologyError(f"weight {placed.name!r}: expected numbers, found NaN; repair the weights")
        yield placed.name, _best(placed.weight, size, count)


def _initial_counts(topology: DeclaredTopology, layout: Layout) -> Iterator[tuple[PlacedWeight, int]]:
    """Walk over the weights that have a mask, and how many elements are active when training starts."""
    if topology.masked:
        counts = topology.initial_counts(layout)
        yield from ((placed, counts[placed.name]) for placed in layout.sparsifiable)


def _best(weight: Weight, scores: Scores, count: int) -> Mask:
    if count == weight.size:
        return Mask.full(weight.shape)
    everywhere = np.ones(weight.size, dtype=np.bool_)
    return Mask.from_flat(weight.shape, top_k(scores, everywhere, count))
