"""Names of classes: read from a dataset's labels, and matched by name with those of a trained model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray

from nt_core.errors import MOST_NAMES, DataError
from nt_core.graph import BlockGraph

Names = tuple[str, ...] | None
"""Names of classes in the order of their numbers; None: the classes are numbers only."""


def class_names(dataset: Dataset, column: str) -> Names:
    """Return the names of the classes in a column of labels; None: it holds whole numbers."""
    feature = dataset.features[column]
    names = feature.names if isinstance(feature, ClassLabel) else None
    return None if names is None else tuple(map(str, names))


def by_name(
    names: Names, known: Names, where: str, graph: BlockGraph, labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Number labels as a trained model numbers its classes, by the classes' names.

    Where the model or the data have no names, classes are the same if their numbers are; so are names that
    are numbers themselves.

    Args:
        names: of the data's classes.
        known: names of the model's classes.
        where: the data, for errors.
        graph: of the model.
        labels: (N,), numbered as ``names``; a label outside them, as -1, is left as it is.

    Raises:
        DataError: examples of classes that the model does not have; or the model's names are not known, and
            the data lack some of its classes.

    Example:
        >>> import nt_models
        >>> graph = nt_models.mlp(inputs=4, hidden=(), classes=3)
        >>> by_name(("green", "red"), ("blue", "green", "red"), "data", graph, np.array([0, 1]))
        array([1, 2])
    """
    if names is None or names == known:
        return labels
    outputs = graph.output_shape[-1]
    if known is None:
        known = tuple(map(str, range(outputs)))
        if not set(names) <= set(known):
            if len(names) == outputs:
                return labels
            raise DataError(
                f"{where}: {len(names)} classes, {_listed(names)}, for a model of {outputs} whose names are "
                "not recorded, so that it is not to be seen which they are; give data of all its classes"
            )
    present = set(np.unique(labels).tolist())
    unknown = [name for place, name in enumerate(names) if name not in known and place in present]
    if unknown:
        raise DataError(
            f"{where}: the model does not know the classes {_listed(unknown)}; it knows {_listed(known)}; "
            "remove or rename them"
        )
    places = np.array([known.index(name) if name in known else -1 for name in names])
    inside = (labels >= 0) & (labels < len(names))
    return np.where(inside, places[np.where(inside, labels, 0)], labels)


def expect_classes(found: Names, recorded: Names, where: str) -> None:
    """Check that an interrupted training goes on with the classes with which it began.

    Raises:
        DataError: the classes are others, or in another order.
    """
    if found == recorded:
        return
    new, gone = (
        [name for name in these or () if name not in (others or ())]
        for these, others in ((found, recorded), (recorded, found))
    )
    changes = [f"new: {_listed(new)}"] * bool(new) + [f"missing: {_listed(gone)}"] * bool(gone)
    raise DataError(
        f"{where}: its classes are not those with which the interrupted run began "
        f"({'; '.join(changes) or 'their order is another'}); restore them, or start anew in another folder"
    )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - MOST_NAMES
    return ", ".join(map(repr, names[:MOST_NAMES])) + f" and {rest} more" * (rest > 0)
