"""The parts of a trainer's record that belong to the model: aggregation, names of classes, preprocessing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nt_core.errors import CheckpointError, SpecError
from nt_core.graph import Image
from nt_core.metrics import Aggregation, Fitted
from nt_core.spec import EnsembleSpec
from nt_core.training import Normalisation, Preprocessing
from nt_core.values import shown


def aggregation_of(spec: EnsembleSpec, record: Mapping[str, Any]) -> Aggregation:
    """Return the aggregation of a trained ensemble's predictions.

    Args:
        spec: of the ensemble.
        record: of a checkpoint or a run; ``"fitted"`` in it is the aggregation fitted on held-out examples.

    Returns:
        The fitted aggregation, if recorded; else the mean that the spec names.

    Raises:
        CheckpointError: the recorded aggregation is invalid.
    """
    found = record.get("fitted")
    if found is None:
        return spec.mean
    if not isinstance(found, Mapping):
        raise CheckpointError(f"record: fitted: expected weights and a temperature, found {shown(found)}")
    return Fitted(**found)


def classes_of(record: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names of a trained ensemble's classes, in the order of its outputs.

    Args:
        record: of a checkpoint or a run; the names are ``record["data"]["classes"]``.

    Returns:
        The names, which may be fewer than the outputs; None: none are recorded.

    Raises:
        CheckpointError: the recorded names are no list of distinct names.

    Example:
        >>> classes_of({"data": {"classes": ["cat", "dog"]}}), classes_of({})
        (('cat', 'dog'), None)
    """
    found = _data(record).get("classes")
    if found is None:
        return None
    names = isinstance(found, list | tuple) and all(isinstance(name, str) for name in found)
    if not names or len(set(found)) < len(found):
        raise CheckpointError(f"record: data.classes: expected distinct names, found {shown(found)}")
    return tuple(found)


def preprocessing_of(spec: EnsembleSpec, record: Mapping[str, Any]) -> Preprocessing | None:
    """Return the preprocessing of a trained ensemble's inputs.

    Args:
        spec: of the ensemble.
        record: of a checkpoint or a run; the preprocessing is ``record["data"]["preprocessing"]``. Older runs
            recorded ``normalisation`` alone, which is enough for networks that read images.

    Returns:
        The preprocessing; None: none is recorded, as of tokens.

    Raises:
        CheckpointError: the recorded preprocessing is invalid, or of inputs of another size.
    """
    data, shape = _data(record), spec.graph.input.shape
    found, measured = data.get("preprocessing"), data.get("normalisation")
    try:
        if isinstance(found, Mapping):
            preprocessing = Preprocessing(**found)
        elif found is None and isinstance(measured, Mapping) and isinstance(spec.graph.input, Image):
            preprocessing = Preprocessing(shape=shape, normalisation=Normalisation(**measured))
        elif found is None:
            return None
        else:
            raise SpecError(f"expected keys and values, found {shown(found)}")
    except (SpecError, TypeError) as error:
        raise CheckpointError(f"record: data.preprocessing: {error}") from None
    images = isinstance(spec.graph.input, Image)
    if math.prod(preprocessing.shape) != math.prod(shape) or (images and preprocessing.shape != shape):
        raise CheckpointError(
            f"record: data.preprocessing: expected examples of the network's input shape {shape}, found "
            f"{preprocessing.shape}"
        )
    return preprocessing


def _data(record: Mapping[str, Any]) -> Mapping[str, Any]:
    found = record.get("data")
    return found if isinstance(found, Mapping) else {}
