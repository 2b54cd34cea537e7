"""Encoding of a network for the native engine: words of 64 bits, and the arrays that the words refer to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nt_core.graph import ops
from nt_cpu.operations import Extent, Network, Operation
from nt_cpu.streams import LARGEST, LINE, PANEL_BYTES, TILE, Geometry, blocks

MAGIC, VERSION = 0x4E544350, 4
KINDS = (
    "product",
    "affine",
    "add",
    "multiply",
    "input",
    "output",
    "max_pool",
    "average_pool",
    "global_average",
    "move",
    "function",
    "norm",
    "attention",
    "embedding",
    "fill",
)
ALIGNMENT = 64
CHUNK_BYTES = 384 * 1024
"""Bytes of sums that a thread works on at a time, small enough for its second-level cache."""

MEMORY_BYTES = 1024 * 1024
"""Largest working memory of the examples computed at a time: the size of a second-level cache."""

ENOUGH = 20
"""Connections of a row in a panel that make loads and stores of the row's sums cheap in comparison."""

FEWEST_LINES = 2
"""Fewest lines of vectors side by side, because one line reads each connection for a single multiply-add."""


@dataclass(slots=True)
class Program:
    """Program of the native engine.

    Attributes:
        code: int64 words.
        blob: bytes of the arrays that the code refers to.
    """

    code: NDArray[np.int64]
    blob: NDArray[np.uint8]

    def __deepcopy__(self, _: dict[int, Any]) -> Program:
        """Return itself, because nothing writes into its arrays."""
        return self


@dataclass(slots=True)
class _Writer:
    batch: int
    values: dict[str, int] = field(default_factory=dict)
    words: list[int] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0

    def numbers(self, array: NDArray[Any] | None) -> int:
        """Put an array into the blob and return its address there; -1 for None."""
        if array is None:
            return -1
        padding = -self.size % ALIGNMENT
        data = np.ascontiguousarray(array).tobytes()
        self.pieces += [bytes(padding), data]
        at = self.size + padding
        self.size = at + len(data)
        return at


