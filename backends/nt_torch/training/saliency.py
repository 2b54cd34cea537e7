"""Pruning at initialisation: the gradients of one batch, and the masks that the core selects by them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nt_core.structure import Single
from nt_core.structure.fission import gather
from nt_core.topology import AnySaliency, Grasp, expect_prunable, masks_of_parts, saliency_masks
from nt_torch.network.execution import Execution
from nt_torch.network.losses import ensemble_loss
from nt_torch.network.model import Ensemble, as_numpy, unwrap
from nt_torch.network.zeros import MASK


def prune_at_init(
    model: nn.Module, inputs: NDArray[Any], labels: NDArray[np.int64], *, seed: int = 0
) -> None:
    """Select a model's masks by the gradients of one batch, before the first step.

    Args:
        model: of ``nt_torch.compile``, for a spec with topology ``PruneAtInit``, perhaps wrapped.
        inputs: (N, *input shape), the first examples of the training data.
        labels: (N,) or (N, T) class numbers.
        seed: keys the division of a single network's kept connections (``Fission``).

    Raises:
        DataError: the batch is empty.
        TopologyError: the topology is not ``PruneAtInit``, or a weight has no finite score.

    Example:
        >>> import nt_core, nt_models, nt_torch
        >>> spec = nt_core.PRESETS["snip"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> model = nt_torch.compile(spec)
        >>> prune_at_init(model, np.random.default_rng(0).normal(size=(5, 8)), np.array([0, 1, 2, 0, 1]))
        >>> sum(int(model.mask(name).sum()) for name in model.masked)
        35
    """
    ensemble = unwrap(model)
    topology = expect_prunable(ensemble.spec.topology, len(inputs))
    layout = ensemble.spec.layout
    judged = _undivided(ensemble) if layout.divided else ensemble
    whole = judged.spec.layout
    values = {placed.name: as_numpy(judged.array(placed.name)) for placed in whole.sparsifiable}
    found = saliency_gradients(judged, inputs, labels, topology.criterion)
    masks = saliency_masks(topology, whole, values, found)
    for name, mask in masks_of_parts(layout, masks, seed):
        if layout.divided:
            with torch.no_grad():
                ensemble.stored(name).copy_(judged.array(layout.source(name)))
        ensemble.set_mask(name, mask)


def _undivided(model: Ensemble) -> Ensemble:
    """Return the single network whose weights a model divides."""
    values = {placed.name: as_numpy(model.array(placed.name)) for placed in model.spec.layout.weights}
    parameter = next(model.parameters())
    whole = Ensemble(model.spec.replace(structure=Single())).to(parameter.device, parameter.dtype)
    with torch.no_grad():
        for name, value in gather(model.spec.layout, values).items():
            whole.array(name).copy_(torch.from_numpy(value))
    return whole


def saliency_gradients(
    model: nn.Module, inputs: NDArray[Any], labels: NDArray[np.int64], criterion: AnySaliency
) -> dict[str, NDArray[Any]]:
    """Return the gradients of one batch for a criterion: for SNIP the gradient g, for GraSP H·g, exactly.

    Both are derivatives of the spec's loss with respect to the sparsifiable weights, in training mode but
    without dropout. The model is unchanged.

    Args:
        model: of ``nt_torch.compile``, perhaps wrapped.
        inputs: (N, *input shape).
        labels: (N,) or (N, T) class numbers.
        criterion: ``nt_core.topology.Snip()`` or ``Grasp()``.

    Returns:
        Full name → array of the weight's shape, for every sparsifiable weight that the loss depends on.
    """
    ensemble = unwrap(model)
    names = [placed.name for placed in ensemble.spec.layout.sparsifiable]
    weights = [ensemble.array(name) for name in names]
    given = torch.as_tensor(inputs, device=weights[0].device)
    given = given.to(weights[0].dtype) if given.is_floating_point() else given
    again = isinstance(criterion, Grasp)
    # No other attention kernel has a second derivative.
    with _at_start(ensemble), sdpa_kernel(SDPBackend.MATH):
        logits = ensemble(given)
        if isinstance(criterion, Grasp):
            logits = logits / criterion.temperature
        targets = torch.as_tensor(labels, device=logits.device)
        loss = ensemble_loss(logits, targets, reduction=ensemble.spec.loss_reduction)
        gradients: Any = torch.autograd.grad(loss, weights, create_graph=again, allow_unused=True)
        if again:
            pairs = [(gradient.detach() * gradient).sum() for gradient in gradients if gradient is not None]
            gradients = torch.autograd.grad(torch.stack(pairs).sum(), weights, allow_unused=True)
    return {name: as_numpy(each) for name, each in zip(names, gradients, strict=True) if each is not None}


@contextmanager
def _at_start(model: Ensemble) -> Iterator[None]:
    """Set training mode without dropout (running statistics mean nothing yet); restore it afterwards."""
    modes, execution = {module: module.training for module in model.modules()}, model.execution
    model.execution = Execution()  # which has a second derivative
    buffers: dict[str, Tensor] = {
        name: buffer.clone() for name, buffer in model.named_buffers() if not name.endswith(MASK)
    }
    for module in model.modules():
        module.training = not isinstance(module, nn.Dropout)
    try:
        yield
    finally:
        model.execution = execution
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for name, buffer in buffers.items():
                model.get_buffer(name).copy_(buffer)
