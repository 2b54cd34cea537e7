"""Sparse-topology training in anybody's loop: one object, and one line after the optimiser's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from nt_core.errors import TopologyError
from nt_core.masks import NUMPY, Moment
from nt_core.policies import Layer, Policy, Swap
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
from nt_core.values import differences
from nt_torch.network.model import Ensemble, unwrap
from nt_torch.network.remask import remask_
from nt_torch.network.zeros import MASK, Version
from nt_torch.processes.group import expect_same_masks, group_of, was_reduced
from nt_torch.processes.shards import local
from nt_torch.topology.arrays import TorchArrays
from nt_torch.topology.gradients import DenseGradients, expect_gradient
from nt_torch.topology.masked import MaskedWeight, masked_weights, shards_of
from nt_torch.topology.optimizers import expect_parameters
from nt_torch.topology.stepper import Stepper


def _nothing() -> None:
    """Do nothing, before an escape."""


class Topology:
    """Keeps a model's inactive weights at zero and updates its topology as its spec says.

    It works through PyTorch's own hooks on the optimiser. Before each step it sets the gradient of inactive
    weights to zero, so that the optimiser sees the sparse model's gradient; after it, inactive weights are
    exactly zero with any optimiser, and so is their elementwise optimiser state (its value at birth, where
    that is not 0). The elementwise state of usual optimisers is known; a class of your own names it by an
    attribute, ``elementwise_state = ("momentum",)``. Under an unknown class weights and gradients are masked,
    and a warning names the state that is not cleared. Steps that did not happen (gradient accumulation, a
    skipped step under GradScaler) do not count.

    Call :meth:`step` once after each optimiser step. If you clip gradients, call :meth:`mask_gradients`
    before clipping, so that the norm is the sparse model's. Steps with a closure work too, and optimisers
    inside an optimiser (SAM, Lookahead). Weights that are frozen (``requires_grad_(False)``, or in no
    optimiser) keep their values and masks. Write to weights through PyTorch, not through ``.data``, which
    PyTorch does not count as a change.

    Args:
        model: compiled by ``nt_torch.compile``, perhaps wrapped.
        optimizer: any ``torch.optim.Optimizer`` over its parameters, perhaps wrapped; or a list, as of
            Muon for matrices and AdamW for the rest, which all step before :meth:`step` is called.
        total_steps: optimiser steps of the whole training; schedules depend on it.
        seed: keys random growth and soft pruning; for Deep R, whose signs are those of initial values, the
            seed that the model was compiled with.
        policy: a policy of one's own instead of the spec's prune and grow.
        escapes: steps that a large prune-and-grow follows in spite of the schedule, and its drop fraction;
            ``spec.timeline(…).escapes`` gives a plan's.
        leaving: called before each escape changes anything.

    Attributes:
        steps: optimiser steps taken; several optimisers take one together.

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
        leaving: Callable[[], None] = _nothing,
    ) -> None:
        if total_steps < 1:
            raise TopologyError(f"total_steps: expected at least 1, found {total_steps}")
        self.model: Ensemble = unwrap(model)
        self.total_steps = total_steps
        self.steps = 0
        self._wrapped = model
        self._random = Random(seed)
        self._policy = policy
        self._escapes = dict(expect_escapes(escapes, self.model.spec.topology))
        self._leaving = leaving
        self._masked = masked_weights(self.model)
        self._seen: dict[str, Bits] = {}
        given = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
        self._steppers = tuple(Stepper(each) for each in given)
        expect_parameters([each for stepper in self._steppers for each in stepper.optimizers], self._masked)
        spec, active = self.model.spec, sum(int(masked.mask.count_nonzero()) for masked in self._masked)
        expect_chosen(spec.topology, spec.layout, active)
        self._shards = shards_of(self._masked, spec.topology)
        self._gradients = DenseGradients(self._shards, spec.topology.momentum_beta)
        for masked in self._masked:
            masked.shard_mask()
        self._changed_unseen = False
        self._versions = self._read_versions()
        self._attach()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser that was given, without its wrappers; the first of several."""
        return self._steppers[0].optimizers[0]

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """The optimisers that were given, without their wrappers."""
        return tuple(stepper.optimizers[0] for stepper in self._steppers)

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
                that is not finite is reported by the optimiser's step, before it changes anything.) Or
                weights change, but not by a step of the optimisers that this object was given.
        """
        for stepper in self._steppers:
            stepper.reset()
        if not self._stepped:
            self._expect_unchanged()
            self._gradients.forget_skipped(self._parameters)
            return None
        moving = [masked for masked in self._masked if self._moves(masked)]
        for stepper in self._steppers:
            stepper.stepped = False
        self._changed_unseen = False
        gradients = self._gradients.take()
        if self._read_versions() != self._versions:  # by a hook, or a wrapper, that came after ours
            self._remask()
        if self.steps in self._escapes:
            self._leaving()
        updated = self._update(gradients, moving) if self._due(self.steps) else None
        if torch.is_autocast_cache_enabled():
            torch.clear_autocast_cache()  # it would go on with the 16-bit copies of earlier weights
        return updated

    def mask_gradients(self) -> None:
        """Set the gradient of inactive weights to zero, in place; a dense copy is kept where it is read.

        Called before every optimiser step anyway; call it yourself before clipping, after
        ``scaler.unscale_`` if you use a GradScaler. After a micro-batch under DDP's ``no_sync`` it does
        nothing, because the gradient is not that of all processes yet. DDP tells that of its last forward
        pass, so call it before another one, such as an evaluation.
        """
        if was_reduced(self._wrapped):
            self._mask_gradients()

    def average(self, averaged: nn.Module) -> None:
        """Give averaged weights this model's present masks, and set their inactive elements to zero.

        An average of a model's weights (``torch.optim.swa_utils.AveragedModel``, timm's ModelEma) is as
        sparse as the model if this is called after each update of the average, or before the average is used,
        also where buffers are averaged too.

        Args:
            averaged: a copy of this model, perhaps wrapped.

        Raises:
            TopologyError: it is a model of another spec.

        Example:
            >>> import copy, nt_core, nt_models, nt_torch
            >>> spec = nt_core.PRESETS["rigl"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
            >>> model = nt_torch.compile(spec)
            >>> topology = Topology(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=10)
            >>> average = torch.optim.swa_utils.AveragedModel(model)
            >>> average.update_parameters(model)
            >>> topology.average(average)
            >>> average.module.density == model.density
            True
        """
        target = unwrap(averaged)
        if target.spec != self.model.spec:
            raise TopologyError("average: expected a copy of this model, found a model of another spec")
        with torch.no_grad():
            for masked in self._masked:
                owner = target.owner(masked.name)
                mask = masked.mask.to(getattr(owner, MASK).device, copy=True)
                owner.register_buffer(MASK, mask)
                remask_(local(target.stored(masked.name)), local(mask))
        target.zeros.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed training needs beside the model's and the optimiser's.

        Apart from a few plain values, that are the masks so far (as tensors: one bit for each position; of
        sharded weights, flags that are sharded too) and, where the topology reads it, the smoothed dense
        gradient.
        """
        return {
            "steps": self.steps,
            **self._asked(),
            "seen": {m.name: m.whole_seen(self._seen[m.name]) for m in self._masked if self._seen},
            "momentum": {name: smoothed.clone() for name, smoothed in self._gradients.smoothed.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Raises:
            TopologyError: the state is of another training than this object was made for: another number of
                steps, seed, topology, or other escapes; the message names the field.
        """
        asked = self._asked()
        for field, wanted, found in differences(asked, {key: state[key] for key in asked if key in state}):
            raise TopologyError(
                f"state.{field}: expected {wanted!r}, which this Topology was made with, found {found!r}; "
                "make a Topology (and model) with the state's value to continue it"
            )
        self.steps = state["steps"]
        self._seen = {m.name: m.own_seen(state["seen"][m.name]) for m in self._masked if state["seen"]}
        devices = {masked.name: masked.weight.device for masked in self._masked}
        smoothed = {name: kept.to(devices[name], copy=True) for name, kept in state["momentum"].items()}
        self._gradients.smoothed = smoothed
        self._versions = self._read_versions()

    def close(self) -> None:
        """Take the hooks off the optimisers."""
        for stepper in self._steppers:
            stepper.detach()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy, or a pickle together with model and optimiser, needs: all but the hooks."""
        return {**self.__dict__, "_versions": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Attach the copy to the copied optimisers."""
        self.__dict__.update(state)
        self._versions = self._read_versions()
        self._attach()

    def _attach(self) -> None:
        for stepper in self._steppers:
            stepper.attach(
                begin=self._begin_step,
                prepare=self._prepare_gradients,
                finish=self._finish_step,
                compute=self._gradients.forget,
            )

    def _begin_step(self, stepper: Stepper) -> None:
        """Check that the optimiser's last step was counted."""
        if stepper.stepped:
            raise TopologyError(
                f"the optimiser takes step {self.steps + 1}, but topology.step() was not called after "
                f"step {self.steps}; call it once after each optimizer.step()"
            )
        own = [masked.weight for masked in self._of(stepper)]
        stepper.begin(own, zeros=self._read_versions() == self._versions)

    def _prepare_gradients(self, stepper: Stepper) -> None:
        """Mask gradients for the optimiser, and hold them back if an update replaces its step."""
        if stepper.will_be_skipped:
            return
        self._mask_gradients()
        self._gradients.unscale(stepper.grad_scale)
        coming = self.steps if self._stepped else self.steps + 1
        if self._due(coming):
            self._gradients.expect_finite(self._of(stepper), coming, self._random)
            if self._topology.replaces_step:
                stepper.hold_back()

    def _finish_step(self, stepper: Stepper) -> None:
        """Count the step, and make the zeros exact again."""
        if stepper.was_skipped:
            self._gradients.forget()
            return
        if not self._stepped:
            self.steps += 1
            self._gradients.smooth()
        stepper.stepped = True
        own = self._of(stepper)
        if not stepper.zeros_stay:
            for masked in own:
                masked.remask()
            stepper.clear({masked.name: (masked.weight, masked.mask) for masked in own})
        self._note()

    @property
    def _stepped(self) -> bool:
        return any(stepper.stepped for stepper in self._steppers)

    @property
    def _topology(self) -> DeclaredTopology:
        return self.model.spec.topology

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for stepper in self._steppers for parameter in stepper.parameters.values()]

    def _of(self, stepper: Stepper) -> list[MaskedWeight]:
        """Return the masked weights that an optimiser updates."""
        theirs = stepper.parameters
        return [masked for masked in self._masked if id(masked.weight) in theirs]

    def _moves(self, masked: MaskedWeight) -> bool:
        """Return whether a weight took part in the last step; others keep values and mask."""
        weight = masked.weight
        return weight.requires_grad and any(
            stepper.stepped and id(weight) in stepper.parameters for stepper in self._steppers
        )

    def _mask_gradients(self) -> None:
        smooths = self._topology.momentum_beta is not None
        coming = self.steps if self._stepped else self.steps + 1
        reads_dense = smooths or (self._due(coming) and self._reads_gradient())
        for masked in self._masked:
            gradient = masked.weight.grad
            if gradient is None:
                continue
            if reads_dense:
                self._gradients.keep(masked, gradient)
            remask_(local(gradient), local(masked.mask))

    def _update(self, gradients: Mapping[str, Tensor], moving: Sequence[MaskedWeight]) -> Update:
        topology = self._topology
        device = self._masked[0].weight.device if self._masked else torch.device("cpu")
        exact = self._policy is None and all(criterion.exact for criterion in topology.criteria)
        on_device = exact and device.type != "cpu"
        own = TorchArrays(device) if on_device else NUMPY
        arrays = own if self._shards is None else replace(self._shards, own=own)
        if not self._seen:
            self._seen = {masked.name: masked.bits() for masked in self._masked}
        swaps: dict[str, Swap] = dict(
            update(
                topology,
                [self._layer(masked, gradients, on_device=on_device) for masked in moving],
                Moment(self.steps, self._random, arrays),
                total_steps=self.total_steps,
                targets=topology.final_counts(self.model.spec.layout),
                policy=self._policy,
                fraction=self._escapes.get(self.steps),
            )
        )
        for masked in moving:
            stream = self._random.at(weight=masked.name, step=self.steps, purpose="grown value")
            masked.apply(swaps[masked.name], stream if topology.draws_grown else None)
        self._remask()
        for stepper in self._steppers:
            stepper.say_what_stays()
        masks = {masked.name: masked.bits() for masked in self._masked}
        sizes = {masked.name: masked.placed.weight.size for masked in self._masked}
        expect_same_masks(masks, self.steps, group_of(self._wrapped), device)
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
        """Set inactive elements to zero, in all weights and in the optimisers' state of them."""
        for masked in self._masked:
            masked.remask()
        for stepper in self._steppers:
            stepper.clear({m.name: (m.weight, m.mask) for m in self._of(stepper)})
        self._note()

    def _note(self) -> None:
        self.model.zeros.note()
        self._versions = self._read_versions()

    def _expect_unchanged(self) -> None:
        """Check that weights do not change by steps that nobody counts.

        One change without a step may be a state that was loaded, or the switch of an optimiser between its
        averages and its weights; a second one in a row, or an inactive weight that is not zero, is not.
        """
        versions = self._read_versions()
        changed = [m.name for m, a, b in zip(self._masked, versions, self._versions, strict=True) if a != b]
        if not changed or self._shards is not None:
            return
        stray = any(masked.any_inactive() for masked in self._masked)
        if stray or self._changed_unseen:
            raise TopologyError(
                f"weights changed without a counted step: {changed[0]!r}, and {len(changed) - 1} more, "
                f"changed after step {self.steps}, but no optimiser of this Topology took a step; "
                "give it the optimiser whose step() is called (the inner one of a wrapper), or call "
                "topology.step() once after each optimizer.step()"
            )
        self._changed_unseen = True
        self._versions = versions

    def _read_versions(self) -> list[Version]:
        return [masked.version() for masked in self._masked]

    def _due(self, step: int) -> bool:
        return step in self._escapes or self._topology.due(step, self.total_steps)

    def _reads_gradient(self) -> bool:
        return self._topology.reads_gradient(self._policy)

    def _asked(self) -> dict[str, Any]:
        """Return the values that this object was made with, and that a state must have been made with too."""
        return {
            "total_steps": self.total_steps,
            "seed": self._random.seed,
            "topology": self._topology.model_dump(mode="json"),
            "escapes": {str(step): fraction for step, fraction in sorted(self._escapes.items())},
        }
