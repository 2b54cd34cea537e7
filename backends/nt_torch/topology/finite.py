"""Steps that must not happen: of a loss or gradient that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from nt_core.finite import NonFinite, gradient_not_finite, loss_not_finite
from nt_torch.network.model import Ensemble
from nt_torch.processes.shards import whole


def strict(loss: Tensor, share: float) -> Tensor:
    """Return a share of a loss, by which gradients are NaN where the loss is not finite.

    So every process of several learns of it from the gradients that it gets anyway.

    Example:
        >>> x = torch.tensor([1.0, 3e38], requires_grad=True)
        >>> strict(10 * x.sum(), 0.5).backward()
        >>> x.grad
        tensor([nan, nan])
    """
    return loss * torch.where(loss.detach().isfinite(), share, math.nan)


@torch.no_grad()
def are_finite(gradients: Iterable[Tensor]) -> bool:
    """Tell whether the norm of all gradients is a finite number, in all processes if they hold parts of them.

    Example:
        >>> are_finite([torch.ones(2), torch.tensor([1.0, float("inf")])])
        False
    """
    return bool(_norm(gradients).isfinite())


class Guard:
    """Looks at what each optimiser step would be taken by, and takes back what a bad batch has changed.

    Args:
        model: whose gradients.
        policy: what to do where they are not finite.
    """

    def __init__(self, model: Ensemble, policy: NonFinite) -> None:
        self._model, self._policy = model, policy
        self._statistics = [buffer for buffer in model.buffers() if buffer.dtype != torch.bool]
        self._before = [buffer.clone() for buffer in self._statistics] if policy == "skip" else []

    def begin(self) -> None:
        """Remember the running statistics, which the forward passes of a step change."""
        if self._before:
            torch._foreach_copy_(self._before, self._statistics)

    def passes(self, step: int, lr: float) -> bool:
        """Tell whether a step may be taken by the gradients that the model has.

        Args:
            step: its number, from 1.
            lr: its learning rate.

        Raises:
            NotFiniteError: it may not, and the policy is to stop.
        """
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        if are_finite(gradients):
            return True
        if self._policy == "stop":
            raise gradient_not_finite(step, lr, self._norms())
        self._take_back()
        return False

    def passes_losses(self, step: int, lr: float, losses: Tensor) -> bool:
        """Tell whether a step that a loss scale did not take had finite losses: then a smaller scale will do.

        Args:
            step: its number, from 1.
            lr: its learning rate.
            losses: of all its micro-batches in all processes.

        Raises:
            NotFiniteError: they are not, and the policy is to stop.
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
