"""Multi-layer perceptrons."""

from __future__ import annotations

from nt_core import BlockGraph, Features, GraphBuilder, Image, architecture


@architecture
def mlp(
    *,
    inputs: int | tuple[int, int, int],
    hidden: tuple[int, ...] = (256, 256),
    classes: int = 10,
    norm: bool = False,
) -> BlockGraph:
    """Make a multi-layer perceptron with ReLU (Rumelhart et al. 1986); each hidden layer is a block.

    Args:
        inputs: number of features, or (channels, height, width) of images, which are flattened.
        hidden: the width of each hidden layer.
        classes: number of logits.
        norm: batch normalisation before each ReLU.

    Example:
        >>> mlp(inputs=(1, 8, 8), hidden=(32,), classes=10).shapes["hidden1/relu1"]
        (32,)
    """
    if isinstance(inputs, int):
        net = GraphBuilder(Features(count=inputs))
    else:
        channels, height, width = inputs
        net = GraphBuilder(Image(channels=channels, height=height, width=width))
        with net.stem() as b:
            b.out = b.flatten(b.inp)
    for number, width in enumerate(hidden, start=1):
        with net.block(f"hidden{number}") as b:
            h = b.linear(b.inp, width, init="he_normal")
            b.out = b.relu(b.norm(h) if norm else h)
    with net.classifier() as b:
        b.out = b.linear(b.inp, classes)
    return net.build()
