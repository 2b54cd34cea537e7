"""Augmentation of image batches in NumPy, keyed so that every backend sees the same pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from nt_core.random import Random

PAD_SHARE: Final = 8
"""Images are padded by an eighth of their size on each side: 4 pixels at 32 (He et al. 2016, §4.2)."""

Pixels = NDArray[np.uint8]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Standard CIFAR augmentation: pad with black, crop at random, mirror at random (He et al. 2016, §4.2).

    The augmentation of an example depends on (seed, epoch, its row) alone, not on the batch that holds it.

    Attributes:
        seed: keys every choice.
        flip: whether images are mirrored with probability ½.
        crop: whether images are padded and cropped.

    Example:
        >>> images = np.arange(2 * 1 * 8 * 8, dtype=np.uint8).reshape(2, 1, 8, 8)
        >>> Augmentation(seed=0, flip=True, crop=True)(images, np.array([5, 3]), epoch=1).shape
        (2, 1, 8, 8)
    """

    seed: int
    flip: bool
    crop: bool

    def __call__(self, images: Pixels, rows: Rows, *, epoch: int) -> Pixels:
        """Augment a batch. (B, C, H, W) uint8 and the rows (B,) the images come from → a new batch."""
        if self.crop:
            images = crop(images, *self._offsets(images, rows, epoch))
        if self.flip:
            images = flip(images, self._bits(rows, epoch, "flip") >> 31 == 1)
        return images

    def _offsets(self, images: Pixels, rows: Rows, epoch: int) -> tuple[Rows, Rows]:
        bits = self._bits(np.stack([2 * rows, 2 * rows + 1]), epoch, "crop").astype(np.int64)
        down, right = (bits[axis] * (2 * _pad(images.shape[2 + axis]) + 1) >> 32 for axis in (0, 1))
        return down, right

    def _bits(self, positions: Rows, epoch: int, purpose: str) -> NDArray[np.uint32]:
        return Random(self.seed).at(weight="data", step=epoch, purpose=purpose).bits(positions)


def flip(images: Pixels, mirrored: NDArray[np.bool_]) -> Pixels:
    """Mirror some images left to right. (B, C, H, W), (B,) → (B, C, H, W)."""
    return np.where(mirrored[:, None, None, None], images[..., ::-1], images)


def crop(images: Pixels, down: Rows, right: Rows) -> Pixels:
    """Pad images with black and crop each at its offset, 0 to 2 × padding. (B, C, H, W) → (B, C, H, W)."""
    height, width = images.shape[2:]
    pad_down, pad_right = _pad(height), _pad(width)
    padded = np.pad(images, ((0, 0), (0, 0), (pad_down, pad_down), (pad_right, pad_right)))
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))
    return windows[np.arange(len(images)), :, down, right]


def _pad(size: int) -> int:
    return -(-size // PAD_SHARE)
