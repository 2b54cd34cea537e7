"""Base of optimisers that wrap another optimiser and forward Keras' calls to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, Self

import keras
import numpy as np
from keras import ops

from nt_core.errors import TopologyError
from nt_keras.engines.engine import ENGINE

SETTINGS: Final = (
    "weight_decay",
    "clipnorm",
    "global_clipnorm",
    "clipvalue",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "gradient_accumulation_steps",
)
"""Attributes that Keras gives to every optimiser; those of a wrapper would have no effect."""

WITH_VARIABLES: Final = ("use_ema", "gradient_accumulation_steps")
"""Settings for which an optimiser makes variables when it is built."""


class Wrapper(keras.optimizers.Optimizer):  # type: ignore[misc]
    """Wrapper whose steps, settings, averages and variables are the wrapped optimiser's.

    An attribute that the wrapper does not have is read from the wrapped optimiser, and set there.

    Attributes:
        inner_optimizer: the wrapped optimiser.
    """

    own: ClassVar[frozenset[str]] = frozenset({"name", "built", "inner_optimizer"})
    """Public attributes of the wrapper itself."""

    def __init__(self, inner_optimizer: keras.optimizers.Optimizer, name: str | None = None) -> None:
        super().__init__(learning_rate=0.0, name=name)
        for setting in SETTINGS:
            object.__delattr__(self, setting)
        self._changes = 0
        self.inner_optimizer = inner_optimizer

    def __getattr__(self, name: str) -> Any:
        """Read what the wrapper does not have, like the averages that ``SwapEMAWeights`` of Keras reads."""
        inner = vars(self).get("inner_optimizer")
        if inner is None or (name.startswith("_") and name != "_model_variables_moving_average"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, of the wrapped optimiser unless it is the wrapper's own.

        Raises:
            TopologyError: neither has it, or the optimiser has made its variables, which are others with it.
        """
        inner = vars(self).get("inner_optimizer")
        if inner is None or name.startswith("_") or name in self.own or hasattr(type(self), name):
            super().__setattr__(name, value)
            return
        if not hasattr(inner, name):
            raise TopologyError(
                f"optimizer.{name}: expected an attribute of {type(inner).__name__}, found none of this name"
            )
        if self.built and name in WITH_VARIABLES and value != getattr(inner, name):
            raise TopologyError(
                f"optimizer.{name}: expected to be set before the optimiser makes its variables, found "
                f"{value} after; wrap a new optimiser and compile again"
            )
        setattr(inner, name, value)
        self._changes += 1

    def build(self, variables: Sequence[Any]) -> None:
        """Note the variables; averages and accumulated gradients are made by the wrapped optimiser alone."""
        made_there = {"use_ema": False, "gradient_accumulation_steps": None}
        self.__dict__.update(made_there)
        super().build(variables)
        for name in made_there:
            del self.__dict__[name]

    @property
    def changes(self) -> int:
        """Number of settings that were changed; after each, Keras must trace its training step again."""
        inner = self.inner_optimizer
        return int(self._changes) + (inner.changes if isinstance(inner, Wrapper) else 0)

    def exclude_from_weight_decay(self, *args: Any, **kwargs: Any) -> None:
        """Exclude variables from the wrapped optimiser's weight decay, as Keras' optimisers do."""
        self.inner_optimizer.exclude_from_weight_decay(*args, **kwargs)
        self._changes += 1

    def apply_gradients(self, grads_and_vars: Any) -> Any:
        """Take one step, and return the number of calls."""
        super().apply_gradients(grads_and_vars)
        return self.calls

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all of :attr:`variables`.

        Raises:
            TopologyError: there are more or fewer, or they have other shapes.
        """
        variables = self.variables
        shapes, found = [tuple(v.shape) for v in variables], [tuple(np.shape(value)) for value in weights]
        if not self.built or shapes != found:
            raise TopologyError(
                f"optimizer: expected values of its {len(variables)} variables, found {len(found)}, or of "
                "other shapes; build the optimiser first, by model.build_optimizer()"
            )
        for variable, value in zip(variables, weights, strict=True):
            variable.assign(value)

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
        if any(variable._value is None for variable in var_list):
            return  # which JAX's training loop took away, and an error keeps from coming back
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
