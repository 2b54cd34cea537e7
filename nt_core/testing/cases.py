"""Small named networks on which a backend is compared with the reference: one or more for every op.

Images are not square and odd in size, strides do not divide them, and biases are not zero. Every op is placed
between trained weights, so that a wrong gradient of its input changes the gradients of the weights below it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

from nt_core.errors import GraphError
from nt_core.graph import BlockGraph, BlockWriter, Features, GraphBuilder, Image, Tensor, Tokens, ops
from nt_core.spec import EnsembleSpec
from nt_core.structure import MIMO, BatchEnsemble, Fission, Independent, Layout, MultiHead, Single, Structure
from nt_core.testing.models import MODELS
from nt_core.topology import Dense, Static

Write = Callable[[BlockWriter, Tensor], Tensor]
"""Function that adds the tested ops to a block: input tensor -> output tensor."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network to compare.

    Attributes:
        name: unique; also the seed of the case's values and inputs.
        graph: the network of one member.
        structure: sharing of the graph among members.
        kind: ``op`` or ``model``, which have different tolerances.
        ties: whether values and inputs are small multiples of a power of two, so that sums are exact in any
            order, and equal values (also zeros) are common.
        batch: number of examples.
    """

    name: str
    graph: BlockGraph
    structure: Structure
    kind: Literal["op", "model"]
    ties: bool = False
    batch: int = 6

    @cached_property
    def layout(self) -> Layout:
        """The graph spread over backbone and heads."""
        return self.structure.layout(self.graph)

    @cached_property
    def spec(self) -> EnsembleSpec:
        """Spec for the backend to compile; values and masks are given by the case."""
        topology = Static(sparsity=0.0) if self.layout.divided else Dense()
        return EnsembleSpec(graph=self.graph, structure=self.structure, topology=topology)

    def __str__(self) -> str:
        return self.name


def op_cases() -> tuple[Case, ...]:
    """Return small cases that together hold every op of :data:`nt_core.graph.ops.OPS`.

    Dropout has rate 0 in these cases; its random numbers are checked by
    :func:`nt_core.testing.conformance.check_dropout`.

    Example:
        >>> [case.name for case in op_cases() if case.name.startswith("concat")]
        ['concat_channels', 'concat_height', 'concat_width']
    """
    return tuple(
        Case(name=name, graph=make(write), structure=Single(), kind="op", ties=name.endswith("_ties"))
        for make, table in (
            (_on_image, {**_CONVOLUTIONS, **_POOLS, **_IMAGES}),
            (_on_features, _FEATURES),
            (_on_sequence, _SEQUENCES),
        )
        for name, write in table.items()
    )


def model_cases(graphs: Mapping[str, BlockGraph] | None = None) -> tuple[Case, ...]:
    """Return whole models, each as a single network, two independent networks, and split at several places.

    Models of this package also come with members that share kernels.

    Args:
        graphs: models by name, in addition to :data:`nt_core.testing.models.MODELS`.

    Example:
        >>> [case.name for case in model_cases() if case.name.startswith("mlp/")][:5]
        ['mlp/single', 'mlp/independent2', 'mlp/split0', 'mlp/split_hidden1', 'mlp/split2']
    """
    ours = {name: make() for name, make in MODELS.items()}
    every = ours | dict(graphs or {})
    return tuple(
        Case(name=f"{model}/{name}", graph=graph, structure=structure, kind="model")
        for model, graph in every.items()
        for name, structure in (
            structures_of(graph) | (sharing_structures_of(graph) if model in ours else {})
        ).items()
    )


def structures_of(graph: BlockGraph) -> dict[str, Structure]:
    """Return structures whose members are heads: split below, inside (by name) and above all blocks."""
    counted = graph.counted
    chosen: dict[str, Structure] = {"single": Single(), "independent2": Independent(count=2)}
    chosen["split0"] = MultiHead(split=0, heads=2)
    if len(counted) > 1:
        middle = counted[(len(counted) - 1) // 2]
        chosen[f"split_{middle}"] = MultiHead(split=middle, heads=3)
    if counted:
        chosen[f"split{len(counted)}"] = MultiHead(split=len(counted), heads=2)
    return chosen


def sharing_structures_of(graph: BlockGraph) -> dict[str, Structure]:
    """Return structures in which members share kernels: each kind that the graph can have."""
    chosen: dict[str, Structure] = {"fission2": Fission(count=2)}
    chosen["batch_ensemble2"] = BatchEnsemble(count=2)
    chosen["batch_ensemble3"] = BatchEnsemble(count=3, batch="tile", norms="per_member")
    mimo = MIMO(count=3)
    with suppress(GraphError):
        mimo.layout(graph)
        chosen["mimo3"] = mimo
    return chosen


def _on_image(write: Write) -> BlockGraph:
    """Write ops between a convolution of 7 × 5 images and a linear layer."""
    net = GraphBuilder(Image(channels=2, height=7, width=5))
    with net.stem() as b:
        b.out = b.conv(b.inp, 4, kernel=(3, 1), pad=((1, 1), (0, 0)), bias=True)
    with net.block("ops") as b:
        b.out = write(b, b.inp)
    with net.classifier() as b:
        flat = b.inp if len(b.inp.shape) == 1 else b.flatten(b.inp)
        b.out = b.linear(flat, 3)
    return net.build()


def _on_features(write: Write) -> BlockGraph:
    net = GraphBuilder(Features(count=5))
    with net.block("ops") as b:
        b.out = write(b, b.linear(b.inp, 6))
    with net.classifier() as b:
        b.out = b.linear(b.inp, 3)
    return net.build()


def _on_sequence(write: Write) -> BlockGraph:
    """Write ops between an embedding of few words, so that words recur, and a linear layer."""
    net = GraphBuilder(Tokens(length=7, vocabulary=5))
    with net.stem() as b:
        b.out = b.embedding(b.inp, 5, 8)
    with net.block("ops") as b:
        b.out = write(b, b.inp)
    with net.classifier() as b:
        b.out = b.linear(b.inp, 5)
    return net.build()


def _max_pool(b: BlockWriter, x: Tensor, kernel: ops.Pair, stride: ops.Pair, padding: ops.Padding) -> Tensor:
    return b.add_op(lambda: ops.MaxPool2d(kernel=kernel, stride=stride, padding=padding), x)


def _avg_pool(b: BlockWriter, x: Tensor, kernel: ops.Pair, stride: ops.Pair) -> Tensor:
    return b.add_op(lambda: ops.AvgPool2d(kernel=kernel, stride=stride), x)


def _batch_norm(b: BlockWriter, x: Tensor, momentum: float, eps: float) -> Tensor:
    return b.add_op(lambda: ops.BatchNorm(channels=x.shape[0], momentum=momentum, eps=eps), x)


def _layer_norm(b: BlockWriter, x: Tensor, eps: float) -> Tensor:
    return b.add_op(lambda: ops.LayerNorm(features=x.shape[-1], eps=eps), x)


def _attend(
    b: BlockWriter,
    x: Tensor,
    kv_heads: int,
    causal: bool,
    rotary_base: float | None,
    rotary_scaling: ops.AnyRotaryScaling | None = None,
) -> Tensor:
    """Attend with four heads of size 6, because rotary layouts and bases cannot be told apart at size 2."""
    keys, values = b.linear(x, 6 * kv_heads), b.linear(x, 6 * kv_heads)
    return b.attention(
        b.linear(x, 24),
        keys,
        values,
        heads=4,
        kv_heads=kv_heads,
        causal=causal,
        rotary_base=rotary_base,
        rotary_scaling=rotary_scaling,
    )


LLAMA3 = ops.Llama3Scaling(factor=8.0, low_turns=0.2, high_turns=0.6, original_length=5)
"""A scaling of which a head of size 6 has a frequency in each of the three ranges, with the base 10."""


def _activation(function: Literal["relu", "gelu", "silu", "tanh", "sigmoid"]) -> Write:
    return lambda b, x: b.activation(x, function)


def _concat(axis: int) -> Write:
    return lambda b, x: (
        b.concat(x, _avg_pool(b, x, _SHRINK[axis], (1, 1)), x, axis=axis)
        if axis
        else b.concat(x, b.conv(x, 3, kernel=1), x)
    )


_SHRINK: Mapping[int, ops.Pair] = {1: (3, 1), 2: (1, 2)}
"""Windows that shorten one axis of an image only, so that joined tensors differ in length there."""

_CONVOLUTIONS: Mapping[str, Write] = {
    "conv2d": lambda b, x: b.conv(x, 3, kernel=3, pad=1, bias=True),
    "conv2d_stride": lambda b, x: b.conv(x, 3, kernel=3, stride=2, pad=1),
    "conv2d_strides": lambda b, x: b.conv(x, 3, kernel=(2, 3), stride=(3, 2)),
    "conv2d_asymmetric": lambda b, x: b.conv(x, 3, kernel=3, stride=2, pad=((0, 1), (2, 0)), bias=True),
    "conv2d_wide_padding": lambda b, x: b.conv(x, 3, kernel=(1, 2), pad=((2, 0), (0, 3))),
    "conv2d_groups": lambda b, x: b.conv(x, 6, kernel=3, stride=2, pad=1, groups=2, bias=True),
    "conv2d_depthwise": lambda b, x: b.conv(x, 4, kernel=(3, 2), pad=((1, 1), (0, 1)), groups=4),
    "conv2d_pointwise": lambda b, x: b.conv(x, 5, kernel=1),
    "conv2d_pointwise_stride": lambda b, x: b.conv(x, 5, kernel=1, stride=2),
    "conv2d_whole_image": lambda b, x: b.conv(x, 5, kernel=(7, 5)),
}
_POOLS: Mapping[str, Write] = {
    "max_pool2d": partial(_max_pool, kernel=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0))),
    "max_pool2d_overlapping": partial(_max_pool, kernel=(3, 2), stride=(2, 1), padding=((1, 1), (1, 0))),
    "max_pool2d_asymmetric": partial(_max_pool, kernel=(3, 3), stride=(2, 2), padding=((0, 1), (2, 0))),
    "max_pool2d_ties": partial(_max_pool, kernel=(3, 3), stride=(2, 2), padding=((1, 1), (1, 1))),
    "avg_pool2d": partial(_avg_pool, kernel=(3, 2), stride=(2, 2)),
    "avg_pool2d_gaps": partial(_avg_pool, kernel=(1, 2), stride=(2, 3)),
    "global_avg_pool": lambda b, x: b.global_avg_pool(x),
}
_IMAGES: Mapping[str, Write] = {
    "batch_norm_image": partial(_batch_norm, momentum=0.3, eps=1e-5),
    "batch_norm_eps": partial(_batch_norm, momentum=0.01, eps=1e-2),
    "flatten": lambda b, x: b.relu(b.flatten(x)),
    "to_sequence": lambda b, x: b.linear(b.to_sequence(x), 3),
    "relu_ties": lambda b, x: b.relu(x),
    "concat_channels": _concat(0),
    "concat_height": _concat(1),
    "concat_width": _concat(2),
    "residual": lambda b, x: b.add(b.conv(b.relu(x), 4, kernel=3, pad=1), x),
}
_FEATURES: Mapping[str, Write] = {
    "linear": lambda b, x: b.linear(x, 4),
    "linear_without_bias": lambda b, x: b.linear(x, 4, bias=False),
    "batch_norm": partial(_batch_norm, momentum=0.2, eps=1e-3),
    "relu": _activation("relu"),
    "gelu": _activation("gelu"),
    "silu": _activation("silu"),
    "tanh": _activation("tanh"),
    "sigmoid": _activation("sigmoid"),
    "dropout_off": lambda b, x: b.add_op(lambda: ops.Dropout(rate=0.0), x),
    "add": lambda b, x: b.add(x, b.linear(x, 6), x),
    "multiply": lambda b, x: b.multiply(x, b.linear(x, 6), x),
}
_SEQUENCES: Mapping[str, Write] = {
    "embedding": lambda b, x: b.linear(x, 4),
    "class_token": lambda b, x: b.class_token(x),
    "positions": lambda b, x: b.positions(x),
    "take_token": lambda b, x: b.take_token(x, 3),
    "transpose": lambda b, x: b.linear(b.transpose(x), 4),
    "global_avg_pool_sequence": lambda b, x: b.global_avg_pool(x),
    "layer_norm": partial(_layer_norm, eps=1e-3),
    "rms_norm": lambda b, x: b.rms_norm(x, eps=1e-3),
    "attention": partial(_attend, kv_heads=4, causal=False, rotary_base=None),
    "attention_causal": partial(_attend, kv_heads=4, causal=True, rotary_base=None),
    "attention_grouped": partial(_attend, kv_heads=2, causal=False, rotary_base=None),
    "attention_rotary": partial(_attend, kv_heads=4, causal=False, rotary_base=100.0),
    "attention_linear_scaling": partial(
        _attend, kv_heads=2, causal=True, rotary_base=100.0, rotary_scaling=ops.LinearScaling(factor=4.0)
    ),
    "attention_llama3_scaling": partial(
        _attend, kv_heads=4, causal=True, rotary_base=10.0, rotary_scaling=LLAMA3
    ),
    "attention_all": partial(_attend, kv_heads=1, causal=True, rotary_base=10000.0),
}
