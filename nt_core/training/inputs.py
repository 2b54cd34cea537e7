"""Preprocessing of a trained network's inputs, which is a part of the model as its weights are."""

from __future__ import annotations

import math
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from nt_core.errors import DataError, SpecError
from nt_core.training.resizing import resize
from nt_core.values import Count, Shape, Value

_ROUNDING: Final = 1e-3
"""Share of a range by which values may lie outside it, because float32 rounds."""


class Normalisation(Value):
    """Mean and standard deviation of the inputs, for each channel (or each feature of vectors).

    Attributes:
        mean: subtracted; in the units of the data, 0 to 255 for images.
        std: divided by.

    Example:
        >>> Normalisation(mean=(128,), std=(64,)).apply(np.array([[64], [192]], np.uint8))
        array([[-1.],
               [ 1.]], dtype=float32)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Return (inputs − mean) / std as float32. (B, C, …) → (B, C, …)."""
        spread = (-1,) + (1,) * (inputs.ndim - 2)
        scaled = inputs.astype(np.float32)
        scaled -= np.array(self.mean, np.float32).reshape(spread)
        scaled *= (1 / np.array(self.std)).astype(np.float32).reshape(spread)
        return scaled


class Preprocessing(Value):
    """Everything between a raw example and a network's input: units, size, normalisation.

    Attributes:
        units: ``bytes``: pixels from 0 to 255; ``values``: numbers of vectors.
        shape: of a raw example once it is resized: (channels, height, width), or (features,).
        normalisation: of channels or features.
        resize: (height, width) to which images of any other size are resized, bilinear; None: they are
            not resized.
        low: the least value of each channel or feature, in raw units; None: 0 for bytes, else unknown.
        high: the largest; None: 255 for bytes, else unknown.

    Example:
        >>> halves = Normalisation(mean=(127.5,), std=(127.5,))
        >>> grey = Preprocessing(units="bytes", shape=(1, 2, 2), normalisation=halves)
        >>> grey.inputs(np.array([[0, 255], [255, 0]], np.uint8), (4,))  # one picture, for 4 features
        array([[-1.,  1.,  1., -1.]], dtype=float32)
    """

    units: Literal["bytes", "values"] = "bytes"
    shape: tuple[Count, ...]
    normalisation: Normalisation
    resize: tuple[Count, Count] | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Preprocessing:
        channels = self.shape[0] if self.shape else 0
        if len(self.shape) != (3 if self.units == "bytes" else 1):
            raise SpecError(
                f"preprocessing.shape: expected (channels, height, width) of images in bytes, or (features,) "
                f"of vectors, found {self.shape}"
            )
        if self.resize not in (None, self.shape[1:]):
            raise SpecError(
                f"preprocessing.resize: expected {self.shape[1:]} as in shape, found {self.resize}"
            )
        for name in ("low", "high"):
            found = getattr(self, name)
            if found is not None and len(found) != channels:
                raise SpecError(f"preprocessing.{name}: expected {channels} numbers, found {len(found)}")
        mean, std = self.normalisation.mean, self.normalisation.std
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise SpecError(
                f"preprocessing.normalisation: expected mean and std of {channels} channels, every std above "
                f"0; found {len(mean)} and {std[:4]}"
            )
        return self

    @staticmethod
    def of_images(
        shape: Shape,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: float = 1.0,
        resize: tuple[int, int] | None = None,
    ) -> Preprocessing:
        """Return the preprocessing of images, for a training loop of one's own.

        Args:
            shape: of a picture as the network reads it, (channels, height, width).
            mean: of each channel.
            std: of each channel.
            scale: what pixels are multiplied by before; 1 / 255 where mean and std are of the unit interval.
            resize: as of this class.

        Example:
            >>> Preprocessing.of_images((1, 8, 8), mean=(0.5,), std=(0.25,), scale=1 / 255).normalisation
            Normalisation(mean=(127.5,), std=(63.75,))
        """
        normalisation = Normalisation(mean=tuple(m / scale for m in mean), std=tuple(s / scale for s in std))
        return Preprocessing(units="bytes", shape=shape, normalisation=normalisation, resize=resize)

    def inputs(self, raw: NDArray[Any], shape: Shape) -> NDArray[np.float32]:
        """Return raw examples as a network reads them.

        Args:
            raw: images (N, C, H, W) or (N, H, W, C), of one channel (N, H, W) too; or a single one without
                its first axis. Or vectors, (N, features) or (features,).
            shape: of one input of the network.

        Returns:
            (N, *shape) float32.

        Raises:
            DataError: another shape, or pixels outside 0 to 255.
        """
        return self.normalisation.apply(self.batch(np.asarray(raw))).reshape(-1, *shape)

    def batch(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Return raw examples as (N, *self.shape), resized where they are resized, but not normalised.

        Raises:
            DataError: as :meth:`inputs`.
        """
        if raw.ndim == 2 and raw.shape[1] == math.prod(self.shape):
            return self._pixels(raw.reshape(-1, *self.shape))
        if raw.shape == self.shape and self.units == "values":
            return raw[None]
        found = {each.shape: each for each in self._layouts(raw)}
        fits = [each for each in found.values() if each.shape[1:] == self.shape]
        if fits:
            return self._pixels(fits[0])
        if self.resize is not None and len(found) == 1:
            return resize(self._pixels(next(iter(found.values()))), self.resize)
        raise DataError(
            f"input: expected {self.what}, found an array of shape {raw.shape}"
            + "; which axis holds the channels is not to be seen from it" * (len(found) > 1)
        )

    @property
    def what(self) -> str:
        """Description of the raw examples that :meth:`inputs` takes."""
        if self.units == "values":
            return f"vectors (batch, {self.shape[0]})"
        channels, height, width = self.shape
        size = "height, width" if self.resize else f"{height}, {width}"
        last = f" or (batch, {size}, {channels})" if channels > 1 else f" or (batch, {size})"
        return f"images (batch, {channels}, {size}){last}"

    def _layouts(self, raw: NDArray[Any]) -> list[NDArray[Any]]:
        """Return an array of images as (N, C, H, W), in each way in which it can be meant."""
        if self.units == "values" or raw.ndim not in (2, 3, 4) or 0 in raw.shape[1:]:
            return []
        channels = self.shape[0]
        if channels == 1 and raw.ndim < 4 and raw.shape[-1] != 1:
            raw = raw[..., None]  # a picture, or a stack of them, without an axis of channels
        if raw.ndim == 3:
            raw = raw[None]
        layouts = [raw] if raw.ndim == 4 and raw.shape[1] == channels else []
        return layouts + ([np.moveaxis(raw, -1, 1)] if raw.ndim == 4 and raw.shape[-1] == channels else [])

    def _pixels(self, raw: NDArray[Any]) -> NDArray[Any]:
        if self.units == "values" or raw.dtype == np.uint8 or not raw.size:
            return raw
        if raw.dtype.kind not in "iu" or raw.min() < 0 or raw.max() > 255:
            raise DataError(
                f"input: expected pixels, whole numbers from 0 to 255, found {raw.dtype} from {raw.min()} to "
                f"{raw.max()}"
            )
        return raw.astype(np.uint8)

    def outside(self, inputs: NDArray[Any]) -> str | None:
        """Return what is wrong with inputs that are said to be normalised, if they cannot be.

        Pixels have a range, which normalised pixels cannot leave. Of vectors the range is that of the
        training examples, which others may leave a little: by as much as its width.

        Args:
            inputs: (N, *input shape) floats.

        Example:
            >>> halves = Normalisation(mean=(127.5,), std=(127.5,))
            >>> grey = Preprocessing(units="bytes", shape=(1, 2, 2), normalisation=halves)
            >>> grey.outside(np.full((1, 1, 2, 2), 200.0))
            'found 200 to 200 in channel 0, expected -1 to 1'
        """
        pixels = self.units == "bytes"
        low, high = (self.low, self.high) if not pixels else (self.low or (0.0,), self.high or (255.0,))
        if low is None or high is None or not inputs.size:
            return None
        mean, std = np.array(self.normalisation.mean), np.array(self.normalisation.std)
        least, most = (np.array(low) - mean) / std, (np.array(high) - mean) / std
        spread = (most - least) * (_ROUNDING if pixels else 1.0) + _ROUNDING
        values = inputs.reshape(len(inputs), len(mean), -1)
        found = values.min(axis=(0, 2)), values.max(axis=(0, 2))
        wrong = (found[0] < least - spread) | (found[1] > most + spread)
        if not wrong.any():
            return None
        at = int(wrong.argmax())
        return (
            f"found {found[0][at]:.4g} to {found[1][at]:.4g} in {'channel' if pixels else 'feature'} {at}, "
            f"expected {least[at]:.4g} to {most[at]:.4g}"
        )
