"""The steps of a training: gradients of micro-batches, and one step of the optimiser for each batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from nt_core import EnsembleSpec
from nt_core.finite import skipped
from nt_core.training import Report, Timeline, Training
from nt_torch.network.losses import ensemble_loss
from nt_torch.topology.finite import Guard, strict
from nt_torch.topology.topology import Topology
from nt_torch.training.position import Position


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Takes the steps of one training.

    Attributes:
        spec: of the model.
        training: the recipe.
        timeline: of the spec's plan; it has the factors on the learning rate.
        accelerator: of the training.
        model: wrapped by accelerate.
        topology: of the model and its optimiser.
        guard: judges losses and gradients.
        report: receives events.
    """

    spec: EnsembleSpec
    training: Training
    timeline: Timeline
    accelerator: Accelerator
    model: nn.Module
    topology: Topology
    guard: Guard
    report: Report

    @property
    def lr(self) -> float:
        """The present learning rate."""
        return float(self.topology.optimizer.param_groups[0]["lr"])

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss that the spec means, in the recipe's precision."""
        with self.accelerator.autocast():
            logits = model(inputs)
        return ensemble_loss(logits.float(), labels, self.spec)

    def backward(self, inputs: Tensor, labels: Tensor, share: float, at: Position) -> Tensor:
        """Add a micro-batch's gradients to those of its step; return its loss.

        Args:
            inputs: (rows, *shape).
            labels: (rows, …).
            share: of the loss in that of the optimiser's step.
            at: the position before the micro-batch.
        """
        if at.seen % self.training.batch_size == 0:
            self.guard.begin()
        with self.accelerator.accumulate(self.model):
            loss = self.loss(self.model, inputs, labels)
            self.accelerator.backward(strict(loss, share))
        return loss.detach()

    def step(self, optimizer: torch.optim.Optimizer, at: Position) -> None:
        """Take an optimiser step, unless its loss or gradient is not finite; then the batch is left out.

        Args:
            optimizer: prepared by accelerate.
            at: the position, which counts batches that are left out.

        Raises:
            NotFiniteError: the recipe says to stop where something is not finite.
        """
        taken = self.topology.steps
        factor = self.timeline.factor(self.training.learning_rate, taken)
        for group in optimizer.param_groups:
            group["lr"] = self.training.optimizer.lr * factor
        # A loss scale finds its size by gradients that are not finite, and takes no step by them either.
        scaled = self.accelerator.scaler is not None
        if good := scaled or self.guard.passes(taken + 1, self.lr):
            self._optimize(optimizer)
        optimizer.zero_grad()
        if scaled and self.topology.steps == taken:
            count = at.micro_batches(self.training)
            losses = self.accelerator.reduce(torch.stack(at.losses[-count:]), "sum")
            good = self.guard.passes_losses(taken + 1, self.lr, losses)
        if not good:
            at.leave_out(self.training)
            self.report(skipped(taken + 1, at.skipped))

    def _optimize(self, optimizer: torch.optim.Optimizer) -> None:
        taken = self.topology.steps
        if self.training.clip_norm is not None:
            self.accelerator.unscale_gradients()
            self.topology.mask_gradients()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip_norm)
        optimizer.step()
        changed = self.topology.step()
        if self.topology.steps > taken:
            self.report({"event": "step", "step": self.topology.steps})
        if changed is not None:
            self.report(changed.to_event())
