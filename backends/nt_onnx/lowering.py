"""Lowering of each op to ONNX nodes.

Values are (B, channels, height, width), (B, length, features) or (B, features).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from nt_core.checkpoint import Call
from nt_core.graph import ops
from nt_onnx.writer import Writer

Lowering = Callable[[Writer, Call], str]
"""Function that writes an op's nodes and returns its output's name; of an op without effect, its input's."""


def _conv(w: Writer, call: Call) -> str:
    op = call.op
    (top, bottom), (left, right) = op.padding
    return w.add(
        "Conv",
        [call.inputs[0], *_own(w, call, "weight", "bias")],
        call.output,
        kernel_shape=op.kernel,
        strides=op.stride,
        pads=[top, left, bottom, right],
        group=op.groups,
    )


def _linear(w: Writer, call: Call) -> str:
    if len(call.shapes[0]) == 1:
        return w.add("Gemm", [call.inputs[0], *_own(w, call, "weight", "bias")], call.output, transB=1)
    weight = w.constant(f"{call.output}.weight", call.own["weight"].T)
    if "bias" not in call.own:
        return w.add("MatMul", [call.inputs[0], weight], call.output)
    product = w.add("MatMul", [call.inputs[0], weight], f"{call.output}: product")
    return w.add("Add", [product, *_own(w, call, "bias")], call.output)


def _embedding(w: Writer, call: Call) -> str:
    return w.add("Gather", [*_own(w, call, "weight"), call.inputs[0]], call.output)


def _class_token(w: Writer, call: Call) -> str:
    out, features = call.output, call.shapes[0][1]
    batch = w.add("Shape", call.inputs, f"{out}: batch", start=0, end=1)
    rest = w.constant(f"{out}: rest", [1, features])
    shape = w.add("Concat", [batch, rest], f"{out}: shape", axis=0)
    token = w.constant(f"{out}.weight", call.own["weight"].reshape(1, 1, features))
    tokens = w.add("Expand", [token, shape], f"{out}: tokens")
    return w.add("Concat", [tokens, call.inputs[0]], out, axis=1)


def _positions(w: Writer, call: Call) -> str:
    return w.add("Add", [call.inputs[0], *_own(w, call, "weight")], call.output)


def _batch_norm(w: Writer, call: Call) -> str:
    arrays = _own(w, call, "weight", "bias", "running_mean", "running_var")
    return w.add("BatchNormalization", [call.inputs[0], *arrays], call.output, epsilon=call.op.eps)


def _layer_norm(w: Writer, call: Call) -> str:
    return w.add(
        "LayerNormalization",
        [call.inputs[0], *_own(w, call, "weight", "bias")],
        call.output,
        axis=-1,
        epsilon=call.op.eps,
    )


def _rms_norm(w: Writer, call: Call) -> str:
    out, x = call.output, call.inputs[0]
    square = w.add("Mul", [x, x], f"{out}: square")
    last = w.constant(f"{out}: last axis", [-1])
    mean = w.add("ReduceMean", [square, last], f"{out}: mean", keepdims=1)
    eps = w.constant(f"{out}: eps", np.array(call.op.eps))
    root = w.add("Sqrt", [w.add("Add", [mean, eps], f"{out}: shifted")], f"{out}: root")
    return w.add("Mul", [w.add("Div", [x, root], f"{out}: scaled"), *_own(w, call, "weight")], out)


def _activation(w: Writer, call: Call) -> str:
    x = call.inputs[0]
    match call.op.function:
        case "silu":
            return w.add("Mul", [x, w.add("Sigmoid", [x], f"{call.output}: gate")], call.output)
        case "gelu":
            return w.add("Gelu", [x], call.output, approximate="none")
        case function:
            return w.add(function.capitalize(), [x], call.output)


def _max_pool(w: Writer, call: Call) -> str:
    (top, bottom), (left, right) = call.op.padding
    pads = [top, left, bottom, right]
    return _pool("MaxPool", w, call, pads=pads)


def _pool(kind: str, w: Writer, call: Call, **more: list[int]) -> str:
    return w.add(kind, call.inputs, call.output, kernel_shape=call.op.kernel, strides=call.op.stride, **more)


def _global_average(w: Writer, call: Call) -> str:
    axes = [2, 3] if len(call.shapes[0]) == 3 else [1]
    return w.add(
        "ReduceMean", [call.inputs[0], w.constant(f"{call.output}: axes", axes)], call.output, keepdims=0
    )


def _to_sequence(w: Writer, call: Call) -> str:
    channels, height, width = call.shapes[0]
    shape = w.constant(f"{call.output}: shape", [0, channels, height * width])
    flat = w.add("Reshape", [call.inputs[0], shape], f"{call.output}: flat")
    return w.add("Transpose", [flat], call.output, perm=[0, 2, 1])


def _take_token(w: Writer, call: Call) -> str:
    index = w.constant(f"{call.output}: index", np.array(call.op.index % call.shapes[0][0]))
    return w.add("Gather", [call.inputs[0], index], call.output, axis=1)


