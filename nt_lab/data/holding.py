"""Division of examples into a training part and a held-out part, with a share of each class in both."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import DataError, NeuroTrailsWarning
from nt_core.masks import share_out
from nt_core.random import Random
from nt_lab.data.sources import HOLD_OUT

_SHOWN: Final = 10


def stratified(labels: NDArray[Any], share: float, seed: int, where: str) -> NDArray[np.int64]:
    """Choose rows to hold out, as large a share of each class as whole examples allow.

    A class of two or more examples has one at least in each part. A class of one example stays in training.

    Args:
        labels: (N,), of any type.
        share: of the examples that is held out, above 0 and below 1.
        seed: keys the choice.
        where: the examples, for errors.

    Returns:
        Rows in ascending order.

    Raises:
        DataError: there is no class of two examples.

    Example:
        >>> labels = np.repeat([0, 1, 2], [10, 5, 1])
        >>> labels[stratified(labels, 0.2, seed=0, where="data")].tolist()
        [0, 0, 1]
    """
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    most = counts - 1
    least = np.minimum(most, 1)
    if not most.any():
        raise DataError(
            f"data.held_out: {where}: expected a class of two examples at least, one of them to train on; "
            f"found {len(labels)} examples of {len(counts)} classes"
        )
    budget = int(np.clip(round(share * len(labels)), least.sum(), most.sum()))
    wanted = share_out(counts.tolist(), upper=most.tolist(), budget=budget, lower=least.tolist())
    order = np.argsort(
        Random(seed).at(weight="data", purpose="test").uniform(slice(0, len(labels))), kind="stable"
    )
    by_class = order[np.argsort(classes[order], kind="stable")]
    starts = np.cumsum(counts) - counts
    return np.sort(np.concatenate([by_class[a : a + n] for a, n in zip(starts, wanted, strict=True)]))


def warn_of_missing(parts: Mapping[str, NDArray[np.int64]], names: Sequence[str] | None) -> None:
    """Warn of classes that lack examples, because a wrong division of sorted data looks like that.

    Args:
        parts: what each part is called → its labels; the first is trained on.
        names: of the classes; None: the classes are the labels that occur.
    """
    found = {where: set(np.unique(labels).tolist()) for where, labels in parts.items()}
    everywhere = set[int]().union(*found.values())
    known = everywhere if names is None else everywhere | set(range(len(names)))

    def listed(classes: Collection[int]) -> str:
        shown = [str(c) if names is None or c >= len(names) else names[c] for c in sorted(classes)[:_SHOWN]]
        more = f" and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else ""
        return f"{len(classes)} of {len(known)} classes: {', '.join(shown)}{more}"

    trained_on = next(iter(parts))
    for where, present in found.items():
        if missing := everywhere - present:
            tested = f", which are tested on; {HOLD_OUT}" if where == trained_on else ""
            _warn(f"{where}: no examples of {listed(missing)}{tested}")
    if nowhere := known - everywhere:
        _warn(f"{' and '.join(parts)}: no examples of {listed(nowhere)}")


def warn_of_shared(count: int, where: str) -> None:
    """Warn of examples that are both trained on and tested on."""
    if count:
        _warn(f"{where}: {count} examples are trained on and tested on; {HOLD_OUT}")


def _warn(message: str) -> None:
    warnings.warn(message, NeuroTrailsWarning, stacklevel=3)
