"""An optimiser around another one, to which it passes on whatever Keras asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import keras
from keras import ops

from nt_core.errors import TopologyError
from nt_keras.engines.engine import ENGINE


class Wrapper(keras.optimizers.Optimizer):  # type: ignore[misc]
    """Steps, learning rate, loss scale, averages, variables and configuration are the wrapped optimiser's.

    Attributes:
        inner_optimizer: the wrapped one.
    """

    def __init__(self, inner_optimizer: keras.optimizers.Optimizer, name: str | None = None) -> None:
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer

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
        inner = self.inner_optimizer
        return inner.calls if isinstance(inner, Wrapper) else inner._iterations

    @property
    def accumulation(self) -> int:
        """Calls that make one optimiser step."""
        inner = self.inner_optimizer
        return (inner.accumulation if isinstance(inner, Wrapper) else inner.gradient_accumulation_steps) or 1

    @property
    def learning_rate(self) -> Any:
        """Of the next step."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.inner_optimizer.learning_rate = value

    @property
    def loss_scale_factor(self) -> float | None:
        """What the loss is multiplied by, and gradients are divided by; None: nothing."""
        factor: float | None = self.inner_optimizer.loss_scale_factor
        return factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, value: float | None) -> None:
        if hasattr(self, "inner_optimizer"):  # Keras sets it before there is one
            self.inner_optimizer.loss_scale_factor = value

    def scale_loss(self, loss: Any) -> Any:
        """Scale a loss as the wrapped optimiser wants it."""
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Put averaged values in place, if the wrapped optimiser keeps any."""
        self.inner_optimizer.finalize_variable_values(var_list)
        if ENGINE == "jax":  # which cannot train on with two variables in one buffer
            for variable in var_list:
                variable.assign(ops.copy(variable.value))

    def get_config(self) -> dict[str, Any]:
        """Return what :meth:`from_config` needs."""
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        return {"name": self.name, "inner_optimizer": inner}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Self:
        """Make the optimiser of a config."""
        inner = keras.saving.deserialize_keras_object(
            config["inner_optimizer"], custom_objects=custom_objects
        )
        return cls(**{**config, "inner_optimizer": inner})


def expect_plain(optimizer: Any) -> None:
    """Check an optimiser that is to be wrapped.

    Raises:
        TopologyError: it is wrapped already, was used already, or wraps others.
    """
    if isinstance(optimizer, Wrapper):
        raise TopologyError("optimizer: it is wrapped by nt_keras.sparse already; wrap it once")
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise TopologyError(
            "optimizer: a loss scale must be the outermost; "
            "write LossScaleOptimizer(nt_keras.sparse(optimizer, model))"
        )
    if hasattr(optimizer, "optimizers"):
        raise TopologyError(
            f"optimizer: expected one for all weights, found {type(optimizer).__name__}; if they differ in "
            "weight decay only, exclude_from_weight_decay does it"
        )
    if optimizer.built:
        raise TopologyError(
            "optimizer: expected a new one, found one that has variables already; wrap it before it is used"
        )


@contextmanager
def recording(optimizer: Any) -> Iterator[dict[int, list[Any]]]:
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
