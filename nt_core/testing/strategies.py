"""Hypothesis strategies: block graphs, structures, masks and arrays of any kind that the package accepts.

Only tests import this module, because the core does not depend on Hypothesis.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import DTypeLike, NDArray

from nt_core.graph import BlockGraph, BlockWriter, Features, GraphBuilder, Image, Tensor, Tokens
from nt_core.graph.ops import Padding
from nt_core.masks import Mask
from nt_core.structure import Independent, MultiHead, Single, Structure
from nt_core.testing.cases import Case
from nt_core.values import Shape

FUNCTIONS: tuple[Literal["relu", "gelu", "silu", "tanh", "sigmoid"], ...] = (
    "relu",
    "gelu",
    "silu",
    "tanh",
    "sigmoid",
)


@st.composite
def perceptrons(draw: st.DrawFn) -> BlockGraph:
    """Draw perceptrons of 0 to 4 hidden layers, some narrow to one unit, with any mix of norms."""
    net = GraphBuilder(Features(count=draw(st.integers(1, 6))))
    for number, width in enumerate(draw(st.lists(st.integers(1, 6), max_size=4)), start=1):
        with net.block(f"hidden{number}") as b:
            h = b.linear(b.inp, width, bias=draw(st.booleans()))
            b.out = b.activation(_maybe_norm(draw, b, h), draw(st.sampled_from(FUNCTIONS)))
    with net.classifier() as b:
        b.out = b.linear(b.inp, draw(st.integers(1, 4)))
    return net.build()


@st.composite
def conv_nets(draw: st.DrawFn) -> BlockGraph:
    """Draw small convolutional networks.

    Images are of any proportions. Blocks convolve (kernels to 3 × 3, strides to 2, groups, asymmetric
    padding), pool, add their input, or concatenate a tensor of the same size from far below.
    """
    net = GraphBuilder(
        Image(channels=draw(st.integers(1, 3)), height=draw(st.integers(1, 7)), width=draw(st.integers(1, 7)))
    )
    with net.stem() as b:
        b.out = _convolution(draw, b, b.inp)
    earlier = [net.last]
    for number in range(1, draw(st.integers(0, 3)) + 1):
        with net.block(f"block{number}") as b:
            h = _convolution(
                draw, b, b.activation(_maybe_norm(draw, b, b.inp), draw(st.sampled_from(FUNCTIONS)))
            )
            b.out = _pooled(draw, b, _joined(draw, b, h, earlier))
        earlier.append(net.last)
    with net.classifier() as b:
        flat = b.flatten(b.inp) if draw(st.booleans()) else b.global_avg_pool(b.inp)
        b.out = b.linear(flat, draw(st.integers(1, 4)))
    return net.build()


@st.composite
def transformers(draw: st.DrawFn) -> BlockGraph:
    """Draw tiny transformers of 0 to 2 blocks over token numbers."""
    kv_heads, shared, half = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads, size = kv_heads * shared, 2 * half
    vocabulary = draw(st.integers(1, 6))
    causal, base = draw(st.booleans()), draw(st.sampled_from([None, 10.0, 10000.0]))
    rms = draw(st.booleans())
    net = GraphBuilder(Tokens(length=draw(st.integers(1, 5)), vocabulary=vocabulary))
    with net.stem() as b:
        b.out = b.embedding(b.inp, vocabulary, heads * size)
    for number in range(1, draw(st.integers(0, 2)) + 1):
        with net.block(f"block{number}") as b:
            x = b.rms_norm(b.inp) if rms else b.layer_norm(b.inp)
            q, k, v = (b.linear(x, n * size, bias=False) for n in (heads, kv_heads, kv_heads))
            h = b.attention(q, k, v, heads=heads, kv_heads=kv_heads, causal=causal, rotary_base=base)
            h = b.add(b.inp, b.linear(h, heads * size, bias=False))
            gate = b.activation(b.linear(h, 3), draw(st.sampled_from(FUNCTIONS)))
            b.out = b.add(h, b.linear(b.multiply(gate, b.linear(h, 3)), heads * size))
    with net.classifier() as b:
        b.out = b.linear(b.rms_norm(b.inp), vocabulary, bias=False)
    return net.build()


@st.composite
def patch_nets(draw: st.DrawFn) -> BlockGraph:
    """Draw networks that cut an image of any proportions into patches and mix them, over 0 to 2 blocks."""
    height, width, features = (draw(st.integers(1, 4)) for _ in range(3))
    net = GraphBuilder(Image(channels=draw(st.integers(1, 2)), height=height, width=width))
    with net.stem() as b:
        kernel = draw(st.integers(1, height)), draw(st.integers(1, width))
        x = b.to_sequence(b.conv(b.inp, features, kernel=kernel, stride=kernel, bias=draw(st.booleans())))
        x = b.class_token(x) if draw(st.booleans()) else x
        b.out = b.positions(x) if draw(st.booleans()) else x
    for number in range(1, draw(st.integers(0, 2)) + 1):
        with net.block(f"block{number}") as b:
            mixed = b.activation(b.linear(b.transpose(b.inp), 3), draw(st.sampled_from(FUNCTIONS)))
            b.out = b.add(b.inp, b.transpose(b.linear(mixed, b.inp.shape[0])))
    with net.classifier() as b:
        last = b.inp.shape[0] - 1
        write = draw(st.sampled_from([b.flatten, b.global_avg_pool, lambda x: b.take_token(x, last)]))
        b.out = b.linear(write(b.inp), draw(st.integers(1, 4)))
    return net.build()


@cache  # a test draws from it thousands of times; making it each time takes as long
def block_graphs() -> st.SearchStrategy[BlockGraph]:
    """Draw networks of any kind."""
    return st.one_of(perceptrons(), conv_nets(), transformers(), patch_nets())


def structures(graph: BlockGraph, *, most: int = 3) -> st.SearchStrategy[Structure]:
    """Draw a structure that fits a graph: any kind, any split by number or by name, 1 to most members."""
    return _structures(tuple(graph.counted), most)


@cache
def _structures(counted: tuple[str, ...], most: int) -> st.SearchStrategy[Structure]:
    members = st.integers(1, most)
    splits = st.one_of(st.integers(0, len(counted)), *[st.just(name) for name in counted])
    return st.one_of(
        st.just(Single()),
        st.builds(Independent, count=members),
        st.builds(MultiHead, split=splits, heads=members),
    )


@st.composite
def cases(draw: st.DrawFn, graphs: st.SearchStrategy[BlockGraph] | None = None) -> Case:
    """Draw a network and a structure that fits it, as a case for the conformance suite."""
    graph = draw(block_graphs() if graphs is None else graphs)
    name = f"drawn{draw(st.integers(0, 2**16))}"
    return Case(name=name, graph=graph, structure=draw(structures(graph)), kind="model", batch=4)


@cache
def weight_shapes() -> st.SearchStrategy[Shape]:
    """Draw shapes of weights: one element, very tall, very wide, and convolution kernels."""
    side, few = st.integers(1, 300), st.integers(1, 3)
    return st.one_of(
        st.just((1, 1)),
        st.tuples(side, few),
        st.tuples(few, side),
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        st.tuples(st.integers(1, 6), st.integers(1, 6), few, few),
    )


@st.composite
def masks(draw: st.DrawFn, shape: Shape | None = None) -> Mask:
    """Draw a mask of a given shape, or of any shape, with any number of active elements."""
    shape = draw(weight_shapes()) if shape is None else shape
    size = math.prod(shape)
    count = draw(st.one_of(st.sampled_from([0, min(1, size), size]), st.integers(0, size)))
    order = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).permutation(size)
    return Mask.from_flat(shape, np.sort(order[:count]))


def floats_with_ties(shape: Shape, dtype: DTypeLike = np.float64) -> st.SearchStrategy[NDArray[Any]]:
    """Draw finite arrays in which equal values, equal magnitudes and both zeros are common."""
    few = st.sampled_from([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0])
    width: Literal[32, 64] = 32 if np.dtype(dtype) == np.float32 else 64
    any_float = st.floats(-4, 4, width=width)
    return st.one_of(
        hnp.arrays(dtype, shape, elements=few),
        hnp.arrays(dtype, shape, elements=st.one_of(few, any_float)),
    )


def _maybe_norm(draw: st.DrawFn, b: BlockWriter, x: Tensor) -> Tensor:
    return b.norm(x) if draw(st.booleans()) else x


def _convolution(draw: st.DrawFn, b: BlockWriter, x: Tensor) -> Tensor:
    """Convolve; every other time the shape is kept, so that sums and concatenations find partners."""
    channels, height, width = x.shape
    groups = draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
    bias = draw(st.booleans())
    if draw(st.booleans()):
        kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        pad: Padding = ((kernel[0] // 2, (kernel[0] - 1) // 2), ((kernel[1] - 1) // 2, kernel[1] // 2))
        return b.conv(x, channels, kernel=kernel, pad=pad, groups=groups, bias=bias)
    kernel = (draw(st.integers(1, min(3, height + 2))), draw(st.integers(1, min(3, width + 2))))
    pad = (_side(draw, height, kernel[0]), _side(draw, width, kernel[1]))
    stride = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    out = groups * draw(st.integers(1, 3))
    return b.conv(x, out, kernel=kernel, stride=stride, pad=pad, groups=groups, bias=bias)


def _side(draw: st.DrawFn, size: int, kernel: int) -> tuple[int, int]:
    """Draw the padding before and after one axis, enough for one window."""
    before = draw(st.integers(0, 2))
    return before, draw(st.integers(max(0, kernel - size - before), 2))


def _joined(draw: st.DrawFn, b: BlockWriter, h: Tensor, earlier: list[Tensor]) -> Tensor:
    """Add or concatenate an earlier tensor that fits, if there is one and the draw says so."""
    alike = [t for t in earlier if t.shape == h.shape]
    beside = [t for t in earlier if t.shape[1:] == h.shape[1:]]
    how = draw(
        st.sampled_from(["add"] * bool(alike) + ["multiply"] * bool(alike) + ["concat"] * bool(beside) + [""])
    )
    if how == "add":
        return b.add(h, draw(st.sampled_from(alike)))
    if how == "multiply":
        return b.multiply(h, draw(st.sampled_from(alike)))
    return b.concat(h, draw(st.sampled_from(beside))) if how == "concat" else h


def _pooled(draw: st.DrawFn, b: BlockWriter, h: Tensor) -> Tensor:
    kind = draw(st.sampled_from(["", "max", "avg"] if min(h.shape[1:]) > 1 else ["", "max"]))
    if kind == "avg":
        return b.avg_pool(h, kernel=2, stride=draw(st.integers(1, 2)))
    padding: Padding = ((1, 0), (0, 1))
    return b.max_pool(h, kernel=2, stride=draw(st.integers(1, 2)), pad=padding) if kind == "max" else h
