"""Bilinear resizing of images as Pillow's, with which training data are resized, for machines without it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

_BITS: Final = 22
"""Bits after the point of Pillow's weights for images of bytes."""


def resize(images: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize images by Pillow's ``BILINEAR``, which averages over all pixels that one new pixel covers.

    Args:
        images: (…, H, W) uint8.
        size: the new (H, W).

    Returns:
        (…, *size) uint8; those of ``PIL.Image.resize((W, H), BILINEAR)``, except that a pixel differs by 1
        where Pillow (13, by size) resizes the columns before the rows, because it rounds in between.

    Example:
        >>> resize(np.array([[0, 0, 90, 90], [0, 0, 90, 90]], np.uint8), (1, 2)).tolist()
        [[13, 77]]
    """
    return _along(_along(images, size[1]).swapaxes(-1, -2), size[0]).swapaxes(-1, -2)


def _along(images: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Resize the last axis."""
    *others, old = images.shape
    if old == count:
        return images
    rows = images.reshape(-1, old).T.astype(np.int64)
    sums: NDArray[np.int64] = (_weights(old, count) @ rows).T + (1 << (_BITS - 1))
    found: NDArray[np.uint8] = np.clip(sums >> _BITS, 0, 255).astype(np.uint8)
    return found.reshape(*others, count)


@lru_cache(maxsize=16)
def _weights(old: int, new: int) -> Any:
    """Return the weights (new, old) of a triangle over each new pixel, as whole numbers."""
    scale = old / new
    reach = max(scale, 1.0)
    rows: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    for place in range(new):
        centre = (place + 0.5) * scale
        first, end = max(0, int(centre - reach + 0.5)), min(old, int(centre + reach + 0.5))
        inside = np.arange(first, end)
        weights = np.maximum(0.0, 1.0 - np.abs((inside - centre + 0.5) * (1.0 / reach)))
        weights /= np.add.accumulate(weights)[-1]  # one after the other, as Pillow adds them
        rows.append(np.floor(0.5 + weights * (1 << _BITS)).astype(np.int64))
        columns.append(inside)
    starts = np.cumsum([0, *map(len, columns)])
    return csr_array((np.concatenate(rows), np.concatenate(columns), starts), shape=(new, old))
