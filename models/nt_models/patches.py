"""Division of an image into patches, the start of patch-based networks."""

from __future__ import annotations

from nt_core import BlockWriter, GraphError, Tensor


def patches(b: BlockWriter, image: Tensor, patch: int, width: int) -> Tensor:
    """Cut an image into squares and map each linearly. (C, H, W) → (H/patch · W/patch, width).

    Raises:
        GraphError: the patches do not tile the image.

    Example:
        >>> from nt_core import GraphBuilder, Image
        >>> with GraphBuilder(Image(channels=3, height=32, width=48)).stem() as b:
        ...     b.out = patches(b, b.inp, 16, width=8)
        >>> b.out.shape
        (6, 8)
    """
    _, height, across = image.shape
    if patch < 1 or height % patch or across % patch:
        raise GraphError(
            f"block {b.name!r}: expected patches of {patch} × {patch} pixels that tile the image, "
            f"found one of {height} × {across}; choose a patch that divides both"
        )
    return b.to_sequence(b.conv(image, width, kernel=patch, stride=patch, bias=True, name="patches"))
