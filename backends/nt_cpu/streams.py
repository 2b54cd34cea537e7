"""Sparse format of the kernels: blocks of input channels, rows sorted by their number of connections.

A *panel* is a small dense matrix that the kernel builds from a block of input channels for a tile of output
positions: for each channel a line of positions for each element of the convolution kernel. A connection is a
value and the offset of its line in the panel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import GraphError
from nt_core.values import Shape

LINE = 16
"""Floats of one line: 64 bytes."""

TILE = 8 * LINE
"""Output positions that a row updates in registers."""

UNIT = 8
"""Bytes of one step of an offset."""

LARGEST = np.iinfo(np.uint16).max
"""Largest offset."""

PANEL_BYTES = 32 * 1024
"""Usual size limit of a panel: about a first-level cache."""

LEAST = 8
"""Connections of a row in a block, on average, that are worth the loads and stores of its sums."""

SETS = 12
"""Number of sets that divide a product's rows, the same in each of its blocks; threads take whole sets."""

MOST_BYTES = 128 * 1024
"""Size limit of a panel that is enlarged to reach ``LEAST``."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Geometry of a product: the positions of its inputs for each output position.

    Attributes:
        input: (height, width); (1, 1) of a pointwise product.
        output: (height, width).
        kernel: (height, width).
        stride: (down, right).
        padding: (top, left).
        pointwise: whether every output position reads the input at the same position.
        merged: whether images are so small that a tile contains several of them.
        tile: output positions of a tile, whole lines; 1 of a product that has one position in all.
    """

    input: tuple[int, int] = (1, 1)
    output: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    pointwise: bool = True
    merged: bool = False
    tile: int = TILE

    @staticmethod
    def of_images(
        before: Shape,
        after: Shape,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Geometry:
        """Return the geometry of a convolution, or of pooling."""
        if kernel == (1, 1) and stride == (1, 1) and padding == (0, 0) and before[1:] == after[1:]:
            return Geometry()
        _, height, width = before
        _, new_height, new_width = after
        return Geometry((height, width), (new_height, new_width), kernel, stride, padding, pointwise=False)

    @property
    def unit(self) -> int:
        """Bytes of one step of an offset."""
        return 4 if self.tile == 1 else UNIT

    @property
    def shared(self) -> bool:
        """Whether kernel rows share planes of a panel, which then has one plane for each kernel column."""
        width = self.output[1]
        fitting = width % LINE == 0 and TILE % width == 0 and not self.merged
        return fitting and self.stride == (1, 1) and self.kernel[0] > 1

    @property
    def channel_floats(self) -> int:
        """Floats of a panel for one input channel."""
        high, wide = self.kernel
        return wide * self.plane_floats * (1 if self.shared else high)

    @property
    def plane_floats(self) -> int:
        """Floats of a plane: the lines of one kernel element, or column where planes are shared."""
        return self.tile + (self.kernel[0] - 1) * self.output[1] * self.shared

    def places(self) -> NDArray[np.int64]:
        """Return the offset of each kernel element's line within its channel, in floats: (kh, kw)."""
        rows, columns = np.ogrid[: self.kernel[0], : self.kernel[1]]
        if self.shared:
            found = rows * self.output[1] + columns * self.plane_floats
        else:
            found = (rows * self.kernel[1] + columns) * self.plane_floats
        return np.asarray(found, np.int64)

    def words(self) -> list[int]:
        """Return the geometry as words of the native engine."""
        return [*self.input, *self.output, *self.kernel, *self.stride, *self.padding, int(self.shared)]


@dataclass(frozen=True, slots=True)
class Block:
    """A product's connections to some input channels, in the kernels' format.

    Attributes:
        channel: the first channel.
        channels: number of channels.
        weights: every connection's value, row by row.
        offsets: of every connection's line in the panel.
        counts: connections of each row.
        rows: row numbers: set by set, sorted in each set by the number of connections.
        sets: start of each set in ``rows``, then the number of rows.
    """

    channel: int
    channels: int
    weights: NDArray[np.float32]
    offsets: NDArray[np.uint16]
    counts: NDArray[np.uint32]
    rows: NDArray[np.uint32]
    sets: NDArray[np.uint32]


def block_channels(weight: NDArray[np.float32], geometry: Geometry) -> int:
    """Choose the number of input channels of a block."""
    outputs, inputs = weight.shape[:2]
    if geometry.tile == 1:
        return int(inputs)
    each = geometry.channel_floats * 4
    per_channel = np.count_nonzero(weight) / (outputs * inputs)
    fitting = max(PANEL_BYTES // each, 1)
    wanted = int(np.ceil(LEAST / max(per_channel, 1e-9)))
    most = max(min(MOST_BYTES // each, inputs), 1)
    channels = min(max(fitting, wanted), most)
    return int(np.ceil(inputs / np.ceil(inputs / channels)))


def _expect_small(what: str, found: int, most: int) -> None:
    if found > most:
        raise GraphError(f"nt_cpu: expected at most {most} {what} of a product, found {found}")


def blocks(weight: NDArray[np.float32], geometry: Geometry) -> Iterator[Block]:
    """Cut a product's weight, (out, in, kh, kw), into blocks; zeros are no connections.

    The first and the last block list every row, because the first adds the bias and the last finishes the
    row.

    Raises:
        GraphError: the kernel is too large for offsets of 16 bits.
    """
    outputs, inputs = weight.shape[:2]
    step = block_channels(weight, geometry)
    _expect_small("bytes of a panel", step * geometry.channel_floats * 4, (LARGEST + 1) * geometry.unit)
    places = geometry.places().reshape(-1)
    starts = range(0, inputs, step)
    set_of = _deal(weight)
    for start in starts:
        part = weight[:, start : start + step]
        channels = part.shape[1]
        flat = part.reshape(outputs, -1)
        lines = (np.arange(channels)[:, None] * geometry.channel_floats + places).reshape(-1)
        row, column = np.nonzero(flat)
        counts = np.bincount(row, minlength=outputs)
        ends = start in {starts[0], starts[-1]}
        order = np.lexsort((-counts, set_of))
        order = order if ends else order[counts[order] > 0]
        rank = np.empty(outputs, np.int64)
        rank[order] = np.arange(len(order))
        sorted_by_row = np.argsort(rank[row], kind="stable")
        row, column = row[sorted_by_row], column[sorted_by_row]
        yield Block(
            channel=start,
            channels=channels,
            weights=flat[row, column],
            offsets=(lines[column] * 4 // geometry.unit).astype(np.uint16),
            counts=counts[order].astype(np.uint32),
            rows=order.astype(np.uint32),
            sets=np.searchsorted(set_of[order], np.arange(SETS + 1)).astype(np.uint32),
        )


def _deal(weight: NDArray[np.float32]) -> NDArray[np.int64]:
    """Divide rows, in their order, into sets with about as many connections each: (out,).

    Neighbouring rows stay together because of false sharing: where lines written by different threads
    alternate, each processor prefetches the other's lines and takes them away from it.
    """
    counts = np.count_nonzero(weight.reshape(len(weight), -1), axis=1) + 1e-3
    middle = np.cumsum(counts) - counts / 2
    return np.asarray(middle * SETS / counts.sum(), np.int64)
