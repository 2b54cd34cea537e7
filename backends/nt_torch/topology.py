"""Sparse-topology training in anybody's loop: one object, and one line after the optimiser's step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nt_core.arrays import NUMPY, Moment
from nt_core.errors import TopologyError
from nt_core.initial import draw
from nt_core.policies import Layer, Policy, Swap
from nt_core.random import Random
from nt_core.topology import Dynamic, GradualPruning, criteria, final_counts
from nt_core.update import update
from nt_torch.arrays import TorchArrays
from nt_torch.compile import MASK, Ensemble, as_numpy, unwrap
from nt_torch.remask import remask_

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one topology update did.

    Attributes:
        step: optimiser steps taken before it.
        pruned: connections removed, by weight.
        grown: connections added, by weight.
        active: connections now, by weight.
    """

    step: int
    pruned: Mapping[str, int]
    grown: Mapping[str, int]
    active: Mapping[str, int]


class Topology:
    """Keeps a model's inactive weights at zero and updates its topology as its spec says.

    It works through PyTorch's own hooks on the optimiser. Before each step it sets the gradient of inactive
    weights to zero, so that the optimiser sees the sparse model's gradient; after it, inactive weights and
    every tensor of optimiser state of their shape are exactly zero, whatever the optimiser did. Steps that
    did not happen (gradient accumulation, a skipped step under GradScaler) do not count.

    Call :meth:`step` once after each optimiser step. If you clip gradients, call :meth:`mask_gradients`
    before clipping, so that the norm is the sparse model's.

    Args:
        model: what ``nt_torch.compile`` returned, perhaps wrapped.
        optimizer: any ``torch.optim.Optimizer`` over its parameters, perhaps wrapped by accelerate.
        total_steps: optimiser steps of the whole training; schedules depend on it.
        seed: keys random growth and soft pruning.
        policy: a policy of one's own instead of the spec's prune and grow.

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
    ) -> None:
        if total_steps < 1:
            raise TopologyError(f"total_steps: expected at least 1, found {total_steps}")
        self.model: Ensemble = unwrap(model)
        self.optimizer: torch.optim.Optimizer = _unwrap_optimizer(optimizer)
        self.total_steps = total_steps
        self.steps = 0
        self._random = Random(seed)
        self._policy = policy
        self._owners = {name: self.model.owner(name) for name in self.model.masked}
        self._versions: list[tuple[int, int]] = []
        self._dense_gradients: dict[str, Tensor] | None = None
        self._held_back: list[tuple[nn.Parameter, Tensor]] = []
        self._unseen_step = False
        self._depth = 0
        self._zeros_stay = False
        self._expect_parameters()
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
            self.optimizer.register_load_state_dict_post_hook(lambda _: self._versions.clear()),
        ]

    @property
    def density(self) -> float:
        """Active over all maskable weights."""
        masks = [_mask(owner) for owner in self._owners.values()]
        size = sum(mask.numel() for mask in masks)
        return sum(int(mask.count_nonzero()) for mask in masks) / size if size else 1.0

    def step(self) -> Update | None:
        """Update the topology if an update is due after the optimiser's last step.

        Returns:
            What changed, or None. Calling it when the optimiser took no step does nothing.

        Raises:
            TopologyError: a gradient or weight is not finite; names weight and step, and nothing has changed.
        """
        self._depth = 0
        if not self._unseen_step:
            return None
        self._unseen_step = False
        gradients, self._dense_gradients = self._dense_gradients, None
        return self._update(gradients) if self._due(self.steps) else None

    def mask_gradients(self) -> None:
        """Set the gradient of inactive weights to zero, in place; a dense copy is kept if an update is due.

        Called before every optimiser step anyway; call it yourself before clipping.
        """
        reads_dense = self._due(self.steps + 1) and self._reads_gradient()
        if reads_dense and self._dense_gradients is None:
            self._dense_gradients = {}
        for name, owner in self._owners.items():
            gradient, mask = _weight(owner).grad, _mask(owner)
            if gradient is None:
                continue
            if reads_dense:
                self._keep_dense(name, gradient, mask)
            remask_(gradient, mask)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs beside the model's and the optimiser's state."""
        return {"steps": self.steps, "total_steps": self.total_steps, "seed": self._random.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.steps, self.total_steps = state["steps"], state["total_steps"]
        self._random = Random(state["seed"])

    def close(self) -> None:
        """Take the hooks off the optimiser."""
        for hook in self._hooks:
            hook.remove()

    def _before_step(self, *_: Any) -> None:
        if self._depth:
            self._depth += 1  # a subclass calls its base's step
            return
        if self._unseen_step:
            raise TopologyError(
                f"the optimiser takes step {self.steps + 1}, but topology.step() was not called after "
                f"step {self.steps}; call it once after each optimizer.step()"
            )
        self._depth = 1
        self._zeros_stay = type(self.optimizer) in ZERO_STAYS_ZERO and self._versions == self._read_versions()
        if not _will_be_skipped(self.optimizer):
            self.mask_gradients()
            if self._due(self.steps + 1) and self._replaces_step():
                self._hold_back_gradients()

    def _after_step(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        for parameter, gradient in self._held_back:
            parameter.grad = gradient
        self._held_back = []
        if _will_be_skipped(self.optimizer):
            self._dense_gradients = None
            return
        self.steps += 1
        self._unseen_step = True
        if self._zeros_stay:
            self._versions = self._read_versions()
        else:
            self._remask()

    def _hold_back_gradients(self) -> None:
        """Make the optimiser pass over every parameter: it steps over those without a gradient."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._held_back.append((parameter, parameter.grad))
                    parameter.grad = None

    def _keep_dense(self, name: str, gradient: Tensor, mask: Tensor) -> None:
        assert self._dense_gradients is not None
        kept = self._dense_gradients.get(name)
        # Once masked, it holds only newer micro-batches where inactive, but all of them where active.
        self._dense_gradients[name] = (
            gradient.clone() if kept is None else torch.where(mask, gradient, kept + gradient)
        )

    def _update(self, gradients: Mapping[str, Tensor] | None) -> Update:
        topology = self.model.spec.topology
        assert isinstance(topology, Dynamic | GradualPruning)
        on_device = self._policy is None and all(criterion.exact for criterion in criteria(topology))
        layers = [self._layer(name, gradients, on_device) for name in self._owners]
        device = layers[0].active.device if layers and not isinstance(layers[0].active, np.ndarray) else None
        swaps = update(
            topology,
            layers,
            Moment(self.steps, self._random, NUMPY if device is None else TorchArrays(device)),
            total_steps=self.total_steps,
            targets=final_counts(topology, self.model.spec.layout),
            policy=self._policy,
        )
        for name, swap in swaps.items():
            self._apply(name, swap)
        self._remask()
        return Update(
            step=self.steps,
            pruned={name: len(swap.pruned) for name, swap in swaps.items()},
            grown={name: len(swap.grown) for name, swap in swaps.items()},
            active={name: int(_mask(self._owners[name]).count_nonzero()) for name in swaps},
        )

    def _layer(self, name: str, gradients: Mapping[str, Tensor] | None, on_device: bool) -> Layer:
        owner = self._owners[name]
        weights, gradient = _weight(owner).detach(), None
        if self._reads_gradient():
            gradient = None if gradients is None else gradients.get(name)
            if gradient is None:
                raise TopologyError(
                    f"weight {name!r}, step {self.steps}: it has no gradient, but the topology grows by it; "
                    "call topology.step() after backward() and optimizer.step()"
                )
        arrays = [weights, gradient, _mask(owner)]
        if on_device and weights.device.type != "cpu":
            flat: list[Any] = [None if a is None else a.reshape(-1) for a in arrays]
        else:
            flat = [None if a is None else as_numpy(a).reshape(-1) for a in arrays]
        return Layer(name=name, weights=flat[0], gradients=flat[1], active=flat[2])

    def _apply(self, name: str, swap: Swap) -> None:
        mask = _mask(self._owners[name])
        flat = mask.clone(memory_format=torch.contiguous_format).view(-1)
        pruned, grown = torch.as_tensor(swap.pruned), torch.as_tensor(swap.grown)
        flat[pruned], flat[grown] = False, True
        mask.copy_(flat.view(mask.shape))
        topology = self.model.spec.topology
        if isinstance(topology, Dynamic) and topology.semantics.grown_value == "initial" and len(swap.grown):
            self._draw_grown(name, grown)

    def _draw_grown(self, name: str, grown: Tensor) -> None:
        weight = _weight(self._owners[name])
        placed = next(p for p in self.model.spec.layout.sparsifiable if p.name == name)
        stream = self._random.at(weight=name, step=self.steps, purpose="grown value")
        values = torch.from_numpy(draw(placed.weight, stream, grown.cpu().numpy()))
        with torch.no_grad():
            flat = weight.detach().reshape(-1).clone()
            flat[grown] = values.to(flat)
            weight.copy_(flat.view(weight.shape))

    @torch.no_grad()
    def _remask(self) -> None:
        for owner in self._owners.values():
            weight, mask = _weight(owner), _mask(owner)
            remask_(weight.detach(), mask)
            for value in self.optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape and value.is_floating_point():
                    remask_(value, mask)
        self._versions = self._read_versions()

    def _read_versions(self) -> list[tuple[int, int]]:
        """Identify the weights' present contents: PyTorch counts every change made in place."""
        weights = [_weight(owner) for owner in self._owners.values()]
        return [(id(weight), weight._version) for weight in weights]

    def _due(self, step: int) -> bool:
        topology = self.model.spec.topology
        return isinstance(topology, Dynamic | GradualPruning) and topology.due(step, self.total_steps)

    def _reads_gradient(self) -> bool:
        topology = self.model.spec.topology
        assert isinstance(topology, Dynamic | GradualPruning)
        return self._policy is not None or any(c.uses_gradient for c in criteria(topology))

    def _replaces_step(self) -> bool:
        topology = self.model.spec.topology
        return isinstance(topology, Dynamic) and topology.semantics.optimizer_step == "replaced"

    def _expect_parameters(self) -> None:
        ours = {id(_weight(owner)): name for name, owner in self._owners.items()}
        theirs = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        missing = [name for key, name in ours.items() if key not in theirs]
        if len(missing) == len(ours) > 0:
            raise TopologyError(
                f"optimizer: it holds none of the model's {len(ours)} masked weights ({missing[0]!r} first); "
                "make it of model.parameters() after the model is on its device"
            )


def _weight(owner: nn.Module) -> nn.Parameter:
    weight = owner.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _mask(owner: nn.Module) -> Tensor:
    mask = getattr(owner, MASK)
    assert isinstance(mask, Tensor)
    return mask


def _unwrap_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    inner = optimizer
    while not isinstance(inner, torch.optim.Optimizer) or hasattr(inner, "accelerator_state"):
        inner = getattr(inner, "optimizer", None)
        if inner is None:
            raise TopologyError(
                "optimizer: expected a torch.optim.Optimizer, perhaps wrapped, "
                f"found {type(optimizer).__name__}"
            )
    return inner


def _will_be_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether a fused optimiser under GradScaler passes over this step: it is called all the same."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
