"""Initial values and masks: drawn in the core, so that every backend starts from the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core.mask import Mask
from nt_core.random import Random, Stream
from nt_core.selection import top_k
from nt_core.structure import Layout, PlacedWeight
from nt_core.topology import AnyTopology, Dense, GradualPruning, final_counts
from nt_core.weights import Weight

PART: Final = 1 << 18
"""Values drawn at a time."""


def initial_values(
    layout: Layout, seed: int, *, into: Callable[[PlacedWeight], NDArray[np.float32]] | None = None
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Draw every array of an ensemble, one after another; dense, without masks.

    Heads start from different values because their names differ. Scales and running variances are 1, biases
    and running means 0.

    Args:
        layout: what there is to draw.
        seed: keys all of it.
        into: gives the array that a weight's values are written into, of its shape; None: a new one each.

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
        stream = random.at(weight=placed.name, purpose="initial")
        values = into(placed) if into else np.empty(placed.weight.shape, np.float32)
        _fill(values.reshape(-1), placed.weight, stream)
        yield placed.name, values


def draw(weight: Weight, stream: Stream, positions: slice | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Draw the values of some positions from a weight's initial distribution.

    Args:
        weight: declares the distribution.
        stream: the randomness.
        positions: (n,) flat positions, or a slice of them.

    Returns:
        (n,) float32.
    """
    distribution, parameter = weight.init
    match distribution:
        case "normal":
            values = parameter * stream.normal(positions)
        case "uniform":
            values = parameter * (2 * stream.uniform(positions) - 1)
        case "constant":
            values = np.full(stream.uniform(positions).shape, parameter)
    return values.astype(np.float32)


def _fill(flat: NDArray[np.float32], weight: Weight, stream: Stream) -> None:
    """Draw part by part: float64 draws of a whole weight would be twice its size."""
    for start in range(0, flat.size, PART):
        flat[start : start + PART] = draw(weight, stream, slice(start, min(start + PART, flat.size), 1))


def initial_masks(topology: AnyTopology, layout: Layout, seed: int) -> Iterator[tuple[str, Mask]]:
    """Draw the masks training starts from, one after another; none where the topology is dense.

    Each mask has exactly its allocated count, uniformly at random by position. Gradual pruning starts full.

    Example:
        >>> import nt_models
        >>> from nt_core import Single, Static
        >>> layout = Single().layout(nt_models.mlp(inputs=4, hidden=(3,), classes=2))
        >>> [(name, mask.count) for name, mask in initial_masks(Static(sparsity=0.5), layout, seed=0)]
        [('head1/hidden1/linear1.weight', 5), ('head1/classifier/linear1.weight', 4)]
    """
    if isinstance(topology, Dense):
        return
    counts = {} if isinstance(topology, GradualPruning) else final_counts(topology, layout)
    for placed in layout.sparsifiable:
        shape, size = placed.weight.shape, placed.weight.size
        count = counts.get(placed.name, size)
        stream = Random(seed).at(weight=placed.name, purpose="mask")
        everywhere = np.ones(size, dtype=np.bool_)
        yield (
            placed.name,
            Mask.full(shape)
            if count == size
            else Mask.from_flat(shape, top_k(stream.bits, everywhere, count)),
        )
