"""Vision transformers."""

from __future__ import annotations

from nt_core import BlockGraph, BlockWriter, GraphBuilder, Image, Tensor, architecture
from nt_models.patches import patches

EPS = 1e-6


@architecture
def vit(
    *,
    blocks: int,
    width: int,
    hidden: int,
    heads: int,
    patch: int = 16,
    classes: int = 1000,
    size: int = 224,
    channels: int = 3,
) -> BlockGraph:
    """Make a vision transformer; Dosovitskiy et al. 2021, §3.1.

    Patches, class token and learned positions are the stem. Each encoder block is a counted block. The final
    norm and the linear map of the class token are the classifier.

    Args:
        blocks: number of encoder blocks.
        width: features of each patch.
        hidden: features inside the MLP.
        heads: of attention, a divisor of ``width``.
        patch: height and width of a patch, in pixels.
        classes: number of logits.
        size: height and width of the images, in pixels, a multiple of ``patch``.
        channels: colour channels of the images.

    Raises:
        GraphError: the heads do not fit the width, or the patches the image.

    Example:
        >>> graph = vit(blocks=2, width=32, hidden=64, heads=4, patch=4, classes=10, size=32)
        >>> graph.counted, graph.shapes["block1/add1"]
        (('block1', 'block2'), (65, 32))
    """
    net = GraphBuilder(Image(channels=channels, height=size, width=size))
    with net.stem("embedding") as b:
        b.out = b.positions(b.class_token(patches(b, b.inp, patch, width)))
    for number in range(1, blocks + 1):
        with net.block(f"block{number}") as b:
            h = b.add(b.inp, _attention(b, b.layer_norm(b.inp, eps=EPS), heads))
            b.out = b.add(h, _mlp(b, b.layer_norm(h, eps=EPS), hidden))
    with net.classifier() as b:
        b.out = _linear(b, b.layer_norm(b.take_token(b.inp), eps=EPS), classes, "head")
    return net.build()


@architecture
def vit_s16(*, classes: int = 1000, size: int = 224, channels: int = 3) -> BlockGraph:
    """Make ViT-S/16: 12 blocks × 384, MLP 1536, 6 heads; Touvron et al. 2021, table 1 (DeiT-S).

    Example:
        >>> len(vit_s16().counted)
        12
    """
    return vit(blocks=12, width=384, hidden=1536, heads=6, classes=classes, size=size, channels=channels)


@architecture
def vit_tiny32(*, classes: int = 10, size: int = 32, channels: int = 3) -> BlockGraph:
    """Make a ViT for small images: 6 blocks × 192, MLP 768, 3 heads, patches of 4 × 4 pixels.

    Example:
        >>> vit_tiny32().shapes["embedding/positions1"]
        (65, 192)
    """
    return vit(
        blocks=6, width=192, hidden=768, heads=3, patch=4, classes=classes, size=size, channels=channels
    )


def _attention(b: BlockWriter, x: Tensor, heads: int) -> Tensor:
    queries, keys, values = (_linear(b, x, x.shape[1], name) for name in ("q_proj", "k_proj", "v_proj"))
    return _linear(b, b.attention(queries, keys, values, heads=heads), x.shape[1], "o_proj")


def _mlp(b: BlockWriter, x: Tensor, hidden: int) -> Tensor:
    return _linear(b, b.activation(_linear(b, x, hidden, "up_proj"), "gelu"), x.shape[1], "down_proj")


def _linear(b: BlockWriter, x: Tensor, features: int, name: str) -> Tensor:
    return b.linear(x, features, init="normal_002", name=name)
