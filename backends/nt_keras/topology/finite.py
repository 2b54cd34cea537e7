"""Guard of an optimiser, which takes no step if a loss or gradient is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import keras
import numpy as np
from keras import ops

from nt_core.errors import NotFiniteError
from nt_core.finite import NonFinite, gradient_not_finite, loss_not_finite
from nt_keras.engines import engine
from nt_keras.network.layers import register
from nt_keras.network.model import Network
from nt_keras.topology.wrapper import Wrapper

VERDICT: Final = "verdict"
"""Key in a training step's logs: whether its optimiser step, if it completed one, was taken."""
TAKEN, SCALE_TOO_LARGE, NOT_FINITE = range(3)

FIRST_SCALE: Final = 2.0**15
GROWTH_STEPS: Final = 2000


@dataclass(frozen=True)
class Watched:
    """Variables that a step which is not taken must not have changed.

    The variables are in a record, because Keras tracks variables in an optimiser's lists as the optimiser's
    own.

    Attributes:
        variables: variables to restore.
        before: values of the variables before the step.
        losses: the variables that sum up losses.
    """

    variables: Sequence[Any] = ()
    before: Sequence[Any] = ()
    losses: Sequence[Any] = ()


@register
class Guard(Wrapper):
    """Optimiser that skips steps whose gradient is not finite, without any trace in the wrapped optimiser.

    Gradients are checked before masks and clipping, at every micro-batch and summed over replicas. A gradient
    that is not finite skips its whole optimiser step. The variables of :meth:`watch` are then restored to
    their values before the step. A loss scale is adjusted by gradients that are not finite; its steps are
    skipped whole as well, unlike those of Keras' own loss scale, which leaves out single micro-batches.

    Args:
        inner_optimizer: any optimiser, wrapped by ``nt_keras.sparse`` or not.
        scaled: whether losses are scaled, as float16 requires.
    """

    own = Wrapper.own | {"scaled"}

    def __init__(
        self, inner_optimizer: keras.optimizers.Optimizer, scaled: bool = False, name: str | None = None
    ) -> None:
        super().__init__(inner_optimizer, name=name)
        self.scaled = scaled
        self._watched = Watched()

    def watch(self, model: Network, loss: keras.metrics.Metric, policy: NonFinite) -> None:
        """Set the variables that a step which is not taken must not have changed, once the guard is built.

        Args:
            model: gives the running statistics.
            loss: a metric that sums up losses.
            policy: reaction to such a step; where training stops, nothing needs to be restored.
        """
        losses = tuple(loss.variables)
        if policy == "stop":
            self._watched = Watched(losses=losses)
            return
        running = [placed.name for placed in model.spec.layout.weights if placed.weight.role == "running"]
        smoothed = getattr(self.inner_optimizer, "smoothed", ()) if self.accumulation > 1 else ()
        variables = (*map(model.variable, running), *losses, *smoothed)
        before = tuple(self.add_variable_from_reference(each, name="before") for each in variables)
        self._watched = Watched(variables=variables, before=before, losses=losses)

    def build(self, variables: Sequence[Any]) -> None:
        """Make the variables; ``variables`` are the model's trainable ones."""
        if self.built:
            return
        with engine.outside_graphs():
            one = {"aggregation": "only_first_replica"}
            self._norms = self.add_variable((len(variables),), dtype="float32", name="norms", **one)
            self._bad = self.add_variable((), dtype="int32", name="bad", **one)
            if self.scaled:
                self._scale = self.add_variable(
                    (), keras.initializers.Constant(FIRST_SCALE), dtype="float32", name="scale", **one
                )
                self._good = self.add_variable((), dtype="int32", name="good", **one)
            self.inner_optimizer.build(variables)
            super().build(variables)

    @property
    def scale(self) -> float:
        """Factor of the losses."""
        return float(engine.to_numpy(self._scale)) if self.scaled else 1.0

    @property
    def norms(self) -> Mapping[int, float]:
        """Norm of each trainable variable's gradient, by id, in the last step or a bad micro-batch of it."""
        norms = np.sqrt(engine.to_numpy(self._norms))
        return {id(each): float(norm) for each, norm in zip(self._trainable_variables, norms, strict=True)}

    def scale_loss(self, loss: Any) -> Any:
        """Scale a loss such that a loss which is not finite has no finite gradient."""
        scale = 1.0
        if self.scaled:
            scale = ops.convert_to_tensor(self._scale.value) if self.built else FIRST_SCALE
        factor = ops.where(ops.isfinite(loss), ops.cast(scale, loss.dtype), math.nan)
        return loss * ops.cast(factor, loss.dtype)

    @engine.as_written
    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Take one step, or add up one micro-batch, if the gradients so far are finite."""
        if not self.built:
            self.build(list(trainable_variables or []))
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        place = self._place()
        bad = self._note(_norms(grads), place)
        if self.scaled:
            grads = [
                each if each is None else each / ops.cast(self._scale.value, each.dtype) for each in grads
            ]
            self._fit_scale(bad, place)

        def step(*grads: Any) -> None:
            self.inner_optimizer.apply(list(grads), variables)

        def pass_over(*_: Any) -> None:
            innermost(self)._backend_reset_gradient_accumulators()
            back = ops.where(ops.equal(place, self.accumulation - 1), 1 - self.accumulation, 1)
            self.calls.assign_add(ops.cast(back, self.calls.dtype))

        changed = [*variables, *self.inner_optimizer.variables]
        engine.cond(bad, pass_over if self.accumulation > 1 else engine.nothing, step, grads, changed)

    def _place(self) -> Any:
        """Return the number, from 0, of a micro-batch in its step."""
        return ops.convert_to_tensor(self.calls.value) % self.accumulation

    def _note(self, norms: Any, place: Any) -> Any:
        """Note the gradients' norms, unless earlier norms were bad; return whether any were bad."""
        bad = ops.logical_not(ops.isfinite(ops.sum(norms)))
        if self.accumulation > 1:
            before = ops.logical_and(ops.not_equal(place, 0), ops.not_equal(self._bad.value, 0))
            norms, bad = ops.where(before, self._norms.value, norms), ops.logical_or(before, bad)
        self._norms.assign(norms)
        self._bad.assign(ops.cast(bad, "int32"))
        return bad

    def _fit_scale(self, bad: Any, place: Any) -> None:
        """Halve the scale after a bad step, double it after many good steps."""
        last = ops.equal(place, self.accumulation - 1)
        good = ops.where(bad, 0, self._good.value + ops.cast(last, "int32"))
        grows = ops.greater_equal(good, GROWTH_STEPS)
        shrinks = ops.logical_and(bad, last)
        self._good.assign(ops.where(grows, 0, good))
        self._scale.assign(self._scale.value * ops.where(shrinks, 0.5, ops.where(grows, 2.0, 1.0)))

    def begin(self) -> None:
        """Copy the watched variables at the beginning of a step."""
        watched = self._watched
        if not watched.variables:
            return

        def copy(*values: Any) -> None:
            engine.assign(_second, watched.before, values)

        values = [ops.convert_to_tensor(each.value) for each in watched.variables]
        if self.accumulation == 1:
            copy(*values)
        else:
            engine.cond(ops.equal(self._place(), 0), copy, engine.nothing, values, watched.before)

    def end(self) -> Any:
        """Restore the watched variables after a step that was not taken, and return the verdict."""
        untaken = ops.logical_and(ops.not_equal(self._bad.value, 0), ops.equal(self._place(), 0))
        lost, watched = untaken, self._watched
        if self.scaled:
            finite = [ops.isfinite(ops.convert_to_tensor(each.value)) for each in watched.losses]
            lost = ops.logical_and(untaken, ops.logical_not(ops.all(ops.stack(finite))))
        if watched.variables:

            def restore(*values: Any) -> None:
                engine.assign(_second, watched.variables, values)

            values = [ops.convert_to_tensor(each.value) for each in watched.before]
            engine.cond(lost, restore, engine.nothing, values, watched.variables)
        return ops.where(lost, NOT_FINITE, ops.where(untaken, SCALE_TOO_LARGE, TAKEN))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of ``from_config``."""
        return {**super().get_config(), "scaled": self.scaled}


def innermost(optimizer: Any) -> Any:
    """Return an optimiser of Keras without its wrappers."""
    while isinstance(optimizer, Wrapper):
        optimizer = optimizer.inner_optimizer
    return optimizer


def guarded_step(model: Network, step: Callable[..., Any], *given: Any) -> Any:
    """Take a training step of Keras, ``step(*given)``, within the model's guard, if it has one."""
    guard = model.optimizer
    if not isinstance(guard, Guard):
        return step(*given)
    if engine.ENGINE != "jax":
        guard.begin()
        logs = step(*given)
        return {**logs, VERDICT: guard.end()}
    state, data = given
    _, state = _stateless(model, state, guard.begin)
    logs, state = step(state, data)
    verdict, state = _stateless(model, state, guard.end)
    return {**logs, VERDICT: verdict}, state


