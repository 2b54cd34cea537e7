"""Decoding of images from untrusted sources: size checked first, only formats that run no code."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Image import Image as Picture

from nt_core.errors import DataError
from nt_core.files import expect_file

FORMATS: Final = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read. Other formats of Pillow are rare in datasets, and one (EPS) starts a program."""

MOST_PIXELS: Final = 1 << 26
"""Most pixels of one image, 8192 × 8192, because a file of a few kilobytes can declare any number."""


GREY: Final = ("1", "L", "LA")
"""Pillow's modes of 8-bit grey."""

_ORIENTATION: Final = 0x0112
_TURNED: Final = (5, 6, 7, 8)
"""Values of the EXIF orientation by which height and width change places."""


def open_picture(
    item: Mapping[str, Any] | None, mode: str | None, where: str, most_pixels: int = MOST_PIXELS
) -> Picture | None:
    """Decode an image as ``datasets`` stores it and turn it upright, if it is not too large.

    Args:
        item: the image's ``bytes``, or the ``path`` of a file on this machine; None: no image.
        mode: Pillow mode to convert the image to; None: no conversion.
        where: the example, for errors.
        most_pixels: largest allowed number of pixels.

    Raises:
        DataError: the image is too large, damaged, of another format, or not on this machine.

    Example:
        >>> content = BytesIO()
        >>> Image.new("L", (4, 2)).save(content, "PNG")
        >>> open_picture({"bytes": content.getvalue(), "path": None}, None, "example 0").size
        (4, 2)
    """
    if item is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture: Picture = Image.open(_source(item, where), formats=FORMATS)
            expect_pixels(picture, where, most_pixels)
            picture.load()
            picture = ImageOps.exif_transpose(picture)
            return picture if mode in (None, picture.mode) else picture.convert(mode)
        except DataError:
            raise
        except UnidentifiedImageError:
            raise DataError(
                f"{where}: cannot be decoded: expected an image ({', '.join(FORMATS)}); remove or replace it"
            ) from None
        except Exception as error:  # decoders of broken files raise errors of any kind
            raise DataError(f"{where}: cannot be decoded: {error}; remove or replace it") from None


def measure_picture(item: Mapping[str, Any] | None) -> tuple[int, int, int] | None:
    """Return an image's channels (1 or 3), height and width by its header; None: it cannot be read.

    Example:
        >>> content = BytesIO()
        >>> Image.new("L", (4, 2)).save(content, "PNG")
        >>> measure_picture({"bytes": content.getvalue(), "path": None})
        (1, 2, 4)
    """
    if item is None:
        return None
    try:
        with Image.open(_source(item, ""), formats=FORMATS) as picture:
            width, height = picture.size
            if picture.getexif().get(_ORIENTATION) in _TURNED:
                width, height = height, width
            return (1 if picture.mode in GREY else 3), height, width
    except Exception:  # as in open_picture
        return None


def expect_pixels(picture: Picture, where: str, most: int) -> None:
    """Check the declared size of an image before it is decoded.

    Raises:
        DataError: the image has more than ``most`` pixels.
    """
    width, height = picture.size
    if width * height > most:
        raise DataError(
            f"{where}: expected an image of at most {most} pixels, found {width} × {height}; resize it first"
        )


def _source(item: Mapping[str, Any], where: str) -> BytesIO | Path:
    if item["bytes"] is not None:
        return BytesIO(item["bytes"])
    path = str(item["path"])
    if "://" in path or "::" in path:
        raise DataError(f"{where}: expected an image, found the address {path:.200}; download it first")
    expect_file(Path(path))
    return Path(path)
