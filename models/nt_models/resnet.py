"""Residual networks for large images."""

from __future__ import annotations

from nt_core import BlockGraph, BlockWriter, GraphBuilder, GraphError, Image, Tensor, architecture

BASIC = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK = {14: (1, 1, 1, 1), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Depth → residual blocks in each stage, of either kind."""


@architecture
def resnet(
    *, depth: int = 50, width: int = 64, classes: int = 1000, size: int = 224, channels: int = 3
) -> BlockGraph:
    """Make a residual network; He et al. 2016, table 1.

    Bottlenecks have their stride in the 3×3 convolution ("v1.5"; Goyal et al. 2017, §5.1). Each residual
    block is a counted block: 16 in ResNet-50.

    Args:
        depth: number of convolutions on the longest path, and the linear map: 18, 34 (basic blocks), 50, 101,
            152 (bottlenecks); 10 and 14 have one block of either kind in each stage.
        width: channels of the first stage; each further stage has twice as many channels.
        classes: number of logits.
        size: height and width of the images, in pixels.
        channels: colour channels of the images.

    Raises:
        GraphError: no such depth.

    Example:
        >>> graph = resnet(depth=50)
        >>> graph.counted[:4], graph.shapes["stage1.1/add1"], graph.shapes["stage4.3/add1"]
        (('stage1.1', 'stage1.2', 'stage1.3', 'stage2.1'), (256, 56, 56), (2048, 7, 7))
    """
    depths = BASIC | BOTTLENECK
    if depth not in depths:
        raise GraphError(f"resnet: expected a depth of {', '.join(map(str, sorted(depths)))}, found {depth}")
    write = _basic if depth in BASIC else _bottleneck
    net = GraphBuilder(Image(channels=channels, height=size, width=size))
    with net.stem() as b:
        h = b.relu(b.norm(b.conv(b.inp, width, kernel=7, stride=2, pad=3)))
        b.out = b.max_pool(h, kernel=3, stride=2, pad=1)
    for stage, blocks in enumerate(depths[depth]):
        for i in range(blocks):
            with net.block(f"stage{stage + 1}.{i + 1}") as b:
                b.out = write(b, width * 2**stage, 2 if stage and i == 0 else 1)
    with net.classifier() as b:
        b.out = b.linear(b.global_avg_pool(b.inp), classes)
    return net.build()


def _basic(b: BlockWriter, channels: int, stride: int) -> Tensor:
    h = b.relu(b.norm(b.conv(b.inp, channels, kernel=3, stride=stride, pad=1)))
    h = b.norm(b.conv(h, channels, kernel=3, pad=1))
    return b.relu(b.add(h, _shortcut(b, channels, stride)))


def _bottleneck(b: BlockWriter, channels: int, stride: int) -> Tensor:
    h = b.relu(b.norm(b.conv(b.inp, channels, kernel=1)))
    h = b.relu(b.norm(b.conv(h, channels, kernel=3, stride=stride, pad=1)))
    h = b.norm(b.conv(h, 4 * channels, kernel=1))
    return b.relu(b.add(h, _shortcut(b, 4 * channels, stride)))


def _shortcut(b: BlockWriter, channels: int, stride: int) -> Tensor:
    if b.inp.shape[0] == channels and stride == 1:
        return b.inp
    return b.norm(b.conv(b.inp, channels, kernel=1, stride=stride, name="shortcut"))
