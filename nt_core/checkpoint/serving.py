"""An ensemble as one sequence of ops for inference: members unrolled, shared kernels already scaled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core.checkpoint.directory import Values
from nt_core.graph import INPUT
from nt_core.graph.ops import Op
from nt_core.structure import Layout, Part, weight_name
from nt_core.values import Shape

STACKED: Final = "stacked input"
"""Name of the stacked input, once for each member, of a graph whose members have channels of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """An op, its input and output values, and its arrays.

    Attributes:
        block: name of the op's block.
        node: name of the op in its block.
        op: any op; its fields about sharing among members can be ignored.
        inputs: names of the input values.
        output: name of the output value.
        shapes: of inputs and output, canonical, for one example.
        own: the op's arrays by name, of shapes as if members shared nothing.
    """

    block: str
    node: str
    op: Any
    inputs: tuple[str, ...]
    output: str
    shapes: tuple[Shape, ...]
    own: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrolled:
    """An ensemble as one sequence of ops.

    Attributes:
        calls: in the order of computation; the first read ``nt_core.graph.INPUT``, or :data:`STACKED` if
            members have channels of their own.
        logits: name of each member's value; a single shared value if members have channels of their own.
    """

    calls: tuple[Call, ...]
    logits: tuple[str, ...]


def unroll(layout: Layout, values: Values) -> Unrolled:
    """Return an ensemble as one sequence of ops, in evaluation mode.

    The backbone runs once. Members with rows of their own become networks of their own, with kernels scaled
    by their factors.

    Args:
        layout: of the ensemble.
        values: full name → array.

    Example:
        >>> import nt_models
        >>> from nt_core import BatchEnsemble, initial_values
        >>> layout = BatchEnsemble(count=2).layout(nt_models.mlp(inputs=4, hidden=(), classes=3))
        >>> found = unroll(layout, dict(initial_values(layout, seed=0)))
        >>> [call.output for call in found.calls], found.calls[0].own["weight"].shape
        (['member1/classifier/linear1', 'member2/classifier/linear1'], (3, 4))
    """
    given = STACKED if layout.along == "channels" else INPUT
    calls: list[Call] = []
    logits = []
    shared = {INPUT: given}
    if layout.along == "rows":
        assert layout.backbone is not None
        for member in range(layout.members):
            names = dict(shared)
            calls += _part(layout, layout.backbone, names, values, f"member{member + 1}", member)
            logits.append(names[layout.graph.output])
        return Unrolled(calls=tuple(calls), logits=tuple(logits))
    if layout.backbone is not None:
        calls += _part(layout, layout.backbone, shared, values, layout.backbone.name)
    for head in layout.heads:
        names = dict(shared)
        calls += _part(layout, head, names, values, head.name)
        logits.append(names[layout.graph.output])
    return Unrolled(calls=tuple(calls), logits=tuple(logits or [shared[layout.graph.output]]))


def _part(
    layout: Layout, part: Part, names: dict[str, str], values: Values, prefix: str, member: int = 0
) -> Iterator[Call]:
    for block in part.blocks:
        for node in block.nodes:
            own = {
                weight.name: np.asarray(values[weight_name(part.name, block.name, node.name, weight.name)])
                for weight in node.op.weights()
            }
            reference = f"{block.name}/{node.name}"
            yield Call(
                block=block.name,
                node=node.name,
                op=node.op,
                inputs=tuple(names[ref] for ref in node.inputs),
                output=f"{prefix}/{reference}",
                shapes=tuple(layout.graph.shapes[ref] for ref in (*node.inputs, reference)),
                own=_of_member(node.op, own, member),
            )
            names[reference] = f"{prefix}/{reference}"


def _of_member(op: Op, own: dict[str, NDArray[Any]], member: int) -> dict[str, NDArray[Any]]:
    """Return one member's arrays of an op that members share."""
    if getattr(op, "members", None) is not None:
        return {name: array[member] for name, array in own.items()}
    if getattr(op, "factors", None) is None:
        return own
    weight, groups = own["weight"], getattr(op, "groups", 1)
    outputs, inputs = weight.shape[:2]
    of_inputs = own["input_factor"][member].reshape(groups, 1, inputs)
    scales = np.broadcast_to(of_inputs, (groups, outputs // groups, inputs)).reshape(outputs, inputs)
    scales = scales * own["output_factor"][member][:, None]
    scaled = {"weight": weight * scales.reshape(outputs, inputs, *[1] * (weight.ndim - 2))}
    return scaled | ({"bias": own["bias"][member]} if "bias" in own else {})