def batch_of(network: Network, most: int) -> int:
    """Choose the number of examples that a program computes at a time.

    The number is the smallest that fills a tile in the product with fewest positions, because working memory
    then stays in the caches, while weights are read again for the next examples. For vectors alone, the
    density of the weights determines the number.
    """
    products = [each for each in network.operations if each.kind == "product"]
    several = [each.extent.positions for each in products if each.extent.positions > 1]
    if not several:
        return min(_abreast(products), most)
    batch = min(-(-TILE // min(several)), most)
    while batch > 1 and _plan(network, batch)[1] * 4 > MEMORY_BYTES:
        batch -= batch // 2
    return batch


def _abreast(products: Sequence[Operation]) -> int:
    """Choose the number of vectors side by side, in whole lines, for a network of vectors alone.

    More vectors give more multiply-adds for each connection that is read. Fewer vectors give more connections
    of a row in one panel, and so fewer loads and stores of its sums.
    """
    weights = [each.weight for each in products if each.weight is not None]
    active = sum(np.count_nonzero(weight) for weight in weights)
    density = active / max(sum(weight.size for weight in weights), 1)
    lines = PANEL_BYTES * density / (4 * LINE * ENOUGH)
    return LINE * min(max(1 << int(np.log2(max(lines, 1))), FEWEST_LINES), TILE // LINE)


def program(network: Network, batch: int) -> Program:
    """Write a network's program for ``batch`` examples at a time.

    Raises:
        GraphError: as :func:`nt_cpu.streams.blocks`.
    """
    _copy_sums(network)
    extents = network.extents()
    places, floats = _plan(network, batch)
    writer = _Writer(batch, {name: number for number, name in enumerate(extents)})
    member = extents[network.logits[0]]
    head = [MAGIC, VERSION, batch, floats, len(network.logits), member.channels * member.positions]
    head.append(len(extents))
    for name, extent in extents.items():
        head += [places[name], extent.channels, extent.positions, int(extent.merged)]
    for operation in network.operations:
        _write(writer, operation)
    for number, name in enumerate(network.logits):
        value = writer.values[name]
        writer.words += [KINDS.index("output"), value, value, number]
    head.append(len(network.operations) + len(network.logits))
    blob = np.frombuffer(b"".join(writer.pieces) + bytes(ALIGNMENT), np.uint8)
    return Program(np.array(head + writer.words, np.int64), blob)


def _copy_sums(network: Network) -> None:
    """Write a sum or product of values as a copy of the first and one operation for each other value."""
    found = []
    for operation in network.operations:
        if operation.kind not in {"add", "multiply"}:
            found.append(operation)
            continue
        first, *others = operation.inputs
        one = np.ones(operation.extent.channels, np.float32)
        found.append(
            Operation("affine", [first], operation.output, operation.extent, scale=one, shift=0 * one)
        )
        found += [Operation(operation.kind, [other], operation.output, operation.extent) for other in others]
    network.operations = found


def _write(writer: _Writer, operation: Operation) -> None:
    output = writer.values[operation.output]
    source = writer.values[operation.inputs[0]] if operation.inputs else output
    writer.words += [KINDS.index(operation.kind), source, output]
    if operation.kind == "affine":
        writer.words += [
            writer.numbers(operation.scale),
            writer.numbers(operation.shift),
            int(operation.relu),
        ]
    elif operation.kind in {"max_pool", "average_pool"}:
        writer.words += _geometry(operation).words()
    elif operation.kind == "product":
        _product(writer, operation)
    elif operation.kind == "norm":
        writer.words += [writer.numbers(operation.scale), writer.numbers(operation.bias), *operation.words]
    elif operation.kind == "attention":
        tables = [writer.numbers(table) for table in operation.table] or [-1, -1]
        keys = [writer.values[name] for name in operation.inputs[1:]]
        writer.words += [*keys, *operation.words, *tables]
    else:
        writer.words += [*operation.words, *(writer.numbers(table) for table in operation.table)]


def _product(writer: _Writer, operation: Operation) -> None:
    assert operation.weight is not None
    extent, geometry = operation.extent, _geometry(operation)
    # A single position needs no lines, as long as an offset can name each input.
    single = geometry.pointwise and extent.merged and extent.positions * writer.batch == 1
    single = single and operation.weight.shape[1] <= LARGEST + 1
    geometry = replace(
        geometry, merged=extent.merged, tile=1 if single else min(TILE, _pitch(extent, writer.batch))
    )
    # The rows at a time are limited, because their sums shall stay in the cache while all blocks are added.
    outputs = len(operation.weight)
    groups = 1 if single else max(round(outputs * geometry.tile * 4 / CHUNK_BYTES), 1)
    rows = -(-outputs // groups)
    writer.words += [
        *geometry.words(),
        int(geometry.pointwise),
        int(single),
        writer.numbers(operation.scale),
        writer.numbers(operation.shift),
        int(operation.pre_relu),
        writer.numbers(operation.bias),
        -1 if operation.residual is None else writer.values[operation.residual],
        int(operation.relu),
        max(CHUNK_BYTES // (geometry.tile * rows * 4), 1),
        -(-outputs // rows),
    ]
    for first in range(0, outputs, rows):
        made = list(blocks(operation.weight[first : first + rows], geometry))
        writer.words.append(len(made))
        for block in made:
            writer.words += [
                block.channel,
                block.channels,
                len(block.rows),
                len(block.weights),
                writer.numbers(block.weights),
                writer.numbers(block.offsets),
                writer.numbers(block.counts),
                writer.numbers(block.rows + np.uint32(first)),
                writer.numbers(block.sets),
            ]


def _geometry(operation: Operation) -> Geometry:
    op, shapes = operation.op, operation.shapes
    if isinstance(op, ops.Conv2d | ops.MaxPool2d):
        return Geometry.of_images(
            shapes[0], shapes[-1], op.kernel, op.stride, (op.padding[0][0], op.padding[1][0])
        )
    if isinstance(op, ops.AvgPool2d):
        return Geometry.of_images(shapes[0], shapes[-1], op.kernel, op.stride, (0, 0))
    return Geometry()


def _pitch(extent: Extent, batch: int) -> int:
    positions = extent.positions * (batch if extent.merged else 1)
    return -(-positions // LINE) * LINE


def _floats(extent: Extent, batch: int) -> int:
    return (1 if extent.merged else batch) * extent.channels * _pitch(extent, batch)


def _plan(network: Network, batch: int) -> tuple[dict[str, int], int]:
    """Give each value a place in the working memory; places of values that are read no more are reused."""
    last: dict[str, int] = {}
    for number, operation in enumerate(network.operations):
        last |= dict.fromkeys([*operation.reads, operation.output], number)
    last |= dict.fromkeys(network.logits, len(network.operations))
    extents = network.extents()
    places: dict[str, int] = {}
    top = 0
    for number, operation in enumerate(network.operations):
        name = operation.output
        if name in places:
            continue
        taken = sorted(
            (places[other], places[other] + _floats(extents[other], batch))
            for other in places
            if last[other] >= number
        )
        at, size = 0, _floats(extents[name], batch)
        for begin, end in taken:
            if begin - at >= size:
                break
            at = max(at, end)
        places[name] = at
        top = max(top, at + size)
    return places, top
