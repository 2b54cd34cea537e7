"""Prediction and evaluation with a compiled model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nt_core import Tokens
from nt_core.metrics import Aggregation, Metrics, evaluation_batch_size
from nt_torch.batches import as_batches
from nt_torch.network.model import as_numpy, unwrap


def predict(model: nn.Module, inputs: NDArray[Any] | Tensor, *, batch_size: int = 256) -> NDArray[np.float32]:
    """Compute every member's logits in evaluation mode; the model's own mode is restored afterwards.

    Args:
        model: of ``nt_torch.compile``, perhaps wrapped.
        inputs: (N, *input shape).
        batch_size: number of examples at a time.

    Returns:
        (M, N, …) logits on the CPU.

    Example:
        >>> import nt_core, nt_models, nt_torch
        >>> spec = nt_core.PRESETS["full_ensemble"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> predict(nt_torch.compile(spec), np.zeros((5, 8), np.float32)).shape
        (3, 5, 3)
    """
    parts = [inputs[start : start + batch_size] for start in range(0, max(len(inputs), 1), batch_size)]
    return np.concatenate([_logits(model, torch.as_tensor(part)) for part in parts], axis=1)


def evaluate(
    model: nn.Module, data: Any, *, batch_size: int | None = None, aggregation: Aggregation | None = None
) -> Metrics:
    """Evaluate a model on a dataset.

    Args:
        model: of ``nt_torch.compile``, perhaps wrapped.
        data: a test set, of any kind that ``train`` takes.
        batch_size: number of examples at a time; None: a number that keeps the logits small.
        aggregation: a fitted aggregation, say; None: the mean that the spec names.
    """
    spec = unwrap(model).spec
    size = batch_size or evaluation_batch_size(spec.members, spec.graph.output_shape)
    test = as_batches(data, spec, where="test")

    def batches() -> Iterator[Metrics]:
        for inputs, labels in test.epoch(0, size):
            yield Metrics.of(_logits(model, torch.from_numpy(inputs)), labels, aggregation or spec.mean)

    return Metrics.sum(batches())


@torch.no_grad()
def _logits(model: nn.Module, inputs: Tensor) -> NDArray[np.float32]:
    given = unwrap(model).spec.graph.input
    if isinstance(given, Tokens):
        inputs = torch.from_numpy(given.whole(as_numpy(inputs)).astype(np.int64))
    mode = model.training
    model.eval()
    try:
        parameter = next(model.parameters())
        inputs = inputs.to(parameter.device, parameter.dtype if inputs.is_floating_point() else None)
        logits: Tensor = model(inputs)
        return as_numpy(logits.float()).astype(np.float32, copy=False)
    finally:
        model.train(mode)
