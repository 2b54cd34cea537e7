"""Decoding of a ``datasets`` column to arrays that fit a graph: images, vectors and labels, all checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Final

import numpy as np
from datasets import ClassLabel, Dataset, Value
from datasets import Image as ImageFeature
from numpy.typing import NDArray
from PIL.Image import Image as Picture
from PIL.Image import Resampling

from nt_core.errors import DataError
from nt_core.graph import BlockGraph
from nt_core.values import Shape
from nt_lab.data.advice import classes_remedy, fits, misfit, survey
from nt_lab.data.pictures import GREY, open_picture

Rows = NDArray[np.int64]
Reader = Callable[[Rows], NDArray[Any]]
"""Rows (B,) of a split → their inputs, (B, C, H, W) uint8 or (B, features) float32."""

COLOUR: Final = ("RGB", "P", "RGBA", "CMYK", "YCbCr")
_CHUNK_ELEMENTS: Final = 1 << 22


Fit = Callable[[Picture | None], Picture | None]
"""Image → the same in the size and the channels that a graph reads."""


def resized(graph: BlockGraph, size: tuple[int, int] | None = None) -> Fit | None:
    """Return a function that converts images to the size (bilinear) and channels of a graph's input.

    Grey becomes three equal channels. Colour becomes its luma (ITU-R 601-2).

    Args:
        graph: reads images, or their pixels as features.
        size: (height, width); None: that of the images that the graph reads.

    Returns:
        The function; None: the graph does not read images of 1 or 3 channels in that size.

    Example:
        >>> import nt_models
        >>> from PIL import Image
        >>> fit = resized(nt_models.resnet(depth=18, classes=10, size=32))
        >>> fit(Image.new("L", (28, 28))).size, fit(Image.new("L", (28, 28))).mode
        ((32, 32), 'RGB')
    """
    shape = graph.input.shape
    if size is None:
        size = shape[1:] if len(shape) == 3 else None
    modes = {(1, *(size or ())): "L", (3, *(size or ())): "RGB"}
    fitting = [mode for each, mode in modes.items() if size and fits(each, graph)]
    if size is None or not fitting:
        return None
    (mode,), wanted = fitting, size[::-1]

    def fit(picture: Picture | None) -> Picture | None:
        if picture is None or picture.mode not in GREY + COLOUR:
            return picture
        converted = picture.convert(mode)
        return converted if converted.size == wanted else converted.resize(wanted, Resampling.BILINEAR)

    return fit


def reader(
    dataset: Dataset,
    column: str,
    graph: BlockGraph,
    where: str,
    fit: Fit | None = None,
    *,
    trained: int | None = None,
    others: Sequence[Dataset] = (),
) -> Reader:
    """Return a decoder of a split's rows, after a check that the first example fits the graph.

    Without ``fit``, grey images become three equal channels if there are colour images, too, and the graph
    reads colour.

    Args:
        dataset: the split.
        column: name of a column of images or of vectors.
        graph: gives the shape that examples must have; images are flattened for a graph of features.
        where: the split, for errors.
        fit: converts each image before the check, as of :func:`resized`; None: images are not converted.
        trained: channels of the examples on which the graph is trained; None: it is trained on these.
        others: all splits that are used, this too, for advice that is right for all; none: this alone.

    Raises:
        DataError: an example cannot be decoded or has another shape; raised now, or when rows are read.
    """
    inputs = dataset.select_columns([column])
    pictures = isinstance(dataset.features[column], ImageFeature)
    if pictures:
        mode = dataset.features[column].mode
        inputs = inputs.cast_column(column, ImageFeature(decode=False))

    @cache
    def seen() -> Counter[Shape]:
        return survey(others or [dataset], column)

    def decode(item: Any, place: str) -> NDArray[Any]:
        if not pictures:
            return _vector(item, place)
        picture = open_picture(item, mode, place)
        pixels = _pixels(fit(picture) if fit else picture, place)
        if len(pixels) == 1 and not fits(pixels.shape, graph) and fits((3, *pixels.shape[1:]), graph):
            colour = channels == 3 or any(found[0] == 3 for found in seen())
            return np.repeat(pixels, 3, axis=0) if colour else pixels
        return pixels

    def read(rows: Rows) -> NDArray[Any]:
        found = inputs[rows.tolist()][column]
        arrays = []
        for row, item in zip(rows, found, strict=True):
            array = decode(item, f"{where}: example {row}")
            if not fits(array.shape, graph) or shape not in (None, array.shape):
                told = misfit(array.shape, shape, graph, seen(), trained=trained is not None)
                raise DataError(f"{where}: example {row}: {told}")
            arrays.append(array)
        return np.stack(arrays)

    channels: int | None = trained
    shape: Shape | None = None
    shape = read(np.zeros(1, np.int64)).shape[1:]
    channels = channels or shape[0]
    return read


def in_memory(read: Reader, count: int) -> Reader:
    """Decode all rows once and return a reader of the decoded rows in memory."""
    example = read(np.zeros(1, np.int64))
    kept = np.empty((count, *example.shape[1:]), example.dtype)
    for rows in chunks(np.arange(count), example.size):
        kept[rows] = read(rows)
    kept.setflags(write=False)
    return lambda rows: kept[rows]


def chunks(rows: Rows, example_size: int) -> Iterator[Rows]:
    """Cut rows so that a chunk's examples hold about four million elements.

    Example:
        >>> [len(chunk) for chunk in chunks(np.arange(10), example_size=1 << 20)]
        [4, 4, 2]
    """
    step = max(1, _CHUNK_ELEMENTS // example_size)
    return (rows[start : start + step] for start in range(0, len(rows), step))


def read_labels(
    dataset: Dataset,
    column: str,
    graph: BlockGraph,
    where: str,
    match: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
    others: Sequence[Dataset] = (),
) -> NDArray[np.int64]:
    """Return a split's labels (N,), checked against the graph's classes.

    Args:
        dataset: the split.
        column: name of the column of labels.
        graph: gives the number of classes.
        where: the split, for errors.
        others: all splits that are used, for advice that is right for all.
        match: numbers labels as a trained model does; None: they are numbered so already.

    Raises:
        DataError: more classes than the graph has outputs, a missing label, or one outside the classes.
    """
    feature, classes = dataset.features[column], graph.output_shape[-1]
    if match is None and isinstance(feature, ClassLabel) and feature.num_classes > classes:
        raise DataError(
            f"{where}: column {column!r} has {feature.num_classes} classes, the graph's output {classes}; "
            f"{classes_remedy(graph, feature.num_classes)}"
        )
    assert isinstance(feature, ClassLabel | Value)
    found = dataset.select_columns([column])[:][column]
    if None in found:
        raise DataError(
            f"{where}: column {column!r}, example {found.index(None)}: no label; use a labelled split"
        )
    largest = np.iinfo(np.int64).max
    labels = np.asarray([min(label, largest) for label in found], dtype=np.int64)
    labels = labels if match is None else match(labels)
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        row = int(outside.argmax())
        largest = max(int(labels.max()), *(_largest(other, column) for other in others), 0)
        remedy = "use a labelled split" if labels[row] < 0 else classes_remedy(graph, largest + 1)
        raise DataError(
            f"{where}: column {column!r}, example {row}: expected a label from 0 to {classes - 1}, "
            f"found {labels[row]}; {remedy}"
        )
    return labels


def _largest(dataset: Dataset, column: str) -> int:
    labels = dataset[:][column] if column in dataset.features else []
    return max((label for label in labels if isinstance(label, int)), default=0)


def _pixels(picture: Picture | None, where: str) -> NDArray[np.uint8]:
    """Return an image as (C, H, W)."""
    if picture is None:
        raise DataError(f"{where}: no image; remove the example")
    if picture.mode not in GREY + COLOUR:
        raise DataError(
            f"{where}: expected 8-bit grey or colour, found an image of mode {picture.mode}; convert it first"
        )
    if picture.mode in GREY:
        return np.asarray(picture.convert("L"))[None]
    return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)


def _vector(values: Any, where: str) -> NDArray[np.float32]:
    try:
        vector = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected a list of numbers: {error}") from None
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise DataError(f"{where}: expected a list of finite numbers, found shape {vector.shape} or NaN")
    return vector