def _folded(kind: str, w: Writer, call: Call) -> str:
    """Apply an op of two values to any number of values, one after the other."""
    found = call.inputs[0]
    for number, name in enumerate(call.inputs[1:], start=2):
        last = number == len(call.inputs)
        found = w.add(kind, [found, name], call.output if last else f"{call.output}: first {number}")
    return found


def _attention(w: Writer, call: Call) -> str:
    op, out, (length, features) = call.op, call.output, call.shapes[0]
    size = features // op.heads
    q, k, v = (
        _heads(w, name, f"{out}: {what}", heads, length, size)
        for name, what, heads in zip(call.inputs, "qkv", (op.heads, op.kv_heads, op.kv_heads), strict=True)
    )
    if op.rotary_base is not None:
        q, k = (_rotate(w, name, op, length, size) for name in (q, k))
    if op.kv_heads < op.heads:
        k, v = (_repeat(w, name, op.heads, op.kv_heads) for name in (k, v))
    scale = w.constant(f"{out}: scale", np.array(1 / math.sqrt(size)))
    keys = w.add("Transpose", [k], f"{out}: keys", perm=[0, 1, 3, 2])
    products = w.add("MatMul", [q, keys], f"{out}: products")
    scores = w.add("Mul", [products, scale], f"{out}: scores")
    if op.causal:
        seen = w.constant(f"{out}: seen", np.where(np.tri(length, dtype=bool), 0.0, -np.inf))
        scores = w.add("Add", [scores, seen], f"{out}: masked")
    share = w.add("Softmax", [scores], f"{out}: share", axis=-1)
    found = w.add(
        "Transpose", [w.add("MatMul", [share, v], f"{out}: found")], f"{out}: rows", perm=[0, 2, 1, 3]
    )
    return w.add("Reshape", [found, w.constant(f"{out}: shape", [0, length, features])], out)


def _heads(w: Writer, name: str, output: str, heads: int, length: int, size: int) -> str:
    """Divide features among heads. (B, T, heads·d) → (B, heads, T, d)."""
    shape = w.constant(f"{output} shape", [0, length, heads, size])
    return w.add("Transpose", [w.add("Reshape", [name, shape], f"{output} split")], output, perm=[0, 2, 1, 3])


def _rotate(w: Writer, name: str, op: ops.Attention, length: int, size: int) -> str:
    half = size // 2
    angles = np.arange(length)[:, None] * op.frequencies(np.arange(0, size, 2) / size)
    cosine = w.constant(f"{name} cosine", np.tile(np.cos(angles), 2))
    sine = w.constant(f"{name} sine", np.concatenate([-np.sin(angles), np.sin(angles)], axis=1))
    swapped = w.constant(f"{name} swapped", np.r_[half:size, :half])
    other = w.add("Gather", [name, swapped], f"{name} other half", axis=3)
    parts = [w.add("Mul", pair, f"{pair[0]} × {pair[1]}") for pair in ([name, cosine], [other, sine])]
    return w.add("Add", parts, f"{name} turned")


def _repeat(w: Writer, name: str, heads: int, kv_heads: int) -> str:
    """Repeat keys or values for the heads that share them. (B, kv_heads, T, d) → (B, heads, T, d)."""
    which = w.constant(f"{name} which", np.repeat(np.arange(kv_heads), heads // kv_heads))
    return w.add("Gather", [name, which], f"{name} repeated", axis=1)


def _own(w: Writer, call: Call, *names: str) -> list[str]:
    """Add some of an op's arrays as constants; names without an array are left out."""
    return [w.constant(f"{call.output}.{name}", call.own[name]) for name in names if name in call.own]


LOWERINGS: Mapping[type[ops.Op], Lowering] = {
    ops.Conv2d: _conv,
    ops.Linear: _linear,
    ops.Embedding: _embedding,
    ops.ClassToken: _class_token,
    ops.Positions: _positions,
    ops.BatchNorm: _batch_norm,
    ops.LayerNorm: _layer_norm,
    ops.RMSNorm: _rms_norm,
    ops.Activation: _activation,
    ops.MaxPool2d: _max_pool,
    ops.AvgPool2d: partial(_pool, "AveragePool"),
    ops.GlobalAvgPool: _global_average,
    ops.Flatten: lambda w, call: w.add("Flatten", call.inputs, call.output, axis=1),
    ops.ToSequence: _to_sequence,
    ops.Transpose: lambda w, call: w.add("Transpose", call.inputs, call.output, perm=[0, 2, 1]),
    ops.TakeToken: _take_token,
    ops.Dropout: lambda _, call: call.inputs[0],
    ops.Add: partial(_folded, "Add"),
    ops.Multiply: partial(_folded, "Mul"),
    ops.Concat: lambda w, call: w.add("Concat", call.inputs, call.output, axis=call.op.axis + 1),
    ops.Attention: _attention,
}
"""Every op of :data:`nt_core.graph.ops.OPS`."""
