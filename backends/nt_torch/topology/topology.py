"""Sparse-topology training in anybody's loop: one object, and one line after the optimiser's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from nt_core.errors import TopologyError
from nt_core.masks import NUMPY, Moment
from nt_core.policies import Layer, Policy
from nt_core.random import Random
from nt_core.topology import (
    Bits,
    DeclaredTopology,
    Update,
    expect_chosen,
    expect_escapes,
    seen_with,
    update,
)
from nt_torch.network.model import Ensemble, unwrap
from nt_torch.processes.group import expect_same_masks, group_of
from nt_torch.processes.shards import local
from nt_torch.topology.arrays import TorchArrays
from nt_torch.topology.gradients import DenseGradients, HeldBack, expect_gradient
from nt_torch.topology.hooks import StepHooks, Stepping
from nt_torch.topology.masked import MaskedWeight, masked_weights, shards_of
from nt_torch.topology.optimizers import ZERO_STAYS_ZERO, expect_parameters, unwrap_optimizer, will_be_skipped
from nt_torch.topology.remask import remask_


class Topology:
    """Keeps a model's inactive weights at zero and updates its topology as its spec says.

    It works through PyTorch's own hooks on the optimiser. Before each step it sets the gradient of inactive
    weights to zero, so that the optimiser sees the sparse model's gradient; after it, inactive weights and
    every tensor of optimiser state of their shape are exactly zero, with any optimiser. Steps that
    did not happen (gradient accumulation, a skipped step under GradScaler) do not count.

    Call :meth:`step` once after each optimiser step. If you clip gradients, call :meth:`mask_gradients`
    before clipping, so that the norm is the sparse model's. Steps with a closure work too. Write to weights
    through PyTorch, not through ``.data``, which PyTorch does not count as a change.

    Args:
        model: compiled by ``nt_torch.compile``, perhaps wrapped.
        optimizer: any ``torch.optim.Optimizer`` over its parameters, perhaps wrapped by accelerate.
        total_steps: optimiser steps of the whole training; schedules depend on it.
        seed: keys random growth and soft pruning; for Deep R, whose signs are those of initial values, the
            seed that the model was compiled with.
        policy: a policy of one's own instead of the spec's prune and grow.
        escapes: steps that a large prune-and-grow follows in spite of the schedule, and its drop fraction;
            ``spec.timeline(…).escapes`` gives a plan's.
        leaving: called before each escape changes anything.

    Attributes:
        steps: optimiser steps taken.

    Example:
        >>> import nt_core, nt_models, nt_torch
        >>> spec = nt_core.PRESETS["rigl"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> model = nt_torch.compile(spec)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> topology = Topology(model, optimizer, total_steps=1000)
        >>> for _ in range(2):
        ...     loss = nt_torch.ensemble_loss(model(torch.randn(4, 8)), torch.tensor([0, 1, 2, 0]))
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step()
        ...     _ = topology.step()
        >>> round(topology.density, 2)
        0.2
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        total_steps: int,
        seed: int = 0,
        policy: Policy | None = None,
        escapes: Mapping[int, float] = MappingProxyType({}),
        leaving: Callable[[], None] = lambda: None,
    ) -> None:
        if total_steps < 1:
            raise TopologyError(f"total_steps: expected at least 1, found {total_steps}")
        self.model: Ensemble = unwrap(model)
        self.optimizer: torch.optim.Optimizer = unwrap_optimizer(optimizer)
        self.total_steps = total_steps
        self.steps = 0
        self._random = Random(seed)
        self._policy = policy
        self._escapes, self._leaving = expect_escapes(escapes, self.model.spec.topology), leaving
        self._masked = masked_weights(self.model)
        self._group = group_of(model)
        self._seen: dict[str, Bits] = {}
        self._held_back = HeldBack()
        self._versions: list[tuple[int, int]] = []
        self._unseen_step = self._zeros_stay = False
        expect_parameters(self.optimizer, self._masked)
        spec, active = self.model.spec, sum(int(masked.mask.count_nonzero()) for masked in self._masked)
        expect_chosen(spec.topology, spec.layout, active)
        self._hooks = StepHooks(
            self.optimizer,
            Stepping(
                begin=self._begin_step,
                prepare=self._prepare_gradients,
                finish=self._finish_step,
                loaded=self._versions.clear,
            ),
        )
        self._shards = shards_of(self._masked, spec.topology)
        self._gradients = DenseGradients(self._shards, spec.topology.momentum_beta)
        for masked in self._masked:
            masked.shard_mask()

    @property
    def density(self) -> float:
        """Active over all maskable weights; of sharded ones, every process must ask."""
        size = sum(masked.mask.numel() for masked in self._masked)
        active = sum(int(local(masked.mask).count_nonzero()) for masked in self._masked)
        active = active if self._shards is None else self._shards.sums([active])[0]
        return active / size if size else 1.0

    def step(self) -> Update | None:
        """Update the topology if an update is due after the optimiser's last step.

        Returns:
            The changes, or None. Calling it when the optimiser took no step does nothing.

        Raises:
            TopologyError: a weight is not finite; names weight and step, and no mask has changed. (A gradient
                that is not finite is reported by the optimiser's step, before it changes anything.)
        """
        self._hooks.reset()
        if not self._unseen_step:
            self._gradients.forget_skipped(self._parameters)
            return None
        self._unseen_step = False
        gradients = self._gradients.take()
        if self.steps in self._escapes:
            self._leaving()
        return self._update(gradients) if self._due(self.steps) else None

    def mask_gradients(self) -> None:
        """Set the gradient of inactive weights to zero, in place; a dense copy is kept where it is read.

        Called before every optimiser step anyway; call it yourself before clipping, after
        ``scaler.unscale_`` if you use a GradScaler.
        """
        smooths = self._topology.momentum_beta is not None
        reads_dense = smooths or (self._due(self.steps + 1) and self._reads_gradient())
        for masked in self._masked:
            gradient = masked.weight.grad
            if gradient is None:
                continue
            if reads_dense:
                self._gradients.keep(masked, gradient)
            remask_(local(gradient), local(masked.mask))

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed training needs beside the model's and the optimiser's.

        Apart from three numbers, that are the masks so far (as tensors: one bit for each position; of sharded
        weights, flags that are sharded too) and, where the topology reads it, the smoothed dense gradient.
        """
        return {
            "steps": self.steps,
            "total_steps": self.total_steps,
            "seed": self._random.seed,
            "seen": {m.name: m.whole_seen(self._seen[m.name]) for m in self._masked if self._seen},
            "momentum": {name: smoothed.clone() for name, smoothed in self._gradients.smoothed.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`."""
        self.steps, self.total_steps = state["steps"], state["total_steps"]
        self._random = Random(state["seed"])
        self._seen = {m.name: m.own_seen(state["seen"][m.name]) for m in self._masked if state["seen"]}
        devices = {masked.name: masked.weight.device for masked in self._masked}
        smoothed = {name: kept.to(devices[name], copy=True) for name, kept in state["momentum"].items()}
        self._gradients.smoothed = smoothed

    def close(self) -> None:
        """Take the hooks off the optimiser."""
        self._hooks.remove()

    def _begin_step(self) -> None:
        """Check that the optimiser's last step was counted."""
        if self._unseen_step:
            raise TopologyError(
                f"the optimiser takes step {self.steps + 1}, but topology.step() was not called after "
                f"step {self.steps}; call it once after each optimizer.step()"
            )
        self._zeros_stay = type(self.optimizer) in ZERO_STAYS_ZERO and self._versions == self._read_versions()

    def _prepare_gradients(self, anew: bool) -> None:
        """Mask gradients for the optimiser, and hold them back if an update replaces its step."""
        if anew:
            self._gradients.forget()
        self._held_back = HeldBack()
        if will_be_skipped(self.optimizer):
            return
        self.mask_gradients()
        self._gradients.unscale(getattr(self.optimizer, "grad_scale", None))
        if self._due(self.steps + 1):
            self._gradients.expect_finite(self._masked, self.steps + 1, self._random)
            if self._topology.replaces_step:
                self._held_back.hold(self._parameters)

    def _finish_step(self) -> None:
        """Count the step, and make the zeros exact again."""
        self._held_back.give_back()
        if will_be_skipped(self.optimizer):
            self._gradients.forget()
            return
        self.steps += 1
        self._unseen_step = True
        self._gradients.smooth()
        if self._zeros_stay:
            self._versions[:] = self._read_versions()
        else:
            self._remask()

    @property
    def _topology(self) -> DeclaredTopology:
        return self.model.spec.topology

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _update(self, gradients: Mapping[str, Tensor]) -> Update:
        topology = self._topology
        device = self._masked[0].weight.device if self._masked else torch.device("cpu")
        exact = self._policy is None and all(criterion.exact for criterion in topology.criteria)
        on_device = exact and device.type != "cpu"
        own = TorchArrays(device) if on_device else NUMPY
        arrays = own if self._shards is None else replace(self._shards, own=own)
        if not self._seen:
            self._seen = {masked.name: masked.bits() for masked in self._masked}
        swaps = update(
            topology,
            [self._layer(masked, gradients, on_device=on_device) for masked in self._masked],
            Moment(self.steps, self._random, arrays),
            total_steps=self.total_steps,
            targets=topology.final_counts(self.model.spec.layout),
            policy=self._policy,
            fraction=self._escapes.get(self.steps),
        )
        for masked in self._masked:
            stream = self._random.at(weight=masked.name, step=self.steps, purpose="grown value")
            masked.apply(swaps[masked.name], stream if topology.draws_grown else None)
        self._remask()
        masks = {masked.name: masked.bits() for masked in self._masked}
        sizes = {masked.name: masked.placed.weight.size for masked in self._masked}
        expect_same_masks(masks, self.steps, self._group, device)
        self._seen = seen_with(self._seen, masks)
        changed = Update.of(self.steps, swaps, sizes, masks, self._seen)
        return changed if self._shards is None else self._shards.summed(changed)

    def _layer(self, masked: MaskedWeight, gradients: Mapping[str, Tensor], *, on_device: bool) -> Layer:
        """Return the parts of a weight that the topology reads."""
        reads, smooths = self._reads_gradient(), self._topology.momentum_beta is not None
        gradient = expect_gradient(gradients, masked.name, self.steps) if reads else None
        smoothed = expect_gradient(self._gradients.smoothed, masked.name, self.steps) if smooths else None
        return masked.layer(gradient, smoothed, on_device=on_device)

    def _remask(self) -> None:
        for masked in self._masked:
            masked.remask(self.optimizer.state.get(masked.weight, {}))
        self._versions[:] = self._read_versions()

    def _read_versions(self) -> list[tuple[int, int]]:
        return [masked.version() for masked in self._masked]

    def _due(self, step: int) -> bool:
        return step in self._escapes or self._topology.due(step, self.total_steps)

    def _reads_gradient(self) -> bool:
        return self._topology.reads_gradient(self._policy)
