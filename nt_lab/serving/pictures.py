"""Images for predictions, without labels: files, folders, patterns of names, and standard input."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nt_core.errors import DataError
from nt_core.training import Preprocessing
from nt_lab.data.decode import COLOUR
from nt_lab.data.pictures import GREY, open_picture

STDIN: Final = "-"
"""The name under which one image is read from standard input."""

SUFFIXES: Final = frozenset(
    [".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)
"""Endings of the files in a folder that are taken for images; other files in it are left alone."""


def is_unlabelled(source: str) -> bool:
    """Return whether a source of data is of images without labels: an image, a pattern, or a plain folder."""
    path = Path(source).expanduser()
    if path.is_dir():
        return any(is_picture(file) for file in path.iterdir())
    return is_picture(path) or source == STDIN or (not path.exists() and glob.has_magic(source))


def is_picture(path: Path) -> bool:
    """Return whether a path is a file whose name ends like an image's."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def find(sources: Sequence[str]) -> list[str]:
    """Return the names of images.

    Args:
        sources: files; folders, whose images in all depths are taken in the order of their paths; patterns
            like ``shots/*.png``, for a shell that leaves them alone; or ``-`` for standard input.

    Raises:
        DataError: a source has no images.
    """
    found: list[str] = []
    for source in sources:
        names = list(_names(source))
        if not names:
            raise DataError(f"{source}: expected an image, a folder of images, or a pattern, found no image")
        found += names
    return found


def _names(source: str) -> Iterator[str]:
    path = Path(source).expanduser()
    if source == STDIN or path.is_file():
        yield source
    elif path.is_dir():
        yield from map(str, sorted(filter(is_picture, path.rglob("*"))))
    else:
        yield from sorted(each for each in glob.glob(str(path), recursive=True) if Path(each).is_file())


def read(name: str, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Read one image with the channels and the size that a network's training data had.

    Grey becomes three equal channels where the network reads colour; colour becomes luma where it reads grey.

    Args:
        name: path of the image, or ``-`` for standard input.
        preprocessing: of the network.

    Returns:
        (1, C, H, W), not normalised yet.

    Raises:
        DataError: no image, or one of another size where training data were not resized.
    """
    channels = preprocessing.shape[0]
    if preprocessing.units != "bytes" or channels not in (1, 3):
        raise DataError(
            f"{name}: expected a network of grey or colour images, found one that reads {preprocessing.what}"
        )
    picture = open_picture(_item(name), None, name)
    assert picture is not None
    if picture.mode not in GREY + COLOUR:
        raise DataError(
            f"{name}: expected 8-bit grey or colour, found an image of mode {picture.mode}; convert it first"
        )
    picture = picture.convert("L" if channels == 1 else "RGB")
    height, width = preprocessing.shape[1:]
    if picture.size != (width, height):
        if preprocessing.resize is None:
            raise DataError(
                f"{name}: the network reads {height}×{width} pixels (height × width), found "
                f"{picture.height}×{picture.width}; resize it first, or train with --set "
                f"data.resize=[{height},{width}]"
            )
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(1, height, width, channels).transpose(0, 3, 1, 2)


def _item(name: str) -> dict[str, Any]:
    if name == STDIN:
        return {"bytes": sys.stdin.buffer.read(), "path": None}
    return {"bytes": None, "path": Path(name).expanduser()}
