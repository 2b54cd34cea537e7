"""Tiny whole models for the conformance suite; the core may not import the models' room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from nt_core.graph import BlockGraph, BlockWriter, Features, GraphBuilder, Image, Tensor, Tokens


def perceptron(*, norm: bool = False) -> BlockGraph:
    """Make a perceptron of two hidden layers, with or without batch normalisation."""
    net = GraphBuilder(Features(count=7))
    for number, width in enumerate((6, 5), start=1):
        with net.block(f"hidden{number}") as b:
            h = b.linear(b.inp, width)
            b.out = b.relu(b.norm(h) if norm else h)
    with net.classifier() as b:
        b.out = b.linear(b.inp, 3)
    return net.build()


def skipping() -> BlockGraph:
    """Make a convolutional network in which blocks read the input and blocks far below.

    At any split, several tensors cross from the backbone to the heads.
    """
    net = GraphBuilder(Image(channels=2, height=7, width=5))
    with net.stem() as b:
        image = b.inp
        first = b.out = b.conv(b.inp, 4, kernel=3, pad=1)
    with net.block("residual") as b:
        h = b.conv(b.relu(b.norm(b.inp)), 4, kernel=3, pad=1, groups=2)
        b.out = b.add(h, b.inp, first)
    with net.block("down") as b:
        shortcut = b.conv(b.inp, 6, kernel=1, stride=2)
        b.out = b.add(b.conv(b.relu(b.norm(b.inp)), 6, kernel=3, stride=2, pad=((1, 1), (1, 1))), shortcut)
    with net.block("joined") as b:
        below = b.max_pool(first, kernel=3, stride=2, pad=1)
        pixels = b.conv(image, 2, kernel=3, stride=2, pad=1, bias=True)
        b.out = b.relu(b.norm(b.concat(b.inp, below, pixels)))
    with net.classifier() as b:
        b.out = b.linear(b.flatten(b.avg_pool(b.inp, kernel=2)), 3)
    return net.build()


def language_model() -> BlockGraph:
    """Make a transformer of two blocks: rotary causal attention with shared key/value heads, SwiGLU."""
    vocabulary, features = 11, 16
    net = GraphBuilder(Tokens(length=6, vocabulary=vocabulary))
    with net.stem() as b:
        b.out = b.embedding(b.inp, vocabulary, features)
    for number in (1, 2):
        with net.block(f"block{number}") as b:
            h = b.add(b.inp, _attention(b, b.rms_norm(b.inp)))
            b.out = b.add(h, _swiglu(b, b.rms_norm(h), hidden=10))
    with net.classifier() as b:
        b.out = b.linear(b.rms_norm(b.inp), vocabulary, bias=False)
    return net.build()


def _attention(b: BlockWriter, x: Tensor) -> Tensor:
    queries, keys, values = (
        b.linear(x, n, bias=False) for n in (x.shape[1], x.shape[1] // 2, x.shape[1] // 2)
    )
    mixed = b.attention(queries, keys, values, heads=4, kv_heads=2, causal=True, rotary_base=10000.0)
    return b.linear(mixed, x.shape[1], bias=False)


def _swiglu(b: BlockWriter, x: Tensor, hidden: int) -> Tensor:
    gate, up = b.linear(x, hidden, bias=False), b.linear(x, hidden, bias=False)
    return b.linear(b.multiply(b.activation(gate, "silu"), up), x.shape[1], bias=False)


def inverted_residuals(blocks: int = 17) -> BlockGraph:
    """Make a deep network of inverted residual blocks, those of MobileNetV2 (Sandler et al. 2018, table 2).

    Each block expands channels, filters each channel by itself, and projects them, every time followed by
    batch normalisation, so that rounding errors grow over many ops.
    """
    channels = 8
    net = GraphBuilder(Image(channels=3, height=16, width=16))
    with net.stem() as b:
        b.out = b.relu(b.norm(b.conv(b.inp, channels, kernel=3, stride=2, pad=1)))
    for number in range(blocks):
        wider, stride = 4 * (number % 4 == 1), 2 if number in (1, 3) else 1
        with net.block(f"block{number + 1}") as b:
            h = b.relu(b.norm(b.conv(b.inp, 6 * channels, kernel=1)))
            h = b.conv(h, 6 * channels, kernel=3, stride=stride, pad=1, groups=6 * channels)
            h = b.norm(b.conv(b.relu(b.norm(h)), channels + wider, kernel=1))
            b.out = h if wider or stride > 1 else b.add(h, b.inp)
        channels += wider
    with net.classifier() as b:
        b.out = b.linear(b.global_avg_pool(b.relu(b.norm(b.conv(b.inp, 32, kernel=1)))), 5)
    return net.build()


MODELS: Mapping[str, Callable[[], BlockGraph]] = MappingProxyType(
    {
        "mlp": perceptron,
        "mlp_norm": lambda: perceptron(norm=True),
        "skipping": skipping,
        "language_model": language_model,
    }
)
"""Models on which every backend is checked, in addition to the models of its own tests."""
