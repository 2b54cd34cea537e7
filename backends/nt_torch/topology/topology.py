"""Sparse-topology training in anybody's loop: one object, and one line after the optimiser's step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from nt_core.errors import TopologyError
from nt_core.masks import NUMPY, Moment
from nt_core.policies import Policy, expect_finite
from nt_core.random import Random
from nt_core.topology import (
    Bits,
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
from nt_torch.topology.masked import MaskedWeight, masked_weights, shards_of
from nt_torch.topology.optimizers import ZERO_STAYS_ZERO, expect_parameters, unwrap_optimizer, will_be_skipped
from nt_torch.topology.remask import remask_


@dataclass(frozen=True, slots=True)
class _Kept:
    """A dense gradient, and the tensor it was read from."""

    source: Tensor
    dense: Tensor


_ATTACHED: weakref.WeakKeyDictionary[torch.optim.Optimizer, weakref.ref[Topology]] = (
    weakref.WeakKeyDictionary()
)
"""Which topology an optimiser has, so that a second one takes its place."""


class Topology:
    """Keeps a model's inactive weights at zero and updates its topology as its spec says.

    It works through PyTorch's own hooks on the optimiser. Before each step it sets the gradient of inactive
    weights to zero, so that the optimiser sees the sparse model's gradient; after it, inactive weights and
    every tensor of optimiser state of their shape are exactly zero, whatever the optimiser did. Steps that
    did not happen (gradient accumulation, a skipped step under GradScaler) do not count.

    Call :meth:`step` once after each optimiser step. If you clip gradients, call :meth:`mask_gradients`
    before clipping, so that the norm is the sparse model's. Steps with a closure work too. Write to weights
    through PyTorch, not through ``.data``, which PyTorch does not count as a change.

    Args:
        model: what ``nt_torch.compile`` returned, perhaps wrapped.
        optimizer: any ``torch.optim.Optimizer`` over its parameters, perhaps wrapped by accelerate.
        total_steps: optimiser steps of the whole training; schedules depend on it.
        seed: keys random growth and soft pruning; for Deep R, whose signs are those of initial values, the
            seed that the model was compiled with.
        policy: a policy of one's own instead of the spec's prune and grow.
        escapes: steps that a large prune-and-grow follows whatever the schedule says, and its drop fraction;
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
        self._kept: dict[str, _Kept] = {}
        self._momentum: dict[str, Tensor] = {}
        self._seen: dict[str, Bits] = {}
        self._held_back: list[tuple[nn.Parameter, Tensor]] = []
        self._versions: list[tuple[int, int]] = []
        self._unseen_step = self._zeros_stay = False
        self._depth = 0
        expect_parameters(self.optimizer, self._masked)
        spec, active = self.model.spec, sum(int(masked.mask.count_nonzero()) for masked in self._masked)
        expect_chosen(spec.topology, spec.layout, active)
        if (earlier := _ATTACHED.get(self.optimizer)) is not None and (topology := earlier()) is not None:
            topology.close()
        _ATTACHED[self.optimizer] = weakref.ref(self)
        self._shards = shards_of(self._masked, self.model.spec.topology)
        for masked in self._masked:
            masked.shard_mask()
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
            self.optimizer.register_load_state_dict_post_hook(lambda _: self._versions.clear()),
        ]

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
            What changed, or None. Calling it when the optimiser took no step does nothing.

        Raises:
            TopologyError: a weight is not finite; names weight and step, and no mask has changed. (A gradient
                that is not finite is reported by the optimiser's step, before it changes anything.)
        """
        self._depth = 0
        if not self._unseen_step:
            self._forget_skipped()
            return None
        self._unseen_step = False
        kept, self._kept = self._kept, {}
        if self.steps in self._escapes:
            self._leaving()
        return self._update(kept) if self._due(self.steps) else None

    def mask_gradients(self) -> None:
        """Set the gradient of inactive weights to zero, in place; a dense copy is kept where it is read.

        Called before every optimiser step anyway; call it yourself before clipping, after
        ``scaler.unscale_`` if you use a GradScaler.
        """
        reads_dense = self._beta is not None or (self._due(self.steps + 1) and self._reads_gradient())
        for masked in self._masked:
            gradient = masked.weight.grad
            if gradient is None:
                continue
            if reads_dense:
                self._keep_dense(masked, gradient)
            remask_(local(gradient), local(masked.mask))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs beside the model's and the optimiser's state.

        Apart from three numbers, that are the masks so far (as tensors: one bit for each position; of sharded
        weights, flags that are sharded too) and, where the topology reads it, the smoothed dense gradient.
        """
        return {
            "steps": self.steps,
            "total_steps": self.total_steps,
            "seed": self._random.seed,
            "seen": {m.name: m.whole_seen(self._seen[m.name]) for m in self._masked if self._seen},
            "momentum": {name: smoothed.clone() for name, smoothed in self._momentum.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.steps, self.total_steps = state["steps"], state["total_steps"]
        self._random = Random(state["seed"])
        self._seen = {m.name: m.own_seen(state["seen"][m.name]) for m in self._masked if state["seen"]}
        devices = {masked.name: masked.weight.device for masked in self._masked}
        self._momentum = {name: kept.to(devices[name], copy=True) for name, kept in state["momentum"].items()}

    def close(self) -> None:
        """Take the hooks off the optimiser."""
        for hook in self._hooks:
            hook.remove()

    def _before_step(self, _: Any, args: Any, kwargs: Any) -> Any:
        if self._depth:
            self._depth += 1  # a subclass calls its base's step
            return None
        if self._unseen_step:
            raise TopologyError(
                f"the optimiser takes step {self.steps + 1}, but topology.step() was not called after "
                f"step {self.steps}; call it once after each optimizer.step()"
            )
        self._depth = 1
        self._zeros_stay = type(self.optimizer) in ZERO_STAYS_ZERO and self._versions == self._read_versions()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._prepare()
            return None
        return (args[0],), {**kwargs, "closure": self._preparing(closure)}

    def _preparing(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Make a closure after which gradients are as they would be before a step without one."""

        def run() -> Any:
            try:
                loss = closure()
                self._kept = {}
                self._prepare()
            except BaseException:
                self._depth = 0
                raise
            return loss

        return run

    def _prepare(self) -> None:
        """Ready the gradients for the optimiser: masked, finite, held back if an update replaces it."""
        self._held_back = []
        if will_be_skipped(self.optimizer):
            return
        self.mask_gradients()
        _unscale(self._kept, getattr(self.optimizer, "grad_scale", None))
        if self._due(self.steps + 1):
            self._expect_finite()
        if self._due(self.steps + 1) and self.model.spec.topology.replaces_step:
            self._hold_back_gradients()

    def _after_step(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        for parameter, gradient in self._held_back:
            parameter.grad = gradient
        self._held_back = []
        if will_be_skipped(self.optimizer):
            self._kept = {}
            return
        self.steps += 1
        self._unseen_step = True
        self._smooth()
        if self._zeros_stay:
            self._versions = self._read_versions()
        else:
            self._remask()

    @property
    def _beta(self) -> float | None:
        return self.model.spec.topology.momentum_beta

    @torch.no_grad()
    def _smooth(self) -> None:
        """Let the dense gradient of the step just taken enter its exponential mean, in single precision."""
        if self._beta is None:
            return
        for name, kept in self._kept.items():
            if name not in self._momentum:
                self._momentum[name] = torch.zeros_like(kept.dense, dtype=torch.float32)
            self._momentum[name].lerp_(kept.dense.float(), 1 - self._beta)

    def _expect_finite(self) -> None:
        """Stop before the optimiser's step, while the model is whole, if an update could not follow it."""
        kept, arrays = self._kept, TorchArrays(torch.device("cpu"))
        for masked in self._masked:
            if masked.name in kept and not self._is_finite(kept[masked.name].dense):
                self._kept, self._depth = {}, 0
                layer = masked.layer(local(kept[masked.name].dense).cpu(), on_device=self._shards is None)
                moment = Moment(self.steps + 1, self._random, self._shards or arrays)
                expect_finite(layer, moment, gradients=True)

    def _is_finite(self, tensor: Tensor) -> bool:
        """Tell whether every number is finite, in all processes if they hold parts of it."""
        bad = not bool(torch.isfinite(local(tensor)).all())
        return not (bad if self._shards is None else self._shards.sums([bad])[0])

    def _hold_back_gradients(self) -> None:
        """Make the optimiser pass over every parameter: it steps over those without a gradient."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._held_back.append((parameter, parameter.grad))
                    parameter.grad = None

    def _forget_skipped(self) -> None:
        """Drop what was kept before GradScaler found something infinite and skipped the step."""
        if self._kept:
            gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"]]
            tensors = [kept.dense for kept in self._kept.values()] + [g for g in gradients if g is not None]
            if not all(self._is_finite(tensor) for tensor in tensors):
                self._kept = {}

    def _keep_dense(self, masked: MaskedWeight, gradient: Tensor) -> None:
        kept, mask = self._kept.get(masked.name), masked.mask
        if kept is None or kept.source is not gradient:
            self._kept[masked.name] = _Kept(gradient, gradient.clone())
        elif bool(gradient.masked_fill(mask, 0).any()):  # a backward since; clipping leaves zeros zero
            self._kept[masked.name] = _Kept(gradient, torch.where(mask, gradient, kept.dense + gradient))

    def _update(self, kept: Mapping[str, _Kept]) -> Update:
        topology = self.model.spec.topology
        device = self._masked[0].weight.device if self._masked else torch.device("cpu")
        exact = self._policy is None and all(criterion.exact for criterion in topology.criteria)
        on_device = exact and device.type != "cpu"
        own = TorchArrays(device) if on_device else NUMPY
        arrays = own if self._shards is None else replace(self._shards, own=own)
        if not self._seen:
            self._seen = {masked.name: masked.bits() for masked in self._masked}
        swaps = update(
            topology,
            [
                masked.layer(self._gradient(masked, kept), self._smoothed(masked), on_device=on_device)
                for masked in self._masked
            ],
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

    def _gradient(self, masked: MaskedWeight, kept: Mapping[str, _Kept]) -> Tensor | None:
        if not self._reads_gradient():
            return None
        self._expect_gradient(masked, kept)
        return kept[masked.name].dense

    def _smoothed(self, masked: MaskedWeight) -> Tensor | None:
        if self._beta is None:
            return None
        self._expect_gradient(masked, self._momentum)
        return self._momentum[masked.name]

    def _expect_gradient(self, masked: MaskedWeight, kept: Mapping[str, Any]) -> None:
        if masked.name not in kept:
            raise TopologyError(
                f"weight {masked.name!r}, step {self.steps}: it has no gradient, but the topology reads it; "
                "the loss must depend on every member, and backward() come before optimizer.step()"
            )

    def _remask(self) -> None:
        for masked in self._masked:
            masked.remask(self.optimizer.state.get(masked.weight, {}))
        self._versions = self._read_versions()

    def _read_versions(self) -> list[tuple[int, int]]:
        return [masked.version() for masked in self._masked]

    def _due(self, step: int) -> bool:
        return step in self._escapes or self.model.spec.topology.due(step, self.total_steps)

    def _reads_gradient(self) -> bool:
        return self.model.spec.topology.reads_gradient(self._policy)


def _unscale(kept: Mapping[str, _Kept], scale: Tensor | None) -> None:
    """Divide by the loss scale, which a fused optimiser under GradScaler removes only inside its kernel."""
    if scale is not None:
        for gradient in kept.values():
            gradient.dense.div_(scale)
