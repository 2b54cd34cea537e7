"""Advice in errors about examples that do not fit a graph, right for all examples and not for one alone."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from datasets import Dataset
from datasets import Image as ImageFeature

import nt_models
from nt_core.graph import BlockGraph, Image
from nt_core.values import Shape
from nt_lab.data.pictures import measure_picture

SURVEYED: Final = 2000
"""Most examples of a split that are looked at for advice, evenly spaced."""

_SHOWN: Final = 3


def survey(datasets: Sequence[Dataset], column: str) -> Counter[Shape]:
    """Count the shapes of examples, (channels, height, width) or (features,), by the headers of images."""
    found: Counter[Shape] = Counter()
    for dataset in datasets:
        if column not in dataset.features:
            continue
        inputs = dataset.select_columns([column])
        pictures = isinstance(dataset.features[column], ImageFeature)
        if pictures:
            inputs = inputs.cast_column(column, ImageFeature(decode=False))
        for row in spaced(len(inputs), SURVEYED).tolist():
            item = inputs[row][column]
            shape = measure_picture(item) if pictures else None if item is None else (len(item),)
            found.update([shape] if shape else [])
    return found


def spaced(count: int, most: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return at most ``most`` of ``count`` rows, evenly spaced.

    Example:
        >>> spaced(10, 4)
        array([0, 2, 5, 7])
    """
    return np.arange(min(count, most)) * count // min(count, most)


def fits(shape: Shape, graph: BlockGraph) -> bool:
    """Return whether an example fits a graph; images are flattened for a graph of features."""
    expected = graph.input.shape
    return shape == expected if isinstance(graph.input, Image) else math.prod(shape) == math.prod(expected)


def misfit(
    found: Shape, first: Shape | None, graph: BlockGraph, seen: Counter[Shape], *, trained: bool
) -> str:
    """Describe an example that does not fit, and what would fit all that were seen.

    Args:
        found: shape of the example.
        first: shape of the first example; None: this is the first.
        graph: gives the expected shape.
        seen: shapes of all examples, of :func:`survey`.
        trained: whether the graph fits other examples, on which it is or was trained.
    """
    if first is not None and fits(found, graph):
        text = f"expected {described(first)} as in the first example, found {described(found)}"
    else:
        text = f"the graph expects {described(graph.input.shape)}, found {described(found)}"
    several = ""
    if len(seen) > 1:
        listed = ", ".join(f"{'×'.join(map(str, shape))} ({n})" for shape, n in seen.most_common(_SHOWN))
        several = f"; {len(seen)} shapes occur: {listed}{', …' if len(seen) > _SHOWN else ''}"
    return f"{text}{several}; {_remedy(found, first, graph, seen, trained=trained)}"


def described(shape: Shape) -> str:
    """Return the shape of an example in words."""
    if len(shape) == 1:
        return f"{shape[0]} features"
    return f"{'×'.join(map(str, shape))} (channels × height × width)"


def _remedy(
    found: Shape, first: Shape | None, graph: BlockGraph, seen: Counter[Shape], *, trained: bool
) -> str:
    if len(found) == 1:
        return "give vectors of one length" if len(seen) > 1 else input_remedy(graph, found)
    shapes = seen or Counter([found])
    channels, sizes = max(shape[0] for shape in shapes), Counter[Shape]()
    for shape, count in shapes.items():
        sizes[shape[1:]] += count
    ((common, _),) = sizes.most_common(1)
    if len(sizes) == 1 and not trained:
        return input_remedy(graph, (channels, *common))
    image = isinstance(graph.input, Image)
    size = graph.input.shape[1:] if image else (first or found)[1:] if trained else common
    resize = f"data.resize=[{','.join(map(str, size))}]"
    if trained:
        return f"resize the images, or train with --set {resize}"
    other = ""
    if "channels" in _parameters(graph) and channels != graph.input.shape[0]:
        other = f" --set graph.channels={channels}"
    if "inputs" in _parameters(graph) and not fits((channels, *size), graph):
        other = f" --set graph.inputs=[{channels},{','.join(map(str, size))}]"
    return f"--set {resize}{other} would fit"


def input_remedy(graph: BlockGraph, shape: Shape) -> str:
    """Return the settings with which a graph reads examples of one shape."""
    known = _parameters(graph)
    if "inputs" in known:
        inputs = str(shape[0]) if len(shape) == 1 else f"[{','.join(map(str, shape))}]"
        return f"--set graph.inputs={inputs} would fit"
    if {"size", "channels"} <= known and len(shape) == 3 and shape[1] == shape[2]:
        return f"--set graph.size={shape[1]} --set graph.channels={shape[0]} would fit"
    if isinstance(graph.input, Image) and len(shape) == 3:
        size = ",".join(map(str, graph.input.shape[1:]))
        return f"--set data.resize=[{size}] would fit, or use a graph with that input"
    return "resize the examples, or use a graph with that input"


def classes_remedy(graph: BlockGraph, classes: int) -> str:
    """Return the settings with which a graph has outputs for some number of classes."""
    if "classes" in _parameters(graph):
        return f"--set graph.classes={classes} would fit"
    return f"use a graph with {classes} outputs"


def _parameters(graph: BlockGraph) -> set[str]:
    make = nt_models.ARCHITECTURES.get((graph.origin or {}).get("name", ""))
    return set(inspect.signature(make).parameters) if make else set()
