"""Pruning at initialisation: the gradients of one batch, and the masks that the core selects by them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from nt_core.structure import Single
from nt_core.structure.fission import gather
from nt_core.topology import AnySaliency, Grasp, expect_prunable, masks_of_parts, saliency_masks
from nt_keras.compile import Ensemble
from nt_keras.engines import engine
from nt_keras.engines.layouts import batch_to_keras, to_canonical
from nt_keras.network.losses import ensemble_loss
from nt_keras.network.model import HALF


def prune_at_init(model: Ensemble, inputs: NDArray[Any], labels: NDArray[np.int64], *, seed: int = 0) -> None:
    """Select a model's masks by the gradients of one batch, before the first step.

    Args:
        model: of ``nt_keras.compile``, for a spec whose topology is ``PruneAtInit``.
        inputs: (N, *input shape), the first examples of the training data; images channels first, as for
            ``nt_keras.predict``.
        labels: (N,) or (N, T) class numbers.
        seed: keys the division of a single network's kept connections (``Fission``).

    Raises:
        DataError: the batch is empty.
        TopologyError: the topology is not ``PruneAtInit``, or a weight has no finite score.

    Example:
        >>> import nt_core, nt_models, nt_keras
        >>> spec = nt_core.PRESETS["snip"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> model = nt_keras.compile(spec)
        >>> prune_at_init(model, np.random.default_rng(0).normal(size=(5, 8)), np.array([0, 1, 2, 0, 1]))
        >>> sum(int(model.mask(name).sum()) for name in model.masked)
        35
    """
    topology = expect_prunable(model.spec.topology, len(inputs))
    layout = model.spec.layout
    judged = _in_full(model)
    whole = judged.spec.layout
    values = {placed.name: judged.array(placed.name) for placed in whole.sparsifiable}
    found = saliency_gradients(judged, inputs, labels, topology.criterion)
    masks = saliency_masks(topology, whole, values, found)
    for name, mask in masks_of_parts(layout, masks, seed):
        model.set_mask(name, mask)
        if layout.divided:
            model.set_array(name, values[layout.source(name)])


def saliency_gradients(
    model: Ensemble, inputs: NDArray[Any], labels: NDArray[np.int64], criterion: AnySaliency
) -> dict[str, NDArray[Any]]:
    """Return the gradients of one batch for a criterion: for SNIP the gradient g, for GraSP H·g, exactly.

    Both are derivatives of the spec's loss with respect to the sparsifiable weights, in training mode but
    without dropout. The model is unchanged.

    Args:
        model: of ``nt_keras.compile``; its kernels must be trainable.
        inputs: (N, *input shape), images channels first.
        labels: (N,) or (N, T) class numbers.
        criterion: ``nt_core.topology.Snip()`` or ``Grasp()``.

    Returns:
        Full name → array in the canonical layout, for every sparsifiable weight that the loss depends on.
    """
    spec = model.spec
    names = [placed.name for placed in spec.layout.sparsifiable]
    loss, temperature = ensemble_loss(reduction=spec.loss_reduction), 1.0
    if isinstance(criterion, Grasp):
        temperature = criterion.temperature
    with _at_start(model):
        gradients = engine.gradients(
            model,
            _in_dtype(batch_to_keras(inputs), model.compute_dtype),
            lambda logits: loss(labels, logits / temperature),
            [model.variable(name) for name in names],
            again=isinstance(criterion, Grasp),
        )
    return {
        name: to_canonical(engine.to_numpy(gradient), model.axes(name))
        for name, gradient in zip(names, gradients, strict=True)
        if gradient is not None
    }


def _in_dtype(inputs: NDArray[Any], dtype: str) -> Any:
    """Keep Keras from rounding a batch to its ``floatx``."""
    return inputs if inputs.dtype.kind != "f" else keras.ops.convert_to_tensor(inputs, dtype=dtype)


def _in_full(model: Ensemble) -> Ensemble:
    """Return the network whose weights are scored: undivided, computing in the precision of its variables."""
    spec, layout = model.spec, model.spec.layout
    if model.dtype_policy.compute_dtype not in HALF and not layout.divided:
        return model
    values = {placed.name: model.array(placed.name) for placed in layout.weights}
    if layout.divided:
        spec, values = spec.replace(structure=Single()), gather(layout, values)
    full = Ensemble(spec, dtype=model.dtype_policy.variable_dtype)
    for name, value in values.items():
        full.set_array(name, value)
    return full


@contextmanager
def _at_start(model: Ensemble) -> Iterator[None]:
    """Disable dropout, and restore the statistics afterwards."""
    dropout = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    rates = [layer.rate for layer in dropout]
    kept = [
        (each, keras.ops.copy(each.value)) for each in model.non_trainable_variables if each.dtype != "bool"
    ]
    for layer in dropout:
        layer.rate = 0.0
    try:
        yield
    finally:
        for layer, rate in zip(dropout, rates, strict=True):
            layer.rate = rate
        for variable, value in kept:
            variable.assign(value)
