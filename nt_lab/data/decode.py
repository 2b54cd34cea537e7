"""Decoding of a ``datasets`` column to arrays that fit a graph: images, vectors and labels, all checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from datasets import ClassLabel, Dataset, Value
from datasets import Image as ImageFeature
from numpy.typing import NDArray
from PIL.Image import Image as Picture
from PIL.Image import Resampling

import nt_models
from nt_core.errors import DataError
from nt_core.graph import BlockGraph, Image
from nt_core.values import Shape
from nt_lab.data.pictures import open_picture

Rows = NDArray[np.int64]
Reader = Callable[[Rows], NDArray[Any]]
"""Rows (B,) of a split → their inputs, (B, C, H, W) uint8 or (B, features) float32."""

GREY: Final = ("1", "L", "LA")
COLOUR: Final = ("RGB", "P", "RGBA", "CMYK", "YCbCr")
_CHUNK_ELEMENTS: Final = 1 << 22


def resized(graph: BlockGraph) -> Callable[[Picture | None], Picture | None] | None:
    """Return a function that converts images to the size (bilinear) and channels of a graph's input.

    Grey becomes three equal channels. Colour becomes its luma (ITU-R 601-2). The result is None where the
    graph does not read images of 1 or 3 channels.

    Example:
        >>> import nt_models
        >>> from PIL import Image
        >>> fit = resized(nt_models.resnet(depth=18, classes=10, size=32))
        >>> fit(Image.new("L", (28, 28))).size, fit(Image.new("L", (28, 28))).mode
        ((32, 32), 'RGB')
    """
    if not isinstance(graph.input, Image) or graph.input.channels not in (1, 3):
        return None
    mode, size = "L" if graph.input.channels == 1 else "RGB", (graph.input.width, graph.input.height)

    def fit(picture: Picture | None) -> Picture | None:
        if picture is None or picture.mode not in GREY + COLOUR:
            return picture
        converted = picture.convert(mode)
        return converted if converted.size == size else converted.resize(size, Resampling.BILINEAR)

    return fit


def reader(
    dataset: Dataset,
    column: str,
    graph: BlockGraph,
    where: str,
    fit: Callable[[Picture | None], Picture | None] | None = None,
) -> Reader:
    """Return a decoder of a split's rows, after a check that the first example fits the graph.

    Args:
        dataset: the split.
        column: name of a column of images or of vectors.
        graph: gives the shape that examples must have; images are flattened for a graph of features.
        where: the split, for errors.
        fit: converts each image before the check, as of :func:`resized`; None: images are not converted.

    Raises:
        DataError: an example cannot be decoded or has another shape; raised now, or when rows are read.
    """
    inputs = dataset.select_columns([column])
    pictures = isinstance(dataset.features[column], ImageFeature)
    if pictures:
        mode = dataset.features[column].mode
        inputs = inputs.cast_column(column, ImageFeature(decode=False))

    def decode(item: Any, place: str) -> NDArray[Any]:
        if not pictures:
            return _vector(item, place)
        picture = open_picture(item, mode, place)
        return _pixels(fit(picture) if fit else picture, place)

    def read(rows: Rows) -> NDArray[Any]:
        found = inputs[rows.tolist()][column]
        arrays = []
        for row, item in zip(rows, found, strict=True):
            arrays.append(decode(item, f"{where}: example {row}"))
            _expect_fit(arrays[-1].shape, shape, graph, f"{where}: example {row}")
        return np.stack(arrays)

    shape: Shape | None = None
    shape = read(np.zeros(1, np.int64)).shape[1:]
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
) -> NDArray[np.int64]:
    """Return a split's labels (N,), checked against the graph's classes.

    Args:
        dataset: the split.
        column: name of the column of labels.
        graph: gives the number of classes.
        where: the split, for errors.
        match: numbers labels as a trained model does; None: they are numbered so already.

    Raises:
        DataError: more classes than the graph has outputs, a missing label, or one outside the classes.
    """
    feature, classes = dataset.features[column], graph.output_shape[-1]
    if match is None and isinstance(feature, ClassLabel) and feature.num_classes > classes:
        raise DataError(
            f"{where}: column {column!r} has {feature.num_classes} classes, the graph's output {classes}; "
            f"{_classes_remedy(graph, feature.num_classes)}"
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
        remedy = "use a labelled split" if labels[row] < 0 else _classes_remedy(graph, int(labels.max()) + 1)
        raise DataError(
            f"{where}: column {column!r}, example {row}: expected a label from 0 to {classes - 1}, "
            f"found {labels[row]}; {remedy}"
        )
    return labels


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


def _expect_fit(found: Shape, first: Shape | None, graph: BlockGraph, where: str) -> None:
    images = isinstance(graph.input, Image)
    if (found != graph.input.shape) if images else (math.prod(found) != math.prod(graph.input.shape)):
        raise DataError(
            f"{where}: the graph expects {_size(graph.input.shape)}, found {_size(found)}; "
            f"{_input_remedy(graph, found)}"
        )
    if first is not None and found != first:
        raise DataError(f"{where}: expected {_size(first)} as in the first example, found {_size(found)}")


def _size(shape: Shape) -> str:
    if len(shape) == 1:
        return f"{shape[0]} features"
    return f"{'×'.join(map(str, shape))} (channels × height × width)"


def _input_remedy(graph: BlockGraph, shape: Shape) -> str:
    known = _parameters(graph)
    if "inputs" in known:
        inputs = str(shape[0]) if len(shape) == 1 else f"[{','.join(map(str, shape))}]"
        return f"--set graph.inputs={inputs} would fit"
    if {"size", "channels"} <= known and len(shape) == 3 and shape[1] == shape[2]:
        return f"--set graph.size={shape[1]} --set graph.channels={shape[0]} would fit"
    return "resize the examples, or use a graph with that input"


def _classes_remedy(graph: BlockGraph, classes: int) -> str:
    if "classes" in _parameters(graph):
        return f"--set graph.classes={classes} would fit"
    return f"use a graph with {classes} outputs"


def _parameters(graph: BlockGraph) -> set[str]:
    make = nt_models.ARCHITECTURES.get((graph.origin or {}).get("name", ""))
    return set(inspect.signature(make).parameters) if make else set()
