"""Prediction and evaluation with a compiled model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nt_core import Tokens
from nt_core.metrics import Aggregation, Metrics, evaluation_batch_size
from nt_keras.batches import as_batches
from nt_keras.compile import Ensemble
from nt_keras.engines.layouts import batch_to_keras
from nt_keras.network.model import expect_network


def predict(model: Ensemble, inputs: NDArray[Any], *, batch_size: int = 256) -> NDArray[np.float32]:
    """Compute every member's logits, in the same layouts as ``nt_torch.predict``.

    Args:
        model: of ``nt_keras.compile``.
        inputs: (N, *input shape), images channels first. (``model.predict`` of Keras takes channels last.)
        batch_size: number of examples at a time.

    Returns:
        (M, N, …) logits.

    Example:
        >>> import nt_core, nt_models, nt_keras
        >>> spec = nt_core.PRESETS["full_ensemble"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> predict(nt_keras.compile(spec), np.zeros((5, 8), np.float32)).shape
        (3, 5, 3)
    """
    expect_network(model)
    parts = [inputs[start : start + batch_size] for start in range(0, max(len(inputs), 1), batch_size)]
    return np.concatenate([_logits(model, part) for part in parts], axis=1)


def evaluate(
    model: Ensemble, data: Any, *, batch_size: int | None = None, aggregation: Aggregation | None = None
) -> Metrics:
    """Evaluate a model on a dataset.

    Args:
        model: of ``nt_keras.compile``.
        data: a test set, of any kind that ``train`` takes.
        batch_size: number of examples at a time; None: a number that keeps the logits small.
        aggregation: a fitted aggregation, say; None: the mean that the spec names.
    """
    expect_network(model)
    spec = model.spec
    size = batch_size or evaluation_batch_size(spec.members, spec.graph.output_shape)
    test = as_batches(data, spec, where="test")

    def batches() -> Iterator[Metrics]:
        for inputs, labels in test.epoch(0, size):
            yield Metrics.of(_logits(model, inputs), labels, aggregation or spec.mean)

    return Metrics.sum(batches())


def _logits(model: Ensemble, inputs: NDArray[Any]) -> NDArray[np.float32]:
    given = model.spec.graph.input
    if isinstance(given, Tokens):
        inputs = given.whole(inputs)
    logits = model.predict_on_batch(batch_to_keras(inputs))
    return np.moveaxis(np.asarray(logits, dtype=np.float32), 1, 0)
