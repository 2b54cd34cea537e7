"""A layout and its values → operations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nt_core.checkpoint import Values
from nt_core.errors import GraphError
from nt_core.graph import INPUT, Tokens
from nt_core.structure import Layout, Part, weight_name
from nt_cpu.fusion import fuse
from nt_cpu.lowering import LOWERINGS, Call, flip, place
from nt_cpu.operations import Extent, Network, Operation


def network(layout: Layout, values: Values) -> Network:
    """Return the operations of an ensemble, fused.

    Members that share every block become networks of their own, with kernels that are scaled already: what is
    served has no factors to multiply.

    Raises:
        GraphError: an op is not one that can be computed here.
    """
    found = Network()
    given = _input(found, layout)
    if layout.along == "rows":
        assert layout.backbone is not None
        for member in range(layout.members):
            names = {INPUT: given}
            prefix = f"member{member + 1}"
            found.operations += _part(layout, layout.backbone, names, values, prefix, member)
            found.logits.append(names[layout.graph.output])
    else:
        shared = {INPUT: given}
        if layout.backbone is not None:
            found.operations += _part(layout, layout.backbone, shared, values, layout.backbone.name)
        for head in layout.heads:
            names = dict(shared)
            found.operations += _part(layout, head, names, values, head.name)
            found.logits.append(names[layout.graph.output])
        if not layout.heads:
            _divide(found, shared[layout.graph.output], layout.members)
    _canonical(found)
    fuse(found)
    return found


def _input(found: Network, layout: Layout) -> str:
    """Add what brings the caller's examples into the form in which values lie."""
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
        place(INPUT, one, "stacked input", stacked, channel=member * one.channels)
        for member in range(layout.members)
    ]
    return "stacked input"


def _part(
    layout: Layout, part: Part, names: dict[str, str], values: Values, prefix: str, member: int = 0
) -> Iterator[Operation]:
    for block in part.blocks:
        for node in block.nodes:
            own = {
                w.name: np.asarray(values[weight_name(part.name, block.name, node.name, w.name)], np.float32)
                for w in node.op.weights()
            }
            reference = f"{block.name}/{node.name}"
            shapes = tuple(layout.graph.shapes[ref] for ref in (*node.inputs, reference))
            call = Call(
                node.op, [names[ref] for ref in node.inputs], f"{prefix}/{reference}", shapes, own, member
            )
            try:
                made = LOWERINGS[type(node.op)](call)
            except GraphError as error:
                raise GraphError(f"block {block.name!r}, op {node.name!r}: {error}") from None
            names[reference] = made[-1].output if made else names[node.inputs[0]]
            yield from made


def _divide(found: Network, output: str, members: int) -> None:
    """Give each member its part of an output's channels."""
    extent = found.extents()[output]
    one = Extent(extent.channels // members, extent.positions, extent.merged)
    for member in range(members):
        name = f"{output} of member {member + 1}"
        found.operations.append(place(output, one, name, one, first=member * one.channels))
        found.logits.append(name)


def _canonical(found: Network) -> None:
    """Lay logits of sequences out place by place, as the caller gets them."""
    extents = found.extents()
    for number, name in enumerate(found.logits):
        extent = extents[name]
        if extent.positions > 1:
            laid = Extent(extent.positions, extent.channels, False)
            found.operations.append(flip(name, extent, f"{name}, laid out", laid))
            found.logits[number] = f"{name}, laid out"
