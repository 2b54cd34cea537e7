"""Labels: class numbers, and the one number that means that an example or a token does not count."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import DataError

IGNORED: Final = -100
"""Label of an example or a token that counts in no loss and in no metric, as in PyTorch."""


def expect_labels(labels: NDArray[Any], classes: int, where: str = "labels") -> None:
    """Check labels on the host, because devices compute with wrong ones, or stop for good.

    Args:
        labels: integers of any shape; :data:`IGNORED` is allowed.
        classes: number of classes.
        where: what they are called in errors.

    Raises:
        DataError: a label is no whole number, or outside the classes.

    Example:
        >>> expect_labels(np.array([0, 9, -100]), classes=10)
        >>> expect_labels(np.array([0, -1]), classes=10)
        Traceback (most recent call last):
        nt_core.errors.DataError: labels: -1 at position 1, expected 0 to 9
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{where}: expected whole numbers, found {labels.dtype}")
    outside = ((labels < 0) | (labels >= classes)) & (labels != IGNORED)
    if outside.any():
        at = tuple(int(i) for i in np.argwhere(outside)[0])
        raise DataError(
            f"{where}: {labels[at]} at position {', '.join(map(str, at))}, expected 0 to {classes - 1}"
        )
