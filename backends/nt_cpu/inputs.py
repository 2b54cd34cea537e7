"""Checks of the arguments of a call, before the kernels get bare addresses and counts."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nt_core import DataError, Tokens
from nt_core.structure import Layout
from nt_cpu.native import MOST_THREADS


def expect_counts(*, threads: int = 1, batch: int = 1) -> None:
    """Check the number of threads and the usual number of examples.

    Args:
        threads: 1 to 1024.
        batch: at least 1.

    Raises:
        DataError: a count is no whole number, or out of range; the message names the first.
    """
    for name, count in (("batch", batch), ("threads", threads)):
        try:
            whole = operator.index(count)
        except TypeError:
            raise DataError(f"{name}: expected a whole number, found {count!r}") from None
        if whole < 1:
            raise DataError(f"{name}: expected at least 1, found {count}")
    if threads > MOST_THREADS:
        raise DataError(f"threads: expected at most {MOST_THREADS}, found {threads}")


def numbers(inputs: Any) -> NDArray[Any]:
    """Return what a call is given as an array of real numbers, of any dtype.

    Raises:
        DataError: NumPy makes no array of it, or one of something else, or there is a mask.
    """
    if isinstance(inputs, np.ma.MaskedArray):
        raise DataError("input: found a masked array, whose mask would be ignored; fill it: x.filled(value)")
    try:
        found = np.asarray(inputs)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"input: NumPy makes no array of it: {error}") from None
    if found.dtype.kind not in "fiub":
        raise DataError(f"input: expected real numbers, found dtype {found.dtype}")
    return found


def examples(inputs: Any, layout: Layout) -> NDArray[Any]:
    """Return a batch of examples as an array. (N, *input shape) → the same.

    Args:
        inputs: as for :func:`numbers`.
        layout: of the ensemble.

    Raises:
        DataError: inputs are no real numbers, have another shape, or are tokens outside the vocabulary.
    """
    found, expected = numbers(inputs), layout.input_shape
    if found.shape[1:] != expected or not found.ndim:
        raise DataError(
            f"input: expected shape (batch, {', '.join(map(str, expected))}), found {found.shape}; "
            "images are (batch, channels, height, width)"
        )
    if isinstance(layout.graph.input, Tokens) and found.size:
        return layout.graph.input.whole(found)
    return found
