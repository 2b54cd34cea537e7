"""Optimiser that wraps any optimiser of Keras and keeps inactive weights at zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import keras
import numpy as np
from keras import ops

from nt_core.errors import TopologyError
from nt_core.topology import Bits
from nt_keras.engines import engine
from nt_keras.network.kernels import keeping_masks
from nt_keras.network.layers import register
from nt_keras.network.model import Network, expect_network
from nt_keras.topology.agreement import expect_agreement, from_bytes, to_bytes
from nt_keras.topology.finite import Guard
from nt_keras.topology.wrapper import Wrapper, expect_plain, recording
from nt_keras.topology.zeros import clear, keeps_zeros, warn_of_zero_by_zero


def sparse(
    optimizer: keras.optimizers.Optimizer | str, model: Network, *, keep_gradients: bool | None = None
) -> Any:
    """Wrap an optimiser so that a model's inactive weights, and its variables for them, stay exactly zero.

    Whatever is set on the result is set on the wrapped optimiser.

    Args:
        optimizer: any new optimiser of Keras, also with clipping, accumulation, schedules, averages; or an
            optimiser of your own that makes its variables by ``add_variable_from_reference``, as Keras' do.
            The optimiser in a ``LossScaleOptimizer`` is wrapped inside of it.
        model: of ``nt_keras.compile``.
        keep_gradients: whether the dense gradient is kept at update steps, in one more variable for each
            masked weight; None: if the spec's topology reads it. A policy of your own may need True.

    Raises:
        TopologyError: the optimiser is wrapped already, was used already, or wraps another optimiser.

    Example:
        >>> import nt_core, nt_models, nt_keras
        >>> spec = nt_core.PRESETS["rigl"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> model = nt_keras.compile(spec)
        >>> model.compile(optimizer=sparse("adam", model), loss=nt_keras.ensemble_loss())
    """
    expect_network(model)
    inner = keras.optimizers.get(optimizer)
    if isinstance(inner, keras.optimizers.LossScaleOptimizer) and not inner.built:
        inner.inner_optimizer = sparse(inner.inner_optimizer, model, keep_gradients=keep_gradients)
        return inner
    expect_plain(inner)
    warn_of_zero_by_zero(inner)
    topology = model.spec.topology
    keep = topology.reads_gradient() if keep_gradients is None else keep_gradients
    return Sparse(
        inner,
        keep_gradients=keep,
        replaces_step=topology.replaces_step,
        momentum_beta=topology.momentum_beta,
        topology=topology.model_dump(mode="json"),
    )


@dataclass(frozen=True, slots=True)
class Beside:
    """Variables of the optimiser for one of the model's variables.

    Attributes:
        mask: mask that a step reads; None: the variable has no mask.
        gradient: dense gradient; None: not kept.
        momentum: smoothed dense gradient; None: the topology does not read it.
        slots: variables of the same shape that the wrapped optimiser made.
    """

    mask: Any
    gradient: Any
    momentum: Any
    slots: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Trained:
    """Variables that a training step of JAX changes; in a record, because Keras tracks variables in lists.

    Attributes:
        variables: the variables; none: all for which the optimiser was built.
    """

    variables: Sequence[Any] = ()


@register
class Sparse(Wrapper):
    """The optimiser that :func:`sparse` makes.

    Before each step the gradient of inactive weights is set to zero, so that the wrapped optimiser, its
    clipping and its accumulation read the sparse model's gradient. After each step inactive weights, and
    every variable that the optimiser made for them, are exactly zero, for any wrapped optimiser. At the steps
    that :class:`nt_keras.Topology` announces, the dense gradient is kept: reduced over replicas, summed over
    micro-batches, unscaled, before clipping. The exponential mean of the dense gradient over all steps is
    kept where the topology reads it.

    Attributes:
        seen: every mask so far, packed, by weight; filled by :class:`nt_keras.Topology`, and saved here.
        asked: arguments of the training's :class:`nt_keras.Topology`, as plain values; saved here, too.
    """

    own = Wrapper.own | {"keep_gradients", "replaces_step", "momentum_beta", "topology", "seen", "asked"}

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        keep_gradients: bool = False,
        replaces_step: bool = False,
        momentum_beta: float | None = None,
        name: str | None = None,
        topology: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(inner_optimizer, name=name)
        self.keep_gradients, self.replaces_step = keep_gradients, replaces_step
        self.momentum_beta = momentum_beta
        self.topology = None if topology is None else MappingProxyType(topology)  # Keras replaces plain dicts
        self.seen: dict[str, Bits] = {}
        self.asked: Mapping[str, Any] = MappingProxyType({})
        self._trained = Trained()
        self._disagreement: TopologyError | None = None

    def build(self, variables: Sequence[Any]) -> None:
        """Make the variables; ``variables`` are the model's trainable ones."""
        if not self.built:
            _expect_same_strategy(self, variables)
            with engine.outside_graphs():
                self._build(variables)

    def _build(self, variables: Sequence[Any]) -> None:
        self._next_update = self.add_variable(
            (), dtype="int32", aggregation="only_first_replica", name="next_update"
        )
        with recording(self.inner_optimizer) as made:
            self.inner_optimizer.build(variables)
        self._beside = [self._make_beside(variable, made.get(id(variable), [])) for variable in variables]
        super().build(variables)
        self.follow(variables)

    def _make_beside(self, variable: Any, slots: Sequence[Any]) -> Beside:
        mask, gradient, momentum = getattr(variable, "mask", None), None, None
        if mask is None:
            return Beside(None, None, None, slots)
        mask.followers.add(self)
        if self.keep_gradients:
            gradient = self.add_variable_from_reference(variable, name="dense_gradient")
        if self.momentum_beta is not None:
            momentum = self.add_variable_from_reference(variable, name="dense_momentum")
        if engine.ENGINE == "jax":  # whose training step hands an optimiser its own variables only
            mask = self.add_variable(mask.shape, "ones", dtype="bool", layout=mask._layout, name="mask")
        return Beside(mask, gradient, momentum, slots)

    def expect_loaded(self) -> None:
        """Check, after Keras loaded a state, that it was of this optimiser's topology and arguments.

        Raises:
            TopologyError: it was of others.
        """
        error, self._disagreement = self._disagreement, None
        if error is not None:
            raise error from None

    def knows(self, variable: Any) -> bool:
        """Return whether the optimiser was built for a variable."""
        return self._var_key(variable) in self._trainable_variables_indices

    def expect_known(self, variables: Sequence[Any]) -> None:
        """Check that the optimiser was built for some variables.

        Raises:
            TopologyError: the optimiser was built for other variables.
        """
        for variable in variables:
            if not self.knows(variable):
                raise TopologyError(
                    f"optimizer: it was made for other weights, {variable.path!r} is not among them; wrap a "
                    "new one by nt_keras.sparse(optimizer, model), with this model, once its layers are "
                    "trainable or not"
                )

    def beside(self, variable: Any) -> Beside:
        """Return the optimiser's variables for one of the model's variables."""
        beside: Beside = self._beside[self._get_variable_index(variable)]
        return beside

    def slots(self, variable: Any) -> Sequence[Any]:
        """Return the variables of equal shape that the wrapped optimiser made for a variable."""
        return self.beside(variable).slots

    def follow(self, variables: Sequence[Any]) -> None:
        """Copy the model's present masks, and set inactive elements to zero."""
        for variable in variables:
            copy = self.beside(variable).mask
            if copy is not None and copy is not variable.mask:
                copy.assign(ops.copy(variable.mask.value))  # JAX donates each buffer once
        with engine.scope_of(self.calls):
            self.remask(variables)

    def remask(self, variables: Sequence[Any]) -> None:
        """Set inactive elements to zero in masked variables and in the optimiser's variables for them."""
        pairs = [
            (each, beside.mask)
            for variable in variables
            if (beside := self.beside(variable)).mask is not None
            for each in (variable, *beside.slots)
        ]
        engine.assign(clear, [each for each, _ in pairs], [mask for _, mask in pairs])

    @property
    def gradient_scale(self) -> float:
        """Divisor of a kept gradient, which is summed over micro-batches, and perhaps scaled."""
        return self.accumulation * (self.loss_scale_factor or 1.0)

    @property
    def smoothed(self) -> Sequence[Any]:
        """The variables of smoothed dense gradients."""
        return [beside.momentum for beside in self._beside if beside.momentum is not None]

    def announce(self, step: int | None) -> None:
        """Set the optimiser step, counted from 1, after which the topology is updated next."""
        self._next_update.assign(step or 0)

    @property
    def awaits_update(self) -> bool:
        """Whether an announced update is still to come."""
        return self.built and int(self._next_update) > int(self.iterations)

    def calls_until(self, step: int) -> int:
        """Return the number of calls until an optimiser step, counted from 1, is taken."""
        return step * self.accumulation - int(engine.to_numpy(self.calls))

    @engine.as_written
    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Take one step, or add up one micro-batch."""
        if not self.built:
            self.build(list(trainable_variables or []))
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        self.expect_known(variables)
        if self.keep_gradients:
            self._keep(grads, variables)
        if self.momentum_beta is not None:
            self._smooth(grads, variables, self.momentum_beta)
        masked = [self._masked(each, variable) for each, variable in zip(grads, variables, strict=True)]
        if self.replaces_step:
            self._step_unless_replaced(masked, variables)
        else:
            self._step(masked, variables)
        if not keeps_zeros(self.inner_optimizer, variables):
            self.remask(variables)

    def _step(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        with keeping_masks():
            self.inner_optimizer.apply(list(grads), variables)

    def train(self, variables: Sequence[Any]) -> None:
        """Tell which of the variables, in order, the next training steps change; the others are frozen.

        Raises:
            TopologyError: the optimiser was not built for one of them, or would change frozen variables, too.
        """
        self.expect_known(variables)
        frozen = len(self._trainable_variables) - len(variables)
        if self.inner_optimizer.use_ema and frozen:
            raise TopologyError(
                f"optimizer: {frozen} of the variables that it averages are not trainable any more, and "
                "averages would overwrite them; freeze layers before the first step, or compile again with a "
                "new nt_keras.sparse(optimizer, model)"
            )
        self._trained = Trained(tuple(variables))

    def stateless_apply(
        self, optimizer_variables: Sequence[Any], grads: Sequence[Any], trainable_variables: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Take one step for values, as JAX does; of the variables of :meth:`train`."""
        variables = self._trained.variables or self._trainable_variables
        if len(variables) != len(trainable_variables):
            raise TopologyError(
                f"optimizer: expected values of {len(variables)} trainable variables, found "
                f"{len(trainable_variables)}; after layers were frozen or not, call model.build_optimizer()"
            )
        own = self.variables
        values = (*trainable_variables, *optimizer_variables)
        mapping = list(zip((*variables, *own), values, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self.apply(grads, variables)
        return [scope.get_current_value(v) for v in variables], [scope.get_current_value(v) for v in own]

    def _masked(self, gradient: Any, variable: Any) -> Any:
        mask = self.beside(variable).mask
        if mask is None or gradient is None:
            return gradient
        if not variable.mask.chosen:
            raise TopologyError(
                f"weight {variable.path!r}: expected a mask, found none, as in a model that Keras made from "
                "a config or cloned; give it the weights of another by set_weights, or make it by "
                "nt_keras.compile"
            )
        return clear(gradient, mask.value)

    def _keep(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        """Add a micro-batch's dense gradients to the kept gradients, if an update follows this step."""
        places, found = [], []
        for gradient, variable in zip(grads, variables, strict=True):
            if (place := self.beside(variable).gradient) is not None:
                places.append(place)
                found.append(_expect_gradient(gradient, variable))
        first = ops.equal(self.calls % self.accumulation, 0)

        def add(kept: Any, gradient: Any) -> Any:
            gradient = ops.cast(gradient, kept.dtype)
            return gradient if self.accumulation == 1 else ops.where(first, gradient, kept + gradient)

        def keep(*gradients: Any) -> None:
            engine.assign(add, places, engine.add_up(gradients))

        engine.cond(self._is_due(), keep, engine.nothing, found, places)

    def _smooth(self, grads: Sequence[Any], variables: Sequence[Any], beta: float) -> None:
        """Add a micro-batch's dense gradients to their exponential means, which decay once in each step."""
        places, found = [], []
        for gradient, variable in zip(grads, variables, strict=True):
            if (place := self.beside(variable).momentum) is not None:
                places.append(place)
                found.append(_expect_gradient(gradient, variable))
        factor = (1 - beta) / self.gradient_scale
        fade = beta
        if self.accumulation > 1:
            fade = ops.where(ops.equal(self.calls % self.accumulation, 0), beta, 1.0)

        def blend(smoothed: Any, gradient: Any) -> Any:
            return smoothed * ops.cast(fade, smoothed.dtype) + factor * ops.cast(gradient, smoothed.dtype)

        engine.assign(blend, places, engine.add_up(found))

    def _is_due(self) -> Any:
        """Return whether an update follows the optimiser step of this micro-batch."""
        step = self.calls // self.accumulation + 1
        return ops.equal(step, ops.cast(self._next_update, step.dtype))

    def _step_unless_replaced(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        inner = self.inner_optimizer

        def pass_over(*_: Any) -> None:
            if self.accumulation > 1:
                inner._backend_reset_gradient_accumulators()
            self.calls.assign_add(1)

        def step(*grads: Any) -> None:
            self._step(grads, variables)

        last = ops.equal((self.calls + 1) % self.accumulation, 0)
        replaced = ops.logical_and(self._is_due(), last)
        engine.cond(replaced, pass_over, step, grads, [*variables, *inner.variables])

    def save_own_variables(self, store: Any) -> None:
        """Save the variables of this wrapper; the model saves masks, the wrapped optimiser its own variables.

        These are partially summed dense gradients, smoothed dense gradients, every mask so far, and what the
        training was asked for.
        """
        store["asked"] = to_bytes({"optimizer": self._fields(), "topology": dict(self.asked)})
        for number, beside in enumerate(self._beside):
            if beside.momentum is not None:
                store[f"momentum {number}"] = beside.momentum.numpy()
        for name, bits in self.seen.items():
            store[f"seen {name.replace('/', '|')}"] = bits  # a slash would make a group of HDF5's
        if int(engine.to_numpy(self.calls)) % self.accumulation:
            for number, beside in enumerate(self._beside):
                if beside.gradient is not None:
                    store[f"gradient {number}"] = beside.gradient.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Load the saved variables, and copy the masks, which Keras loads before.

        Raises:
            TopologyError: they were saved with an optimiser of another topology, or with other arguments.
        """
        keys = set(store.keys())
        if "asked" in keys:  # which files before 0.2 lack
            keys.remove("asked")
            asked = from_bytes(store["asked"])
            try:
                expect_agreement("optimizer", self._fields(), asked["optimizer"])
            except TopologyError as error:
                self._disagreement = error  # because Keras raises an error of its own instead
                raise
            self.asked = MappingProxyType(asked["topology"])
        for key in keys:
            kind, _, which = key.partition(" ")
            if kind == "seen":
                self.seen[which.replace("|", "/")] = np.array(store[key], dtype=np.uint8)
            else:
                getattr(self._beside[int(which)], kind).assign(store[key])
        self.follow(self._trainable_variables)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all of :attr:`variables`, and mask them."""
        super().set_weights(weights)
        self.follow(self._trainable_variables)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of ``from_config``."""
        return {**super().get_config(), **self._fields()}

    def _fields(self) -> dict[str, Any]:
        """Return the arguments beside the wrapped optimiser, as plain values."""
        topology = {} if self.topology is None else {"topology": dict(self.topology)}
        return {name: getattr(self, name) for name in FIELDS} | topology


FIELDS: Final = ("keep_gradients", "replaces_step", "momentum_beta")
"""Arguments of :class:`Sparse` that are plain values."""


def find_sparse(optimizer: Any) -> Sparse:
    """Return the wrapper that keeps masks, perhaps inside a loss scale.

    Raises:
        TopologyError: the optimiser was not wrapped.
    """
    found = unscaled(optimizer)
    if not isinstance(found, Sparse):
        raise TopologyError(
            f"optimizer: expected one that keeps inactive weights at zero, found {type(found).__name__}; "
            "compile with optimizer=nt_keras.sparse(optimizer, model)"
        )
    return found


def unscaled(optimizer: Any) -> Any:
    """Return an optimiser without the loss scales and guards around it."""
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer | Guard):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _expect_same_strategy(optimizer: Sparse, variables: Sequence[Any]) -> None:
    strategy = engine.strategy_of(optimizer.calls)
    for variable in variables:
        if engine.strategy_of(variable) is not strategy:
            raise TopologyError(
                f"optimizer: it and weight {variable.path!r} were not made under the same distribution "
                "strategy; make the model and the optimiser inside one strategy.scope()"
            )


def _expect_gradient(gradient: Any, variable: Any) -> Any:
    if gradient is None:
        raise TopologyError(
            f"weight {variable.path!r}: it has no gradient, but the topology reads it; the loss must depend "
            "on every member"
        )
    return gradient