def _stateless(
    model: keras.Model, state: Sequence[Any], action: Callable[[], Any]
) -> tuple[Any, Sequence[Any]]:
    """Run an action on the variables of a JAX training step, and return its result and the new state."""
    kinds = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    pairs = [
        pair for each, values in zip(kinds, state, strict=True) for pair in zip(each, values, strict=True)
    ]
    with keras.StatelessScope(state_mapping=pairs) as scope:
        found = action()
    return found, tuple([scope.get_current_value(variable) for variable in each] for each in kinds)


def not_taken(model: Network, step: int, lr: float) -> NotFiniteError:
    """Make the error of a step that a model's guard has not taken; variables must be up to date.

    Args:
        model: the guarded model.
        step: number of the step, from 1.
        lr: learning rate of the step.
    """
    guard: Guard = model.optimizer
    if guard.scaled:
        return loss_not_finite(step, lr)
    norms = guard.norms
    trained = [placed.name for placed in model.spec.layout.weights if placed.weight.trainable]
    found = {name: norms.get(id(model.variable(name)), 0.0) for name in trained}
    return gradient_not_finite(step, lr, found)


def release(model: Network) -> None:
    """Remove the guard of a trained model's optimiser; a loss scale is replaced by Keras' own."""
    guard: Guard = model.optimizer
    inner = guard.inner_optimizer
    model.optimizer = keras.optimizers.LossScaleOptimizer(inner) if guard.scaled else inner
    model.train_function = None


def _norms(gradients: Sequence[Any]) -> Any:
    """Return the squared norm of each gradient, over all replicas."""
    squares = [0.0 if g is None else ops.sum(ops.square(ops.cast(g, "float32"))) for g in gradients]
    return engine.add_up([ops.stack(squares)])[0]


def _second(_: Any, value: Any) -> Any:
    return value
