"""Out-of-distribution detection: a run's confidence on its test set against that on another dataset."""

from __future__ import annotations

from typing import Any

import numpy as np

from nt_core.errors import DataError
from nt_core.graph import BlockGraph, Features, Tokens
from nt_core.metrics import detection, ood_score
from nt_core.training import Batches
from nt_lab.data import Examples, Normalisation, limited
from nt_lab.data.decode import reader, resized
from nt_lab.data.sources import image_column, open_source, take
from nt_lab.evaluation.evaluate import OpenRun


def measure_ood(run: OpenRun, inside: Batches, source: str, *, limit: int | None = None) -> dict[str, Any]:
    """Detect a dataset by 1 − max p of the ensemble, the dataset being the positive class.

    Args:
        run: gives the predictions.
        inside: the run's test set.
        source: the other dataset; see :func:`outsiders`.
        limit: largest number of the other dataset's examples, evenly spaced; None: all.

    Returns:
        ``source``, the numbers of examples ``inside`` and ``outside``, ``auroc``, ``aupr``, ``fpr95``.

    Raises:
        DataError: the dataset does not fit.
    """
    predictor = run.evaluator
    normalisation = run.normalisation
    if normalisation is None or isinstance(predictor.spec.graph.input, Tokens):
        raise DataError("--ood: expected a run on images or vectors, found a language model")
    outside = limited(outsiders(source, predictor.spec.graph, normalisation), limit)
    scores = [ood_score(predictor.log_probabilities(data)) for data in (inside, outside)]
    found = detection(*scores).model_dump()
    return {"source": source, "inside": len(inside), "outside": len(outside), **found}


def outsiders(source: str, graph: BlockGraph, normalisation: Normalisation) -> Examples:
    """Load the examples of a dataset that a network was not trained for; labels are not read.

    The examples are those of the split ``test``, or of the only split. Images are resized to the network's
    size (bilinear). Grey is repeated where the network reads colour; colour becomes luma where it reads grey.
    Then the examples are normalised as the run's inputs.

    Args:
        source: as ``data.source``.
        graph: of the run.
        normalisation: of the run.

    Raises:
        DataError: no such dataset, several splits without one called ``test``, or examples that cannot fit.
    """
    splits = open_source(source)
    if "test" not in splits and len(splits) > 1:
        raise DataError(f"--ood {source!r}: expected a split 'test' or only one, found {', '.join(splits)}")
    name = "test" if "test" in splits else next(iter(splits))
    where = f"--ood {source!r}, split {name!r}"
    dataset = take(splits, name, "--ood")
    column = image_column(dataset, None, where, vectors=isinstance(graph.input, Features))
    read = reader(dataset, column, graph, where, resized(graph))
    channels = read(np.zeros(1, np.int64)).shape[1]
    if channels != len(normalisation.mean):
        raise DataError(
            f"{where}: the run was normalised for {len(normalisation.mean)} channels, found {channels}; "
            "use a dataset of the kind it was trained on"
        )
    labels = np.zeros(len(dataset), np.int64)
    return Examples(read=read, labels=labels, shape=graph.input.shape, normalisation=normalisation)
