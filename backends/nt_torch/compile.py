"""Compile a spec into an ordinary ``torch.nn.Module``."""

from __future__ import annotations

import torch
from torch import nn

from nt_core import EnsembleSpec, initial_masks, initial_values
from nt_torch.network.model import Ensemble, find_device


def compile(  # noqa: A001
    spec: EnsembleSpec,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Ensemble:
    """Compile a spec into a module, with the same initial values and masks in every backend.

    Args:
        spec: of the ensemble.
        seed: keys initial values and masks.
        device: of the module.
        dtype: of the parameters.

    Returns:
        A module in training mode; ``model(x)`` has shape (M, B, …).

    Example:
        >>> import nt_models
        >>> from nt_core import Dynamic, MultiHead
        >>> graph = nt_models.wide_resnet(depth=10, width=1, classes=10, size=8, channels=1)
        >>> spec = EnsembleSpec(graph=graph, structure=MultiHead(split=1, heads=3),
        ...                     topology=Dynamic(sparsity=0.8))
        >>> model = compile(spec, seed=0)
        >>> model(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([3, 5, 10])
    """
    with torch.device("meta"):
        model = Ensemble(spec)
    model = model.to(dtype).to_empty(device=find_device(device))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.num_batches_tracked is not None:
                module.num_batches_tracked.zero_()
        # Masks first: making one takes several times its size, and unfilled parameters take no memory.
        masks = {}
        for name, mask in initial_masks(spec.topology, spec.layout, seed):
            masks[name] = model.register_mask(name, mask)
            del mask
        in_place = dtype == torch.float32 and find_device(device).type == "cpu"
        memory = (lambda placed: model.stored(placed.name).detach().numpy()) if in_place else None
        for name, value in initial_values(spec.layout, seed, into=memory):
            array = model.stored(name)
            if not in_place:
                array.copy_(torch.from_numpy(value))
            if name in masks:
                array.masked_fill_(~masks[name], 0)
        model.zeros.note()
    return model
