"""Masks: the active elements of a weight, as CSR over its (out, fan-in) view."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from nt_core.errors import TopologyError
from nt_core.values import Shape

Positions = NDArray[np.integer[Any]]
"""Flat positions in C order, ascending."""


@dataclass(frozen=True, eq=False)
class Mask:
    """The active elements of one weight: a CSR pattern without values; arrays are read-only.

    Attributes:
        shape: of the weight; rows of the pattern are axis 0, columns the other axes in C order.
        indptr: (rows + 1,) int64, start of each row in ``indices``.
        indices: (count,) int32 or int64, the columns, ascending in each row.

    Example:
        >>> mask = Mask.from_flat((2, 3), np.array([0, 4]))
        >>> mask.dense().astype(int).tolist(), mask.count, mask.density
        ([[1, 0, 0], [0, 1, 0]], 2, 0.3333333333333333)
    """

    shape: Shape
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32] | NDArray[np.int64]

    def __post_init__(self) -> None:
        for array in (self.indptr, self.indices):
            array.setflags(write=False)

    @staticmethod
    def from_flat(shape: Shape, positions: Positions) -> Mask:
        """Make a mask from ascending flat positions.

        Raises:
            TopologyError: a position is doubled, out of order or outside the weight.
        """
        flat = _flat_positions(shape, positions)
        rows, columns = _two_dimensional(shape)
        indptr = np.searchsorted(flat, np.arange(rows + 1, dtype=np.int64) * columns).astype(np.int64)
        indices = np.remainder(flat, max(columns, 1))
        return Mask(shape, indptr, indices if columns > np.iinfo(np.int32).max else indices.astype(np.int32))

    @staticmethod
    def from_dense(active: NDArray[np.bool_]) -> Mask:
        """Make a mask from a boolean array of the weight's shape."""
        return Mask.from_flat(active.shape, np.flatnonzero(active))

    @staticmethod
    def full(shape: Shape) -> Mask:
        """Make the mask with all elements active."""
        return Mask.from_flat(shape, np.arange(math.prod(shape)))

    @property
    def count(self) -> int:
        """The number of active elements."""
        return self.indices.size

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Active elements / elements; 1 for a weight without elements."""
        return self.count / self.size if self.size else 1.0

    def flat(self) -> NDArray[np.int64]:
        """Return the active flat positions, ascending; (count,) int64."""
        rows, columns = _two_dimensional(self.shape)
        starts = np.repeat(np.arange(rows, dtype=np.int64) * columns, np.diff(self.indptr))
        return np.add(starts, self.indices, out=starts)

    def dense(self) -> NDArray[np.bool_]:
        """Return a boolean array of the weight's shape."""
        active = np.zeros(self.size, dtype=np.bool_)
        active[self.flat()] = True
        return active.reshape(self.shape)

    def swap(self, pruned: Positions, grown: Positions) -> Mask:
        """Return the mask without the pruned and with the grown positions.

        Raises:
            TopologyError: a pruned position is inactive, or a grown position is active; or as
                :meth:`from_flat`.
        """
        active = self.dense().reshape(-1)
        pruned, grown = _flat_positions(self.shape, pruned), _flat_positions(self.shape, grown)
        if not active[pruned].all():
            raise TopologyError(f"mask of shape {self.shape}: pruned positions must be active")
        active[pruned] = False
        if active[grown].any():
            raise TopologyError(f"mask of shape {self.shape}: grown positions must be inactive")
        active[grown] = True
        return Mask.from_dense(active.reshape(self.shape))

    def to_csr(self, weights: NDArray[Any]) -> sp.csr_array[Any]:
        """Return the active elements of a weight of this shape as a SciPy CSR array (rows, columns)."""
        rows, columns = _two_dimensional(self.shape)
        values = weights.reshape(-1)[self.flat()]
        return sp.csr_array((values, self.indices, self.indptr), shape=(rows, columns))

    def digest(self) -> str:
        """Return a hash, which is equal for equal masks only."""
        content = hashlib.blake2b(repr(self.shape).encode(), digest_size=16)
        content.update(self.flat().tobytes())
        return content.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return (
            self.shape == other.shape
            and np.array_equal(self.indptr, other.indptr)
            and np.array_equal(self.indices, other.indices)
        )

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        return f"Mask(shape={self.shape}, count={self.count}, density={self.density:.4g})"


def _flat_positions(shape: Shape, positions: Positions) -> NDArray[np.int64]:
    given, size = np.asarray(positions), math.prod(shape)
    flat = given.astype(np.int64)
    integers = given.ndim == 1 and (given.dtype.kind in "iu" or not given.size)
    if not integers or (flat.size and (flat[0] < 0 or flat[-1] >= size or (np.diff(flat) <= 0).any())):
        raise TopologyError(f"mask of shape {shape}: expected ascending flat positions below {size}")
    return flat


def _two_dimensional(shape: Shape) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)
