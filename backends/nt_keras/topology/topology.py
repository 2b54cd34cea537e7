"""Topology updates while Keras trains: a callback for ``fit``, and one object for anybody's own loop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import keras

from nt_core.errors import TopologyError
from nt_core.masks import Moment
from nt_core.policies import Policy
from nt_core.random import Random
from nt_core.topology import (
    Update,
    expect_escapes,
    pack,
    seen_with,
    update,
)
from nt_keras.engines import engine
from nt_keras.network.model import Network
from nt_keras.topology.agreement import expect_agreement
from nt_keras.topology.masked import MaskedWeight, masked_weights
from nt_keras.topology.sparse import Sparse, find_sparse


class Topology:
    """Updates a model's topology in a loop of your own; for ``fit`` there is :class:`TopologyUpdate`.

    Call :meth:`step` once after each training step (with gradient accumulation: after each micro-batch). The
    model must be compiled with an optimiser wrapped by :func:`nt_keras.sparse`, which counts the steps. A
    layer that is not trainable keeps its masks.

    Args:
        model: compiled by ``nt_keras.compile``.
        total_steps: optimiser steps of the whole training; schedules depend on it.
        seed: keys random growth and soft pruning; for Deep R, whose signs are those of initial values, the
            seed that the model was compiled with.
        policy: a policy of one's own instead of the spec's prune and grow.
        escapes: steps that a large prune-and-grow follows in spite of the schedule, and its drop fraction;
            ``spec.timeline(…).escapes`` gives a plan's.
        leaving: called before each escape changes anything.

    Raises:
        TopologyError: the optimiser was not wrapped, was wrapped for another model, keeps no gradients though
            the topology reads them, or has taken more than ``total_steps``.

    Example:
        >>> import numpy as np, nt_core, nt_models, nt_keras
        >>> spec = nt_core.PRESETS["rigl"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> model = nt_keras.compile(spec)
        >>> model.compile(optimizer=nt_keras.sparse("adam", model), loss=nt_keras.ensemble_loss())
        >>> topology = Topology(model, total_steps=1000)
        >>> for _ in range(2):
        ...     _ = model.train_on_batch(np.ones((4, 8), np.float32), np.array([0, 1, 2, 0]))
        ...     _ = topology.step()
        >>> topology.steps, round(topology.density, 2)
        (2, 0.2)
    """

    def __init__(
        self,
        model: Network,
        *,
        total_steps: int,
        seed: int = 0,
        policy: Policy | None = None,
        escapes: Mapping[int, float] = MappingProxyType({}),
        leaving: Callable[[], None] = lambda: None,
    ) -> None:
        if total_steps < 1:
            raise TopologyError(f"total_steps: expected at least 1, found {total_steps}")
        if not hasattr(model, "spec"):
            raise TopologyError(
                f"model: expected what nt_keras.compile returned, found {type(model).__name__}; train that, "
                "and let the dataset do what comes before it"
            )
        self.model, self.total_steps = model, total_steps
        self._random, self._policy = Random(seed), policy
        self._escapes, self._leaving = expect_escapes(escapes, model.spec.topology), leaving
        self._every = masked_weights(model)
        self._asked = {
            "total_steps": total_steps,
            "seed": seed,
            "policy": policy is not None,
            "escapes": [[step, fraction] for step, fraction in sorted(self._escapes.items())],
            "topology": model.spec.topology.model_dump(mode="json"),
        }
        self._next: int | None = None
        self._wait = math.inf
        if self._masked:
            model.build_optimizer()
            self._expect_optimizer()
            self.plan()

    @property
    def _masked(self) -> list[MaskedWeight]:
        """The masked weights that are trained now; frozen ones keep their masks."""
        return [masked for masked in self._every if masked.kernel.trainable]

    @property
    def optimizer(self) -> Sparse:
        """The optimiser that keeps the masks."""
        return find_sparse(self.model.optimizer)

    @property
    def steps(self) -> int:
        """Optimiser steps taken."""
        return int(engine.to_numpy(self.model.optimizer.iterations))

    @property
    def density(self) -> float:
        """Active over all maskable weights."""
        return self.model.density

    def plan(self) -> None:
        """Find the next update, tell the optimiser, and count the calls until then.

        Done at birth and after each update; do it yourself after steps were taken or loaded meanwhile.
        """
        if not self._masked:
            return
        optimizer = self.optimizer
        scheduled = self.model.spec.topology.next_due(self.steps, self.total_steps)
        ahead = [step for step in (scheduled, *self._escapes) if step is not None and step > self.steps]
        self._next = min(ahead, default=None)
        self._wait = math.inf if self._next is None else optimizer.calls_until(self._next)
        optimizer.announce(self._next)

    def step(self) -> Update | None:
        """Update the topology if an update is due after the optimiser's last step.

        Returns:
            The changes, or None.

        Raises:
            TopologyError: a weight or a gradient is not finite (no mask has changed then), an update was
                missed, or masks differ among replicas.
        """
        self._wait -= 1
        if self._wait > 0:
            return None
        engine.sync(self.model)
        steps = self.steps
        assert self._next is not None
        if steps > self._next:
            raise TopologyError(
                f"the topology's update after step {self._next} was missed, {steps} steps are taken; call "
                "step() after every training step, with steps_per_execution=1"
            )
        if steps == self._next and steps in self._escapes:
            self._leaving()
        changed = self._update(steps) if steps == self._next else None
        self.plan()
        return changed

    def close(self) -> None:
        """Stop: no update is due any longer."""
        if self._masked:
            self.optimizer.announce(None)

    def _update(self, step: int) -> Update:
        topology, optimizer, trained = self.model.spec.topology, self.optimizer, self._masked
        layers = [masked.layer(optimizer) for masked in trained]
        seen = {layer.name: pack(layer.active) for layer in layers} | optimizer.seen
        swaps = update(
            topology,
            layers,
            Moment(step, self._random),
            total_steps=self.total_steps,
            targets=topology.final_counts(self.model.spec.layout),
            policy=self._policy,
            fraction=self._escapes.get(step),
        )
        masks = {}
        for masked, layer in zip(trained, layers, strict=True):
            stream = self._random.at(weight=masked.name, step=step, purpose="grown value")
            values = stream if topology.draws_grown else None
            masks[masked.name] = masked.apply(swaps[masked.name], layer.active, values)
        sizes = {masked.name: masked.placed.weight.size for masked in trained}
        explored = seen_with(seen, masks)
        optimizer.seen = optimizer.seen | explored
        return Update.of(step, swaps, sizes, masks, explored)

    def _expect_optimizer(self) -> None:
        topology, optimizer = self.model.spec.topology, self.optimizer
        if self.steps > self.total_steps:
            raise TopologyError(
                f"total_steps: expected at least the {self.steps} steps that the optimiser has taken, found "
                f"{self.total_steps}; give the steps of the whole training, those before this fit included"
            )
        if topology.updates and 0 < self.steps < optimizer.asked.get("total_steps", 0):
            expect_agreement("topology", self._asked, optimizer.asked)
        if optimizer.replaces_step != topology.replaces_step:
            raise TopologyError(
                f"optimizer: expected one wrapped with replaces_step={topology.replaces_step}, as the spec "
                f"says, found {optimizer.replaces_step}; wrap a new one by nt_keras.sparse(optimizer, model)"
            )
        if topology.reads_gradient(self._policy) and not optimizer.keep_gradients:
            raise TopologyError(
                "optimizer: the topology, or the policy given, may read dense gradients, but the optimiser "
                "keeps none; wrap a new one by nt_keras.sparse(optimizer, model, keep_gradients=True)"
            )
        if topology.momentum_beta not in {None, optimizer.momentum_beta}:
            raise TopologyError(
                f"optimizer: expected one wrapped with momentum_beta={topology.momentum_beta}, as the spec "
                f"says, found {optimizer.momentum_beta}; wrap a new one by nt_keras.sparse(optimizer, model)"
            )
        optimizer.asked = MappingProxyType(self._asked)


class TopologyUpdate(keras.callbacks.Callback):  # type: ignore[misc]
    """Updates the topology while ``model.fit`` runs, and adds ``density`` to each epoch's logs.

    Steps are counted by the optimiser, so a training that goes on after ``keras.models.load_model`` goes on
    with the topology's schedule too. ``fit`` calls it before other callbacks, so that they save its results.

    Args:
        total_steps: optimiser steps of the whole training; schedules depend on it.
        seed: keys random growth and soft pruning; for Deep R, whose signs are those of initial values, the
            seed that the model was compiled with.
        policy: a policy of one's own instead of the spec's prune and grow.
        escapes: as for :class:`Topology`.
        leaving: as for :class:`Topology`.
        report: is called with each :class:`nt_core.topology.Update`.

    Example:
        >>> TopologyUpdate(total_steps=1000, seed=1).total_steps
        1000
    """

    def __init__(
        self,
        total_steps: int,
        *,
        seed: int = 0,
        policy: Policy | None = None,
        escapes: Mapping[int, float] = MappingProxyType({}),
        leaving: Callable[[], None] = lambda: None,
        report: Callable[[Update], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.total_steps, self.seed, self.policy, self.report = total_steps, seed, policy, report
        self.escapes, self.leaving = escapes, leaving
        self.topology: Topology | None = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Find the next update."""
        self.topology = Topology(
            self.model,
            total_steps=self.total_steps,
            seed=self.seed,
            policy=self.policy,
            escapes=self.escapes,
            leaving=self.leaving,
        )
        if self.topology._next is not None and self.model.steps_per_execution > 1:
            raise TopologyError(
                f"steps_per_execution: expected 1, found {self.model.steps_per_execution}; the topology must "
                "be updated between two steps"
            )

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Find the next update again: a callback may have loaded another state."""
        assert self.topology is not None
        self.topology.plan()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Update if it is time."""
        assert self.topology is not None
        changed = self.topology.step()
        if changed is not None:
            self.report(changed)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the density."""
        if logs is not None:
            logs["density"] = self.model.density

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Stop."""
        assert self.topology is not None
        self.topology.close()


def arrange(model: Network, callbacks: Any) -> Any:
    """Return the callbacks that ``fit`` is given, with the one that updates the topology first.

    Raises:
        TopologyError: two of them update the topology.
    """
    is_list = isinstance(callbacks, keras.callbacks.CallbackList)
    listed = callbacks.callbacks if is_list else keras.tree.flatten(callbacks or [])
    updates = [callback for callback in listed if isinstance(callback, TopologyUpdate)]
    if len(updates) > 1:
        raise TopologyError(
            f"callbacks: expected one nt_keras.TopologyUpdate, found {len(updates)}; leave one"
        )
    if not updates and _waits_for_updates(model):
        warnings.warn(
            f"the spec's topology is {model.spec.topology.kind!r}, but nothing updates it: masks stay as "
            "they are; give fit callbacks=[nt_keras.TopologyUpdate(total_steps=…)]",
            stacklevel=3,
        )
    arranged = [*updates, *(callback for callback in listed if callback not in updates)]
    if not is_list:
        return arranged
    callbacks.callbacks = arranged
    return callbacks


def _waits_for_updates(model: Network) -> bool:
    """Tell whether masks would change, but no :class:`Topology` of the caller's own changes them."""
    changes = model.compiled and model.spec.topology.updates
    return changes and not find_sparse(model.optimizer).awaits_update
