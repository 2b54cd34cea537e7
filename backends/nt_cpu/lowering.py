"""Lowering of each op to operations of the native engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nt_core.checkpoint import Call
from nt_core.errors import GraphError
from nt_core.graph import ops
from nt_cpu.operations import Extent, Floats, Operation

FUNCTIONS = ("gelu", "silu", "tanh", "sigmoid")
MOST_TOKENS = 1 << 24
"""Largest vocabulary: values are float32, which names no larger whole numbers exactly."""

EPS_UNIT = 1e-15
"""Unit of a norm's eps in the native engine's words."""


def becomes(call: Call, kind: str, **more: Any) -> list[Operation]:
    """Return one operation of a kind."""
    extent = Extent.of(call.shapes[-1])
    return [Operation(kind, list(call.inputs), call.output, extent, shapes=call.shapes, op=call.op, **more)]


Lowering = Callable[[Call], list[Operation]]


def move(
    source: str,
    output: str,
    extent: Extent,
    loops: tuple[int, int, int],
    start: tuple[int, int],
    steps: tuple[tuple[int, int], ...],
    to: tuple[int, int],
    to_steps: tuple[tuple[int, int], ...],
) -> Operation:
    """Return a move: three loops, and the start and the steps of each side, as (channel, position)."""
    sides = [number for begin, along in ((start, steps), (to, to_steps)) for number in _flat(begin, along)]
    return Operation("move", [source], output, extent, words=(*loops, *sides))


def _flat(begin: tuple[int, int], steps: tuple[tuple[int, int], ...]) -> list[int]:
    return [*begin, *(number for step in steps for number in step)]


def place(
    source: str,
    taken: Extent,
    output: str,
    extent: Extent,
    *,
    channel: int = 0,
    position: int = 0,
    first: int = 0,
    first_position: int = 0,
) -> Operation:
    """Copy an extent's channels and positions from one place to another.

    Args:
        source: name of the value that is copied.
        taken: number of channels and positions to copy.
        output: name of the value that is written.
        extent: of the output.
        channel: first channel in the output.
        position: first position in the output.
        first: first channel in the source.
        first_position: first position in the source.
    """
    loops = (taken.channels, 1, taken.positions)
    steps = ((1, 0), (0, 0), (0, 1))
    return move(source, output, extent, loops, (first, first_position), steps, (channel, position), steps)


def flip(source: str, before: Extent, output: str, extent: Extent) -> Operation:
    """Exchange channels and positions."""
    loops = (before.channels, 1, before.positions)
    return move(
        source, output, extent, loops, (0, 0), ((1, 0), (0, 0), (0, 1)), (0, 0), ((0, 1), (0, 0), (1, 0))
    )


def _by_last_axis(lowering: Lowering) -> Lowering:
    """Extend a lowering on the last axis to images, whose width becomes the channels."""

    def lower(call: Call) -> list[Operation]:
        before, after = call.shapes[0], call.shapes[-1]
        if len(before) < 3:
            return lowering(call)
        channels, height, width = before
        rows, inside, result = channels * height, f"{call.output}: rows", f"{call.output}: result"
        to_rows = move(
            call.inputs[0],
            inside,
            Extent(width, rows, True),
            (channels, height, width),
            (0, 0),
            ((1, 0), (0, width), (0, 1)),
            (0, 0),
            ((0, height), (0, 1), (1, 0)),
        )
        shapes = ((rows, width), (rows, after[2]))
        of_rows = replace(call, inputs=(inside,), output=result, shapes=shapes)
        back = move(
            result,
            call.output,
            Extent.of(call.shapes[-1]),
            (channels, height, after[2]),
            (0, 0),
            ((0, height), (0, 1), (1, 0)),
            (0, 0),
            ((1, 0), (0, after[2]), (0, 1)),
        )
        return [to_rows, *lowering(of_rows), back]

    return lower


def _conv(call: Call) -> list[Operation]:
    op, weight = call.op, call.own["weight"]
    if op.groups > 1:
        each, per_group = op.in_channels // op.groups, op.out_channels // op.groups
        whole = np.zeros((op.out_channels, op.in_channels, *op.kernel), np.float32)
        for g in range(op.groups):
            rows = slice(g * per_group, (g + 1) * per_group)
            whole[rows, g * each : (g + 1) * each] = weight[rows]
        weight = whole
    return _product(call, weight)


def _linear(call: Call) -> list[Operation]:
    return _product(call, call.own["weight"][:, :, None, None])


def _product(call: Call, weight: Floats) -> list[Operation]:
    return becomes(call, "product", weight=weight, bias=call.own.get("bias"))


def _batch_norm(call: Call) -> list[Operation]:
    own = {name: array.astype(np.float64) for name, array in call.own.items()}
    scale = own["weight"] / np.sqrt(own["running_var"] + call.op.eps)
    shift = own["bias"] - own["running_mean"] * scale
    return becomes(call, "affine", scale=scale.astype(np.float32), shift=shift.astype(np.float32))


def _norm(call: Call) -> list[Operation]:
    own = call.own
    eps = round(call.op.eps / EPS_UNIT)
    return becomes(call, "norm", scale=own["weight"], bias=own.get("bias"), words=(eps,))


def _activation(call: Call) -> list[Operation]:
    if call.op.function != "relu":
        return becomes(call, "function", words=(FUNCTIONS.index(call.op.function),))
    one = np.ones(Extent.of(call.shapes[-1]).channels, np.float32)
    return becomes(call, "affine", scale=one, shift=0 * one, relu=True)


def _plain(kind: str) -> Lowering:
    return lambda call: becomes(call, kind)


def _flatten(call: Call) -> list[Operation]:
    before = Extent.of(call.shapes[0])
    in_order = len(call.shapes[0]) != 2  # a sequence is read place by place
    along = (before.positions, 1) if in_order else (1, before.channels)
    loops, steps = (before.channels, 1, before.positions), ((1, 0), (0, 0), (0, 1))
    to_steps = ((along[0], 0), (0, 0), (along[1], 0))
    return [
        move(call.inputs[0], call.output, Extent.of(call.shapes[-1]), loops, (0, 0), steps, (0, 0), to_steps)
    ]


def _concat(call: Call) -> list[Operation]:
    shapes, axis = call.shapes[:-1], call.op.axis
    made, done = [], 0
    for name, shape in zip(call.inputs, shapes, strict=True):
        one = Extent.of(shape)
        if len(shape) == 3 and axis == 2:
            channels, height, width = shape
            steps = ((1, 0), (0, width), (0, 1))
            to_steps = ((1, 0), (0, call.shapes[-1][2]), (0, 1))
            loops = (channels, height, width)
            made.append(
                move(name, call.output, Extent.of(call.shapes[-1]), loops, (0, 0), steps, (0, done), to_steps)
            )
        elif (axis == 0) == (len(shape) != 2):
            made.append(place(name, one, call.output, Extent.of(call.shapes[-1]), channel=done))
        else:
            behind = shape[2] if len(shape) == 3 else 1
            made.append(place(name, one, call.output, Extent.of(call.shapes[-1]), position=done * behind))
        done += shape[axis]
    return made


def _class_token(call: Call) -> list[Operation]:
    before = Extent.of(call.shapes[0])
    token = call.own["weight"].reshape(-1, 1)
    return [
        place(call.inputs[0], before, call.output, Extent.of(call.shapes[-1]), position=1),
        Operation("fill", [], call.output, Extent.of(call.shapes[-1]), table=(token,), words=(0, 1)),
    ]


def _positions(call: Call) -> list[Operation]:
    table, extent = np.ascontiguousarray(call.own["weight"].T), Extent.of(call.shapes[-1])
    name = f"{call.output}: table"
    return [
        Operation("fill", [], name, extent, table=(table,), words=(0, extent.positions)),
        Operation("add", [call.inputs[0], name], call.output, extent),
    ]


def _take_token(call: Call) -> list[Operation]:
    length = call.shapes[0][0]
    return [
        place(
            call.inputs[0],
            Extent.of(call.shapes[-1]),
            call.output,
            Extent.of(call.shapes[-1]),
            first_position=call.op.index % length,
        )
    ]


def _embedding(call: Call) -> list[Operation]:
    if call.op.vocabulary > MOST_TOKENS:
        raise GraphError(f"expected a vocabulary of at most {MOST_TOKENS}, found {call.op.vocabulary}")
    return becomes(call, "embedding", table=(call.own["weight"],), words=(call.op.vocabulary,))


def _transpose(call: Call) -> list[Operation]:
    return [flip(call.inputs[0], Extent.of(call.shapes[0]), call.output, Extent.of(call.shapes[-1]))]


def _to_sequence(call: Call) -> list[Operation]:
    return [place(call.inputs[0], Extent.of(call.shapes[0]), call.output, Extent.of(call.shapes[-1]))]


def _attention(call: Call) -> list[Operation]:
    op, (length, features) = call.op, call.shapes[0]
    size = features // op.heads
    table: tuple[Floats, ...] = ()
    if op.rotary_base is not None:
        angles = op.frequencies(np.arange(0, size, 2) / size)[:, None] * np.arange(length)
        table = (np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    words = (op.heads, op.heads // op.kv_heads, int(op.causal))
    return becomes(call, "attention", table=table, words=words)


def _average(call: Call) -> list[Operation]:
    if len(call.shapes[0]) == 1:
        raise GraphError(f"no average of a value of shape {call.shapes[0]}")
    return becomes(call, "global_average")


LOWERINGS: Mapping[type[ops.Op], Lowering] = {
    ops.Conv2d: _conv,
    ops.Linear: _by_last_axis(_linear),
    ops.Embedding: _embedding,
    ops.ClassToken: _class_token,
    ops.Positions: _positions,
    ops.BatchNorm: _batch_norm,
    ops.LayerNorm: _by_last_axis(_norm),
    ops.RMSNorm: _by_last_axis(_norm),
    ops.Activation: _activation,
    ops.MaxPool2d: _plain("max_pool"),
    ops.AvgPool2d: _plain("average_pool"),
    ops.GlobalAvgPool: _average,
    ops.Flatten: _flatten,
    ops.ToSequence: _to_sequence,
    ops.Transpose: _transpose,
    ops.TakeToken: _take_token,
    ops.Dropout: lambda _: [],
    ops.Add: _plain("add"),
    ops.Multiply: _plain("multiply"),
    ops.Concat: _concat,
    ops.Attention: _attention,
}
"""Every op of :data:`nt_core.graph.ops.OPS`."""
