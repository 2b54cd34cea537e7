"""Compile a spec into an ordinary ``keras.Model``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from nt_core import EnsembleSpec, initial_masks, initial_values
from nt_core.errors import CheckpointError, TopologyError
from nt_core.masks import Mask
from nt_core.topology import expect_chosen
from nt_keras.engines import engine
from nt_keras.engines.layouts import to_keras
from nt_keras.network.kernels import moving, set_masks
from nt_keras.network.layers import register
from nt_keras.network.losses import EnsembleLoss, expect_classes
from nt_keras.network.model import Network
from nt_keras.topology.finite import guarded_step
from nt_keras.topology.sparse import Sparse, find_sparse, unscaled
from nt_keras.topology.topology import arrange
from nt_keras.topology.zeros import clear


@register
class Ensemble(Network):
    """A compiled spec; ``model(x)`` returns logits of shape (B, M, …), batch first as Keras expects.

    The model is an ordinary functional model. Its kernels are dense variables with exact zeros where a
    connection is inactive. Each masked ``kernel`` has a boolean variable ``weight_mask``, which is saved with
    the model. Images are channels last, (B, H, W, C). Heads share the backbone's output.

    Args:
        spec: of the ensemble.
        seed: keys dropout.
        dtype: a dtype or policy for all layers; None: Keras' global policy.
        name: of the model.

    Attributes:
        spec: of the ensemble.
    """

    _traced: tuple[int, ...] = ()  # what the training step was made for

    def set_mask(self, name: str, mask: Mask) -> None:
        """Give a weight a mask and set its inactive elements to zero.

        Raises:
            TopologyError: the model was compiled without masks.
        """
        variable = self.variable(name)
        if not hasattr(variable, "mask"):
            raise TopologyError(
                f"weight {name!r}: the model has no variable for its mask; compile a spec whose topology is "
                "not dense"
            )
        variable.mask.assign(to_keras(mask.dense(), self.axes(name)))

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all variables, also masks, as ``keras.Model.set_weights``, and mask the optimiser's.

        Raises:
            TopologyError: a mask has values that are neither true nor false.
        """
        set_masks(self.weights, weights)
        super().set_weights(weights)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Load all variables, also masks, as ``keras.Model.load_weights``, and mask the optimiser's.

        Raises:
            CheckpointError: the file is of Keras' legacy format.
            TopologyError: the optimiser's state in it is of another topology.
        """
        if not str(filepath).endswith(".weights.h5"):
            expect_format(filepath)
        try:
            super().load_weights(filepath, *args, **kwargs)
        finally:
            if isinstance(optimizer := unscaled(getattr(self, "optimizer", None)), Sparse):
                optimizer.expect_loaded()

    def set_state_tree(self, state_tree: Mapping[str, Any]) -> None:
        """Set all variables, also masks, as ``keras.Model.set_state_tree``, and mask the optimiser's."""
        super().set_state_tree(state_tree)
        super().set_state_tree(state_tree)  # once more, now with the new masks

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Save everything, as ``keras.Model.save``.

        Raises:
            CheckpointError: the file's name is of Keras' legacy format.
        """
        expect_format(filepath)
        super().save(filepath, *args, **kwargs)

    def jax_state_sync(self) -> None:
        """Move the values that JAX's training loop keeps back into the variables."""
        with moving():
            super().jax_state_sync()

    def _follow_masks(self) -> None:
        """Set inactive elements to zero, in kernels and in the optimiser's variables."""
        kernels = [self.variable(name) for name in self.masked]
        optimizer = unscaled(getattr(self, "optimizer", None))
        if isinstance(optimizer, Sparse) and optimizer.built:
            optimizer.follow([kernel for kernel in kernels if optimizer.knows(kernel)])
            kernels = [kernel for kernel in kernels if not optimizer.knows(kernel)]
        if kernels:
            with engine.scope_of(kernels[0]):
                engine.assign(clear, kernels, [kernel.mask for kernel in kernels])

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Prepare for training, as ``keras.Model.compile``; a loss of ours gets the spec's reduction."""
        call = inspect.signature(super().compile).bind(*args, **kwargs)
        if isinstance(loss := call.arguments.get("loss"), EnsembleLoss):
            call.arguments["loss"] = loss.of_spec(self.spec)
        super().compile(*call.args, **call.kwargs)

    def compile_from_config(self, config: Mapping[str, Any]) -> None:
        """Compile as the saved model was; Keras asks this of models with a ``compile`` of their own."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def build_optimizer(self) -> None:
        """Make the optimiser's variables, if it has none yet.

        Raises:
            TopologyError: the model has masks, and the optimiser was not wrapped by ``nt_keras.sparse``, or
                belongs to another model.
        """
        if self.masked:
            find_sparse(self.optimizer)
        if not self.optimizer.built and self.trainable_variables:
            with engine.scope_of(self.trainable_variables[0]):
                self.optimizer.build(self.trainable_variables)
        if self.masked:
            find_sparse(self.optimizer).train(self.trainable_variables)
            self._expect_chosen()

    def _expect_chosen(self) -> None:
        if self.spec.topology.examples_needed:
            active = sum(int(engine.to_numpy(self.variable(n).mask).sum()) for n in self.masked)
            expect_chosen(self.spec.topology, self.spec.layout, active)

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Train, as ``keras.Model.fit``.

        Raises:
            DataError: inputs have another shape, or a class number is not one of the model's.
            TopologyError: the optimiser was not wrapped by ``nt_keras.sparse``, or two
                ``nt_keras.TopologyUpdate`` callbacks are given. No such callback, where the spec's topology
                changes, is a warning.
        """
        if self.masked and self.compiled:
            find_sparse(self.optimizer)
            self._follow_masks()
        call = self._checked(super().fit, args, kwargs)
        call.arguments["callbacks"] = arrange(self, call.arguments.get("callbacks"))
        return super().fit(*call.args, **call.kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, as ``keras.Model.evaluate``."""
        self._checked(super().evaluate, args, kwargs)
        return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Compute logits, as ``keras.Model.predict``."""
        self._checked(super().predict, args, kwargs)  # before JAX takes the variables' values, to lose them
        return super().predict(*args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Take one step, as ``keras.Model.train_on_batch``."""
        self._checked(super().train_on_batch, args, kwargs)
        return super().train_on_batch(*args, **kwargs)

    def _checked(
        self, method: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> inspect.BoundArguments:
        """Return a call's arguments, after a check that arrays among them fit."""
        call = inspect.signature(method).bind(*args, **kwargs)
        inputs, targets = (call.arguments.get(name) for name in ("x", "y"))
        if isinstance(inputs, np.ndarray):
            self._expect_input(inputs)
        if isinstance(targets, np.ndarray) and isinstance(getattr(self, "loss", None), EnsembleLoss):
            expect_classes(targets, self.output_shape[-1])
        return call

    def train_step(self, *given: Any) -> Any:
        """Take one step of ``fit``, which trainers guard against numbers that are not finite."""
        return guarded_step(self, super().train_step, *given)

    def make_train_function(self, force: bool = False) -> Any:
        """Make the function that trains one step, after a check that the optimiser keeps to the masks.

        It is made again once layers were frozen or not, or once a setting of the optimiser was changed.
        """
        if self.masked:
            self.build_optimizer()
        elif engine.ENGINE == "jax" and self.optimizer.built:
            trained = len(self.optimizer._trainable_variables)
            if trained != len(self.trainable_variables):
                raise TopologyError(
                    f"optimizer: it was made for {trained} trainable variables, found "
                    f"{len(self.trainable_variables)} after layers were frozen or not; compile again"
                )
        traced = (getattr(self.optimizer, "changes", 0), *map(id, self.trainable_variables))
        force, self._traced = force or traced != self._traced, traced
        return super().make_train_function(force)


def compile(  # noqa: A001
    spec: EnsembleSpec, *, seed: int = 0, dtype: Any = None, name: str | None = None
) -> Ensemble:
    """Compile a spec into a model, with the same initial values and masks in every backend.

    Args:
        spec: of the ensemble.
        seed: keys initial values, masks and dropout.
        dtype: of the layers, ``"mixed_bfloat16"`` say; None: Keras' global policy.
        name: of the model.

    Returns:
        A ``keras.Model``; ``model(x)`` has shape (B, M, …).

    Example:
        >>> import nt_models
        >>> from nt_core import Dynamic, MultiHead
        >>> graph = nt_models.wide_resnet(depth=10, width=1, classes=10, size=8, channels=1)
        >>> spec = EnsembleSpec(graph=graph, structure=MultiHead(split=1, heads=3),
        ...                     topology=Dynamic(sparsity=0.8))
        >>> model = compile(spec, seed=0)
        >>> tuple(model(np.zeros((5, 8, 8, 1), np.float32)).shape)
        (5, 3, 10)
    """
    model = Ensemble(spec, seed=seed, dtype=dtype, name=name)
    fill(model, initial_values(spec.layout, seed), initial_masks(spec.topology, spec.layout, seed))
    return model


def fill(
    model: Ensemble, values: Iterable[tuple[str, NDArray[Any]]], masks: Iterable[tuple[str, Mask]]
) -> None:
    """Give a model masks and values, in the canonical layout; values of inactive elements become zero."""
    for name, mask in masks:
        model.set_mask(name, mask)
    for name, value in values:
        model.set_array(name, value)


def expect_format(path: Any) -> None:
    """Check that a file's name is of a format that keeps an ensemble.

    Raises:
        CheckpointError: the format is Keras' legacy one.

    Example:
        >>> expect_format("model.keras")
    """
    if str(path).endswith((".h5", ".hdf5")):
        raise CheckpointError(
            f"{path}: Keras' legacy format does not keep an ensemble; save to a name that ends in .keras, "
            "or in .weights.h5 by save_weights, or by nt_keras.save for every backend"
        )
