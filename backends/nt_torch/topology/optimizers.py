"""Optimisers of recipes, and checks of callers' own optimisers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nt_core.errors import TopologyError
from nt_core.training import SGD, Adam, AdamW, Training
from nt_torch.network.model import Ensemble
from nt_torch.topology.masked import MaskedWeight

ZERO_STAYS_ZERO = frozenset(
    {
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.RMSprop,
        torch.optim.Adadelta,
    }
)
"""Optimisers that leave a weight and its state at 0 if weight, state and gradient are 0 (tested)."""


def keeps_zeros(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step leaves a weight and its state at 0 if weight, state and gradient are 0.

    An ``eps`` that is 0 in the weights' precision gives NaN there, because 0 is divided by 0.
    """
    return type(optimizer) in ZERO_STAYS_ZERO and all(
        float(torch.tensor(group.get("eps", 1.0), dtype=group["params"][0].dtype)) > 0
        for group in optimizer.param_groups
        if group["params"]
    )


def make_optimizer(model: Ensemble, training: Training) -> torch.optim.Optimizer:
    """Return a recipe's optimiser for a model's parameters."""
    match training.optimizer:
        case SGD(lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay):
            return torch.optim.SGD(
                decay_groups(model), lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay
            )
        case Adam(lr=lr, betas=betas, eps=eps, weight_decay=decay):
            # Fused, because exact zeros slow the plain one down on CPUs whose square root is slow for them.
            return torch.optim.Adam(
                decay_groups(model), lr=lr, betas=betas, eps=eps, weight_decay=decay, fused=True
            )
        case AdamW(lr=lr, betas=betas, eps=eps, weight_decay=decay):
            return torch.optim.AdamW(
                decay_groups(model), lr=lr, betas=betas, eps=eps, weight_decay=decay, fused=True
            )


def decay_groups(model: Ensemble) -> list[dict[str, Any]]:
    """Return a model's parameters for an optimiser, with undecayed parameters in a group of their own.

    Example:
        >>> import nt_models
        >>> from nt_core import EnsembleSpec
        >>> from nt_torch.compile import compile
        >>> spec = EnsembleSpec(graph=nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> [len(group["params"]) for group in decay_groups(compile(spec))]
        [4]
    """
    trained = [placed for placed in model.spec.layout.weights if placed.weight.trainable]
    groups: list[dict[str, Any]] = [
        {"params": [model.array(p.name) for p in trained if p.weight.decayed]},
        {"params": [model.array(p.name) for p in trained if not p.weight.decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def family(optimizer: Any) -> tuple[torch.optim.Optimizer, ...]:
    """Return an optimiser with those inside it, the outermost first: they step together.

    Optimisers of optimisers (SAM, Lookahead), the wrappers of accelerate and of schedules are looked into.

    Raises:
        TopologyError: the object contains no optimiser.

    Example:
        >>> inner = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
        >>> schedule = torch.optim.lr_scheduler.ConstantLR(inner)
        >>> family(schedule) == (inner,)
        True
    """
    found: list[torch.optim.Optimizer] = []
    waiting, seen = [optimizer], {id(optimizer)}
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, torch.optim.Optimizer) and not hasattr(each, "accelerator_state"):
            found.append(each)
        for held in getattr(each, "__dict__", {}).values():
            for inner in held if isinstance(held, list | tuple) else (held,):
                if isinstance(inner, torch.optim.Optimizer) and id(inner) not in seen:
                    seen.add(id(inner))
                    waiting.append(inner)
    if not found:
        raise TopologyError(
            "optimizer: expected a torch.optim.Optimizer, perhaps wrapped, or a list of them; "
            f"found {type(optimizer).__name__}"
        )
    return tuple(found)


def parameters_of(optimizers: Sequence[torch.optim.Optimizer]) -> dict[int, nn.Parameter]:
    """Return the parameters that some optimisers update, by their identity."""
    return {id(p): p for each in optimizers for group in each.param_groups for p in group["params"]}


def expect_parameters(optimizers: Sequence[torch.optim.Optimizer], masked: Sequence[MaskedWeight]) -> None:
    """Check that optimisers update masked weights, and warn of weights that nobody trains or freezes.

    Raises:
        TopologyError: they update none of the weights that may change.
    """
    theirs = parameters_of(optimizers)
    trained = [m for m in masked if m.weight.requires_grad]
    missing = [m.name for m in trained if id(m.weight) not in theirs]
    if missing and len(missing) == len(trained):
        raise TopologyError(
            f"optimizer: {len(missing)} of the model's {len(masked)} masked weights are not in it "
            f"({missing[0]!r} first); make one optimizer of all of model.parameters(), after the model is on "
            "its device, or give a list of optimisers"
        )
    if missing:
        warnings.warn(
            f"optimizer: {len(missing)} of the model's {len(masked)} masked weights are in no optimiser "
            f"({missing[0]!r} first), so their values and masks stay as they are; give Topology a list of "
            "all optimisers, or freeze them by requires_grad_(False)",
            stacklevel=4,
        )


def will_be_skipped(optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Return whether a fused optimiser under GradScaler will skip this step; it is called nevertheless."""
    found = [getattr(each, "found_inf", None) for each in optimizers]
    return any(each is not None and bool(each) for each in found)
