"""An optimiser that keeps inactive weights at zero, around any optimiser of Keras."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from nt_core.errors import TopologyError
from nt_core.topology import reads_gradient, replaces_step
from nt_keras import engine
from nt_keras.layers import register
from nt_keras.optimizers import OURS

if TYPE_CHECKING:
    from nt_keras.compile import Ensemble

ZERO_STAYS_ZERO = {
    keras.optimizers.SGD,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
    keras.optimizers.Nadam,
    keras.optimizers.RMSprop,
    keras.optimizers.Adadelta,
    keras.optimizers.Adamax,
    keras.optimizers.Lion,
    *OURS,
}
"""Optimisers that leave a weight and its variables at 0 if weight, variables and gradient are 0 (tested)."""


def sparse(
    optimizer: keras.optimizers.Optimizer | str, model: Ensemble, *, keep_gradients: bool | None = None
) -> Sparse:
    """Wrap an optimiser so that a model's inactive weights, and its variables for them, stay exactly zero.

    Args:
        optimizer: any of Keras', with whatever it is given: clipping, accumulation, schedules, averages.
        model: what ``nt_keras.compile`` returned.
        keep_gradients: whether the dense gradient is kept at update steps, in one more variable for each
            masked weight; None: if the spec's topology reads it. Say True for a policy of one's own that does.

    Raises:
        TopologyError: the optimiser is wrapped already, or wraps a loss scale.

    Example:
        >>> import nt_core, nt_models, nt_keras
        >>> spec = nt_core.PRESETS["rigl"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> model = nt_keras.compile(spec)
        >>> model.compile(optimizer=sparse("adam", model), loss=nt_keras.ensemble_loss())
    """
    inner = keras.optimizers.get(optimizer)
    if isinstance(inner, Sparse):
        raise TopologyError("optimizer: it is wrapped by nt_keras.sparse already; wrap it once")
    if isinstance(inner, keras.optimizers.LossScaleOptimizer):
        raise TopologyError(
            "optimizer: a loss scale must be the outermost; "
            "write LossScaleOptimizer(nt_keras.sparse(optimizer, model))"
        )
    topology = model.spec.topology
    keep = reads_gradient(topology) if keep_gradients is None else keep_gradients
    return Sparse(inner, keep_gradients=keep, replaces_step=replaces_step(topology))


@register
class Sparse(keras.optimizers.Optimizer):  # type: ignore[misc]
    """The optimiser that :func:`sparse` makes.

    Before each step it sets the gradient of inactive weights to zero, so that the wrapped optimiser, its
    clipping and its accumulation see the sparse model's gradient; after it, inactive weights and every
    variable the optimiser made for them are exactly zero, whatever it did. At the steps that
    :class:`nt_keras.Topology` announces it keeps the dense gradient: reduced over replicas, summed over
    micro-batches, unscaled, before clipping.

    Attributes:
        inner_optimizer: the wrapped one.
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        keep_gradients: bool = False,
        replaces_step: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
        self.keep_gradients, self.replaces_step = keep_gradients, replaces_step
        self._zeros_stay = type(inner_optimizer) in ZERO_STAYS_ZERO

    def build(self, variables: Sequence[Any]) -> None:
        """Make the variables; ``variables`` are the model's trainable ones."""
        if self.built:
            return
        self._next_update = self.add_variable(
            (), dtype="int32", aggregation="only_first_replica", name="next_update"
        )
        with _recording(self.inner_optimizer) as made:
            self.inner_optimizer.build(variables)
        copies, kept, slots = [], [], []
        for variable in variables:
            mask = getattr(variable, "mask", None)
            slots.append(made.get(id(variable), []))
            kept.append(
                self.add_variable_from_reference(variable, name="dense_gradient")
                if mask is not None and self.keep_gradients
                else None
            )
            copies.append(self._copy_of(mask))
        self._masks, self._kept, self._slots = Hidden(copies), Hidden(kept), Hidden(slots)
        super().build(variables)
        self.follow(variables)

    def _copy_of(self, mask: Any) -> Any:
        """Return what masks are read from in a step.

        JAX's training step hands an optimiser its own variables only, so there a mask needs a copy among them.
        """
        if mask is None or engine.ENGINE != "jax":
            return mask
        return self.add_variable(mask.shape, dtype="bool", initializer="ones", name="mask")

    def follow(self, variables: Sequence[Any]) -> None:
        """Take over the model's masks as they are now, and set to zero what is inactive."""
        if not self.built:
            return
        for variable in variables:
            mask, copy = getattr(variable, "mask", None), self.mask_of(variable)
            if mask is not None and copy is not mask:
                copy.assign(ops.copy(mask.value))  # JAX donates each buffer once
        self.remask(variables)

    def mask_of(self, variable: Any) -> Any:
        """Return the mask the optimiser keeps to; None where a variable has none."""
        return self._masks.of[self._get_variable_index(variable)]

    def kept_gradient(self, variable: Any) -> Any:
        """Return the variable that holds a weight's dense gradient; None where none is kept."""
        return self._kept.of[self._get_variable_index(variable)]

    def slots(self, variable: Any) -> list[Any]:
        """Return the variables of its shape that the wrapped optimiser made for a variable."""
        return list(self._slots.of[self._get_variable_index(variable)])

    @property
    def accumulation(self) -> int:
        """Calls to :meth:`apply` that make one optimiser step."""
        return self.inner_optimizer.gradient_accumulation_steps or 1

    @property
    def gradient_scale(self) -> float:
        """What a kept gradient is divided by: it is summed over micro-batches, and perhaps scaled."""
        return self.accumulation * (self.inner_optimizer.loss_scale_factor or 1.0)

    def announce(self, step: int | None) -> None:
        """Say after which optimiser step, counted from 1, the topology is updated next."""
        self._next_update.assign(step or 0)

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Take one step, or add up one micro-batch."""
        grads = list(grads)
        if not self.built:
            self.build(list(trainable_variables or []))
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        if self.keep_gradients:
            self._keep(grads, variables)
        grads = [self._masked(gradient, variable) for gradient, variable in zip(grads, variables, strict=True)]
        if self.replaces_step:
            self._step_unless_replaced(grads, variables)
        else:
            self.inner_optimizer.apply(grads, variables)
        if not self._zeros_stay:
            self.remask(variables)

    def remask(self, variables: Iterable[Any]) -> None:
        """Set to zero what is inactive in masked variables and in what the optimiser made for them."""
        pairs = [
            (each, mask)
            for variable in variables
            if (mask := self.mask_of(variable)) is not None
            for each in (variable, *self.slots(variable))
        ]
        engine.change_all(self, clear, [each for each, _ in pairs], [mask for _, mask in pairs])

    def _masked(self, gradient: Any, variable: Any) -> Any:
        mask = self.mask_of(variable)
        return gradient if mask is None or gradient is None else clear(gradient, mask.value)

    def _keep(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        """Add this micro-batch's dense gradients to those kept, if the topology reads them after this step."""
        found = [
            (kept, gradient, variable)
            for gradient, variable in zip(grads, variables, strict=True)
            if (kept := self.kept_gradient(variable)) is not None
        ]
        for _, gradient, variable in found:
            if gradient is None:
                raise TopologyError(
                    f"weight {variable.path!r}: it has no gradient, but the topology reads it; the loss must "
                    "depend on every member"
                )
        first = ops.equal(self.calls % self.accumulation, 0)

        def add(kept: Any, gradient: Any) -> Any:
            gradient = ops.cast(gradient, kept.dtype)
            return gradient if self.accumulation == 1 else ops.where(first, gradient, kept + gradient)

        engine.change_if(
            self._is_due(), self, add, [kept for kept, _, _ in found], [gradient for _, gradient, _ in found]
        )

    def _is_due(self) -> Any:
        """Tell whether an update follows the optimiser step that this micro-batch belongs to."""
        step = self.calls // self.accumulation + 1
        return ops.equal(step, ops.cast(self._next_update, step.dtype))

    def _step_unless_replaced(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        last = ops.equal((self.calls + 1) % self.accumulation, 0)
        inner = self.inner_optimizer

        def pass_over() -> None:
            if self.accumulation > 1:
                inner._backend_reset_gradient_accumulators()
            inner._iterations.assign_add(1)

        engine.either(
            ops.logical_and(self._is_due(), last),
            self,
            pass_over,
            lambda *grads: inner.apply(list(grads), variables),
            grads,
            [*variables, *inner.variables],
        )

    @property
    def variables(self) -> list[Any]:
        """Its own variables and the wrapped optimiser's."""
        return [*self._variables, *self.inner_optimizer.variables]

    @property
    def iterations(self) -> Any:
        """Optimiser steps taken."""
        return self.inner_optimizer.iterations

    @property
    def calls(self) -> Any:
        """How often it was applied: once for each micro-batch."""
        return self.inner_optimizer._iterations

    @property
    def learning_rate(self) -> Any:
        """The wrapped optimiser's."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.inner_optimizer.learning_rate = value

    def scale_loss(self, loss: Any) -> Any:
        """Scale a loss as the wrapped optimiser wants it."""
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Put averaged values in place, if the wrapped optimiser keeps any."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def save_own_variables(self, store: Any) -> None:
        """Save nothing of its own: masks are the model's, and Keras saves the wrapped optimiser."""

    def load_own_variables(self, store: Any) -> None:
        """Load nothing of its own."""

    def get_config(self) -> dict[str, Any]:
        """Return what :meth:`from_config` needs."""
        return {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "keep_gradients": self.keep_gradients,
            "replaces_step": self.replaces_step,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Sparse:
        """Make the optimiser of a config."""
        inner = keras.saving.deserialize_keras_object(
            config["inner_optimizer"], custom_objects=custom_objects
        )
        return cls(**{**config, "inner_optimizer": inner})


class Hidden:
    """A list that Keras' tracking of attributes passes over."""

    def __init__(self, of: list[Any]) -> None:
        self.of = of


def find_sparse(optimizer: Any) -> Sparse:
    """Return the wrapper that keeps masks, perhaps inside a loss scale.

    Raises:
        TopologyError: there is none.
    """
    found = optimizer
    while isinstance(found, keras.optimizers.LossScaleOptimizer):
        found = found.inner_optimizer
    if not isinstance(found, Sparse):
        raise TopologyError(
            f"optimizer: expected one that keeps inactive weights at zero, found {type(optimizer).__name__}; "
            "compile with optimizer=nt_keras.sparse(optimizer, model)"
        )
    return found


def clear(values: Any, active: Any) -> Any:
    """Return values with +0 where inactive, whatever stood there.

    Example:
        >>> clear(ops.array([1.0, float("nan")]), ops.array([True, False])).tolist()
        [1.0, 0.0]
    """
    return ops.where(active, values, ops.zeros((), values.dtype))


@contextmanager
def _recording(optimizer: Any) -> Iterator[dict[int, list[Any]]]:
    """Note which variables an optimiser makes for which of the model's, all through one method of Keras'."""
    made: dict[int, list[Any]] = {}
    original = optimizer.add_variable_from_reference

    def add(reference_variable: Any, *args: Any, **kwargs: Any) -> Any:
        variable = original(reference_variable, *args, **kwargs)
        made.setdefault(id(reference_variable), []).append(variable)
        return variable

    object.__setattr__(optimizer, "add_variable_from_reference", add)
    try:
        yield made
    finally:
        object.__delattr__(optimizer, "add_variable_from_reference")
