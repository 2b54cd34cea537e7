"""Guard against optimiser steps of a loss or gradient that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from nt_core.finite import NonFinite, gradient_not_finite, loss_not_finite
from nt_torch.network.model import Ensemble
from nt_torch.processes.shards import whole


def strict(loss: Tensor, share: float) -> Tensor:
    """Return a share of a loss, whose gradients are NaN where the loss is not finite.

    Every process then detects the loss from the averaged gradients, without further communication.

    Example:
        >>> x = torch.tensor([1.0, 3e38], requires_grad=True)
        >>> strict(10 * x.sum(), 0.5).backward()
        >>> x.grad
        tensor([nan, nan])
    """
    return loss * torch.where(loss.detach().isfinite(), share, math.nan)


@torch.no_grad()
def are_finite(gradients: Iterable[Tensor]) -> bool:
    """Return whether the norm of all gradients is finite, in all processes if gradients are sharded.

    Example:
        >>> are_finite([torch.ones(2), torch.tensor([1.0, float("inf")])])
        False
    """
    return bool(_norm(gradients).isfinite())


class Guard:
    """Guard that checks the gradients of each optimiser step, and undoes the changes of a bad batch.

    Args:
        model: the model whose gradients are checked.
        policy: reaction to gradients that are not finite.
    """

    def __init__(self, model: Ensemble, policy: NonFinite) -> None:
        self._model, self._policy = model, policy
        self._statistics = [buffer for buffer in model.buffers() if buffer.dtype != torch.bool]
        self._before = [buffer.clone() for buffer in self._statistics] if policy == "skip" else []

    def begin(self) -> None:
        """Copy the running statistics, which the forward passes of a step change."""
        if self._before:
            torch._foreach_copy_(self._before, self._statistics)

    def passes(self, step: int, lr: float) -> bool:
        """Return whether a step may be taken with the model's present gradients.

        Args:
            step: number of the step, from 1.
            lr: learning rate of the step.

        Raises:
            NotFiniteError: the step may not be taken, and the policy is to stop.
        """
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        if are_finite(gradients):
            return True
        if self._policy == "stop":
            raise gradient_not_finite(step, lr, self._norms())
        self._take_back()
        return False

    def passes_losses(self, step: int, lr: float, losses: Tensor) -> bool:
        """Return whether a step skipped by a loss scale had finite losses, so that a smaller scale suffices.

        Args:
            step: number of the step, from 1.
            lr: learning rate of the step.
            losses: of all micro-batches of the step in all processes.

        Raises:
            NotFiniteError: the losses are not finite, and the policy is to stop.
        """
        if bool(losses.isfinite().all()):
            return True
        if self._policy == "stop":
            raise loss_not_finite(step, lr)
        self._take_back()
        return False

    @torch.no_grad()
    def _take_back(self) -> None:
        if self._before:
            torch._foreach_copy_(self._statistics, self._before)

    @torch.no_grad()
    def _norms(self) -> dict[str, float]:
        """Return the norm of each weight's gradient."""
        trained = (placed.name for placed in self._model.spec.layout.weights if placed.weight.trainable)
        named = ((name, self._model.array(name).grad) for name in trained)
        return {name: float(_norm([gradient])) for name, gradient in named if gradient is not None}


def _norm(gradients: Iterable[Tensor]) -> Tensor:
    return whole(torch.nn.utils.get_total_norm(gradients))
