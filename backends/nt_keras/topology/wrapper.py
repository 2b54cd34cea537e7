"""Base of optimisers that wrap another optimiser and forward Keras' calls to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import keras
from keras import ops

from nt_core.errors import TopologyError
from nt_keras.engines.engine import ENGINE


class Wrapper(keras.optimizers.Optimizer):  # type: ignore[misc]
    """Wrapper whose steps, learning rate, loss scale, averages and variables are the wrapped optimiser's.

    Attributes:
        inner_optimizer: the wrapped optimiser.
    """

    def __init__(self, inner_optimizer: keras.optimizers.Optimizer, name: str | None = None) -> None:
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer

    @property
    def variables(self) -> list[Any]:
        """Variables of the wrapper and of the wrapped optimiser."""
        return [*self._variables, *self.inner_optimizer.variables]

    @property
    def iterations(self) -> Any:
        """Number of optimiser steps taken."""
        return self.inner_optimizer.iterations

    @property
    def calls(self) -> Any:
        """Number of calls so far, one for each micro-batch."""
        inner = self.inner_optimizer
        return inner.calls if isinstance(inner, Wrapper) else inner._iterations

    @property
    def accumulation(self) -> int:
        """Number of calls for one optimiser step."""
        inner = self.inner_optimizer
        return (inner.accumulation if isinstance(inner, Wrapper) else inner.gradient_accumulation_steps) or 1

    @property
    def learning_rate(self) -> Any:
        """Learning rate of the next step."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.inner_optimizer.learning_rate = value

    @property
    def loss_scale_factor(self) -> float | None:
        """Factor of the loss, and divisor of gradients; None: no scaling."""
        factor: float | None = self.inner_optimizer.loss_scale_factor
        return factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, value: float | None) -> None:
        if hasattr(self, "inner_optimizer"):  # Keras sets it before there is one
            self.inner_optimizer.loss_scale_factor = value

    def scale_loss(self, loss: Any) -> Any:
        """Scale a loss for the wrapped optimiser."""
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Replace values by their averages, if the wrapped optimiser keeps averages."""
        self.inner_optimizer.finalize_variable_values(var_list)
        if ENGINE == "jax":  # which cannot train on with two variables in one buffer
            for variable in var_list:
                variable.assign(ops.copy(variable.value))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of :meth:`from_config`."""
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        return {"name": self.name, "inner_optimizer": inner}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Self:
        """Make the optimiser from a config."""
        inner = keras.saving.deserialize_keras_object(
            config["inner_optimizer"], custom_objects=custom_objects
        )
        return cls(**{**config, "inner_optimizer": inner})


def expect_plain(optimizer: Any) -> None:
    """Check an optimiser that is to be wrapped.

    Raises:
        TopologyError: the optimiser is wrapped already, was used already, or wraps another optimiser.
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
    """Record the variables that an optimiser makes for each of the model's, through one method of Keras."""
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
