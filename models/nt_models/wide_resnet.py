"""Wide residual networks."""

from __future__ import annotations

from nt_core import BlockGraph, BlockWriter, GraphBuilder, GraphError, Image, Tensor, architecture


@architecture
def wide_resnet(
    *,
    depth: int = 28,
    width: int = 10,
    classes: int = 100,
    size: int = 32,
    channels: int = 3,
    dropout: float = 0.0,
) -> BlockGraph:
    """Make a pre-activation Wide-ResNet; Zagoruyko & Komodakis 2016, table 1.

    Args:
        depth: number of convolutions on the longest path, 6·n + 4 (10, 16, 22, 28, 40, …).
        width: factor on the channels 16, 32, 64 of the three stages.
        classes: number of logits.
        size: height and width of the images, in pixels.
        channels: colour channels of the images.
        dropout: rate between the two convolutions of a block.

    Raises:
        GraphError: no such depth.

    Example:
        >>> wide_resnet(depth=28, width=10).counted[:5]
        ('stage1.1', 'stage1.2', 'stage1.3', 'stage1.4', 'stage2.1')
    """
    if depth < 10 or (depth - 4) % 6:
        raise GraphError(f"wide_resnet: expected a depth of 10, 16, 22, 28, … (6·n + 4), found {depth}")
    net = GraphBuilder(Image(channels=channels, height=size, width=size))
    with net.stem() as b:
        b.out = b.conv(b.inp, 16, kernel=3, pad=1)
    for stage, base in enumerate((16, 32, 64), start=1):
        for i in range((depth - 4) // 6):
            with net.block(f"stage{stage}.{i + 1}") as b:
                b.out = _residual(b, base * width, 2 if stage > 1 and i == 0 else 1, dropout)
    with net.classifier() as b:
        b.out = b.linear(b.global_avg_pool(b.relu(b.norm(b.inp))), classes)
    return net.build()


def _residual(b: BlockWriter, channels: int, stride: int, dropout: float) -> Tensor:
    h = b.relu(b.norm(b.inp))
    keep = b.inp.shape[0] == channels and stride == 1
    skip = b.inp if keep else b.conv(h, channels, kernel=1, stride=stride, name="shortcut")
    h = b.conv(h, channels, kernel=3, stride=stride, pad=1)
    h = b.dropout(b.relu(b.norm(h)), dropout)
    return b.add(b.conv(h, channels, kernel=3, pad=1), skip)
