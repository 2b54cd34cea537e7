"""MLP-Mixers."""

from __future__ import annotations

from nt_core import BlockGraph, BlockWriter, GraphBuilder, Image, Tensor, architecture
from nt_models.patches import patches

EPS = 1e-6


@architecture
def mixer(
    *,
    blocks: int,
    width: int,
    tokens: int,
    hidden: int,
    patch: int = 16,
    classes: int = 1000,
    size: int = 224,
    channels: int = 3,
) -> BlockGraph:
    """Make an MLP-Mixer; Tolstikhin et al. 2021, §2. Each mixer block is a counted block.

    Args:
        blocks: number of mixer blocks.
        width: features of each patch.
        tokens: features inside the MLP that mixes patches.
        hidden: features inside the MLP that mixes features.
        patch: height and width of a patch, in pixels.
        classes: number of logits.
        size: height and width of the images, in pixels, a multiple of ``patch``.
        channels: colour channels of the images.

    Raises:
        GraphError: the patches do not tile the image.

    Example:
        >>> mixer(blocks=2, width=32, tokens=16, hidden=64, patch=4, size=32).shapes["block1/add1"]
        (64, 32)
    """
    net = GraphBuilder(Image(channels=channels, height=size, width=size))
    with net.stem("embedding") as b:
        b.out = patches(b, b.inp, patch, width)
    for number in range(1, blocks + 1):
        with net.block(f"block{number}") as b:
            h = b.add(b.inp, b.transpose(_mlp(b, b.transpose(b.layer_norm(b.inp, eps=EPS)), tokens)))
            b.out = b.add(h, _mlp(b, b.layer_norm(h, eps=EPS), hidden))
    with net.classifier() as b:
        b.out = b.linear(b.global_avg_pool(b.layer_norm(b.inp, eps=EPS)), classes)
    return net.build()


@architecture
def mixer_s16(*, classes: int = 1000, size: int = 224, channels: int = 3) -> BlockGraph:
    """Make Mixer-S/16: 8 blocks × 512, MLPs 256 and 2048; table 1.

    Example:
        >>> len(mixer_s16().counted)
        8
    """
    return mixer(blocks=8, width=512, tokens=256, hidden=2048, classes=classes, size=size, channels=channels)


def _mlp(b: BlockWriter, x: Tensor, hidden: int) -> Tensor:
    return b.linear(b.activation(b.linear(x, hidden), "gelu"), x.shape[1])
