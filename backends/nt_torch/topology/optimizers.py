"""Optimisers of recipes, and checks of callers' own optimisers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

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


def unwrap_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimiser inside the wrappers of accelerate or a schedule.

    Raises:
        TopologyError: the object contains no optimiser.
    """
    inner = optimizer
    while not isinstance(inner, torch.optim.Optimizer) or hasattr(inner, "accelerator_state"):
        inner = getattr(inner, "optimizer", None)
        if inner is None:
            raise TopologyError(
                "optimizer: expected a torch.optim.Optimizer, perhaps wrapped, "
                f"found {type(optimizer).__name__}"
            )
    return inner


def expect_parameters(optimizer: torch.optim.Optimizer, masked: Sequence[MaskedWeight]) -> None:
    """Check that an optimiser updates every masked weight.

    Raises:
        TopologyError: a weight is missing; the message names the first.
    """
    theirs = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [m.name for m in masked if id(m.weight) not in theirs]
    if missing:
        raise TopologyError(
            f"optimizer: {len(missing)} of the model's {len(masked)} masked weights are not in it "
            f"({missing[0]!r} first); make one optimizer of all of model.parameters(), after the model is on "
            "its device"
        )


def will_be_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a fused optimiser under GradScaler will skip this step; it is called nevertheless."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
