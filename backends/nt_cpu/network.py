"""Lowering of a layout and its values to a network of operations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nt_core.checkpoint import STACKED, Values, unroll
from nt_core.errors import GraphError
from nt_core.graph import INPUT, Tokens
from nt_core.structure import Layout
from nt_cpu.fusion import fuse
from nt_cpu.lowering import LOWERINGS, flip, place
from nt_cpu.operations import Extent, Network, Operation


def network(layout: Layout, values: Values) -> Network:
    """Return the operations of an ensemble, fused.

    Members that share every block become networks of their own, with kernels already scaled, so that
    inference multiplies no factors.

    Raises:
        GraphError: an op cannot be computed by this backend.
    """
    found = Network()
    given = _input(found, layout)
    unrolled = unroll(layout, values)
    names = {given: given}
    for call in unrolled.calls:
        own = {name: np.asarray(array, np.float32) for name, array in call.own.items()}
        read = replace(call, inputs=tuple(names[name] for name in call.inputs), own=own)
        try:
            made = LOWERINGS[type(call.op)](read)
        except GraphError as error:
            raise GraphError(f"block {call.block!r}, op {call.node!r}: {error}") from None
        names[call.output] = made[-1].output if made else read.inputs[0]
        found.operations += made
    found.logits += [names[name] for name in unrolled.logits]
    if layout.along == "channels":
        _divide(found, found.logits.pop(), layout.members)
    _canonical(found)
    fuse(found)
    return found


def _input(found: Network, layout: Layout) -> str:
    """Add the operations that bring the caller's examples into the memory layout of values."""
    shape = layout.input_shape
    if isinstance(layout.graph.input, Tokens):
        found.operations.append(Operation("input", [], INPUT, Extent(1, shape[0], True)))
    elif len(shape) == 2:
        raw = Extent(shape[0], shape[1], False)
        found.operations += [
            Operation("input", [], "raw input", raw),
            flip("raw input", raw, INPUT, Extent.of(shape)),
        ]
    else:
        found.operations.append(Operation("input", [], INPUT, Extent.of(shape)))
    if layout.along != "channels":
        return INPUT
    one, stacked = Extent.of(shape), Extent.of(layout.graph.input.shape)
    found.operations += [
        place(INPUT, one, STACKED, stacked, channel=member * one.channels) for member in range(layout.members)
    ]
    return STACKED


def _divide(found: Network, output: str, members: int) -> None:
    """Divide an output's channels among the members."""
    extent = found.extents()[output]
    one = Extent(extent.channels // members, extent.positions, extent.merged)
    for member in range(members):
        name = f"{output} of member {member + 1}"
        found.operations.append(place(output, one, name, one, first=member * one.channels))
        found.logits.append(name)


def _canonical(found: Network) -> None:
    """Add flips that bring logits of sequences into the caller's memory layout, position by position."""
    extents = found.extents()
    for number, name in enumerate(found.logits):
        extent = extents[name]
        if extent.positions > 1:
            laid = Extent(extent.positions, extent.channels, False)
            found.operations.append(flip(name, extent, f"{name}, laid out", laid))
            found.logits[number] = f"{name}, laid out"
