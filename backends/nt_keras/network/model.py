"""A spec as a ``keras.Model``: its computation, and access to its weights and masks by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

import keras
import numpy as np
from numpy.typing import NDArray

from nt_core import DataError, EnsembleSpec, TopologyError
from nt_core.graph import Tokens
from nt_keras.engines import engine
from nt_keras.engines.layouts import IMAGE, example_shape, to_canonical, to_keras
from nt_keras.network.writer import Writer

HALF = ("float16", "bfloat16")


class Network(keras.Model):  # type: ignore[misc]
    """Network of a spec; :class:`nt_keras.Ensemble` adds training and documents the arguments."""

    def __init__(
        self, spec: EnsembleSpec, *, seed: int = 0, dtype: Any = None, name: str | None = None
    ) -> None:
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        is_tokens = isinstance(spec.graph.input, Tokens)
        inputs = keras.Input(
            example_shape(spec.graph.input.shape), dtype="int32" if is_tokens else policy.compute_dtype
        )
        writer = Writer(spec, seed, policy)
        logits = writer.write(inputs)
        if policy.compute_dtype in HALF:
            logits = keras.ops.cast(logits, "float32")
        super().__init__(inputs=inputs, outputs=logits, name=name)
        self.dtype_policy = policy  # by which Keras knows that a loss needs scaling
        self.spec, self._seed = spec, seed
        self._places = MappingProxyType(writer.places)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute every member's logits. (B, *input shape) → (B, M, *output shape).

        In training, members with rows of their own (``layout.own_rows``) get B / M of them each, in order.
        """
        self._expect_input(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None, **kwargs: Any) -> Any:
        """Compute every member's logits where JAX keeps the variables' values.

        Keras reads the names of the arguments; without ``training`` it would train in inference mode.
        """
        self._expect_input(inputs)
        return super().call(inputs, training=training, mask=mask, **kwargs)

    def _expect_input(self, inputs: Any) -> None:
        expected = example_shape(self.spec.graph.input.shape)
        found = tuple(getattr(inputs, "shape", expected))
        if found[-len(expected) :] != expected or len(found) != len(expected) + 1:
            raise DataError(
                f"input: expected shape (batch, {', '.join(map(str, expected))}), found {found}"
                + ("; images are (batch, height, width, channels) in Keras" if len(expected) == IMAGE else "")
            )
        given = self.spec.graph.input
        if (
            isinstance(given, Tokens)
            and hasattr(inputs, "dtype")
            and not keras.backend.is_keras_tensor(inputs)
        ):
            given.expect_whole(keras.backend.standardize_dtype(inputs.dtype))
            if isinstance(inputs, np.ndarray):
                given.whole(inputs)

    def variable(self, name: str) -> keras.Variable:
        """Return the variable of a weight's full name; kernels are in Keras' layout."""
        return self._places[name].variable

    def array(self, name: str) -> NDArray[Any]:
        """Return the values of a weight in the canonical layout."""
        place = self._places[name]
        return to_canonical(engine.to_numpy(place.variable), place.axes)

    def axes(self, name: str) -> tuple[int, ...] | None:
        """Return the canonical axes of a weight in Keras' order; None: the same order."""
        return self._places[name].axes

    def set_array(self, name: str, values: NDArray[Any]) -> None:
        """Set the values of a weight, given in the canonical layout."""
        place = self._places[name]
        place.variable.assign(to_keras(values, place.axes))

    def mask(self, name: str) -> NDArray[np.bool_] | None:
        """Return the mask of a weight in the canonical layout, True where active; None: no mask."""
        place = self._places[name]
        mask = getattr(place.variable, "mask", None)
        return None if mask is None else to_canonical(engine.to_numpy(mask), place.axes)

    @property
    def masked(self) -> tuple[str, ...]:
        """The full names of all weights that have a mask."""
        return tuple(name for name, place in self._places.items() if hasattr(place.variable, "mask"))

    @property
    def undecayed(self) -> tuple[keras.Variable, ...]:
        """The variables without weight decay: BatchEnsemble's factors."""
        return tuple(
            self.variable(placed.name) for placed in self.spec.layout.weights if not placed.weight.decayed
        )

    @property
    def density(self) -> float:
        """Active weights / maskable weights."""
        masks = [engine.to_numpy(self.variable(name).mask) for name in self.masked]
        return sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks) if masks else 1.0

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of :meth:`from_config`, with the whole spec."""
        policy = keras.dtype_policies.serialize(self.dtype_policy)
        return {"name": self.name, "spec": self.spec.to_dict(), "seed": self._seed, "dtype": policy}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Self:  # noqa: ARG003
        """Make the model from a config."""
        policy = keras.dtype_policies.deserialize(config["dtype"])
        spec = EnsembleSpec.from_dict(config["spec"])
        return cls(spec, seed=config["seed"], dtype=policy, name=config["name"])


def expect_network(model: Any) -> None:
    """Check that a model is one of ``nt_keras.compile``.

    Raises:
        TopologyError: it is another, like the copy that ``keras.models.clone_model`` makes.
    """
    if not isinstance(model, Network):
        raise TopologyError(
            f"model: expected what nt_keras.compile returned, found {type(model).__name__}, which has no "
            "spec; a copy of an ensemble is nt_keras.Ensemble.from_config(model.get_config()) with "
            "set_weights, and not Keras' clone_model"
        )
