"""Compile a spec into an ordinary ``keras.Model``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import keras
import numpy as np
from numpy.typing import NDArray

from nt_core import DataError, EnsembleSpec, GraphError, Random, initial_masks, initial_values
from nt_core.errors import TopologyError
from nt_core.graph import INPUT, Tokens
from nt_core.mask import Mask
from nt_core.structure import Part
from nt_keras import engine
from nt_keras.layers import register
from nt_keras.layouts import IMAGE, example_shape, kernel_axes, to_canonical, to_keras
from nt_keras.lowering import LOWERINGS, Lowered, Settings
from nt_keras.sparse import clear, find_sparse
from nt_keras.topology import expect_one_topology_update

HALF = ("float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a weight of the spec lives: a layer's attribute, and its axes there."""

    layer: keras.layers.Layer
    attribute: str
    axes: tuple[int, ...] | None

    @property
    def variable(self) -> keras.Variable:
        return getattr(self.layer, self.attribute)


@register
class Ensemble(keras.Model):  # type: ignore[misc]
    """A compiled spec; ``model(x)`` gives logits of shape (B, M, …), batch first as Keras wants it.

    An ordinary functional model: its kernels are dense variables with exact zeros where a connection is
    inactive, and beside each masked ``kernel`` lies a boolean variable ``weight_mask``, saved with the model.
    Images are channels last, (B, H, W, C). Heads share the backbone's output.

    Args:
        spec: what is declared.
        seed: keys dropout.
        dtype: a dtype or policy for all layers; None: Keras' global policy.
        name: of the model.

    Attributes:
        spec: what was declared.
    """

    def __init__(
        self, spec: EnsembleSpec, *, seed: int = 0, dtype: Any = None, name: str | None = None
    ) -> None:
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        is_tokens = isinstance(spec.graph.input, Tokens)
        inputs = keras.Input(
            example_shape(spec.graph.input.shape), dtype="int32" if is_tokens else policy.compute_dtype
        )
        writer = _Writer(spec, seed, policy)
        logits = keras.ops.stack(writer.write(inputs), axis=1)
        if policy.compute_dtype in HALF:
            logits = keras.ops.cast(logits, "float32")
        super().__init__(inputs=inputs, outputs=logits, name=name)
        self.spec = spec
        self._seed, self._policy = seed, policy
        self._places = MappingProxyType(writer.places)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute every member's logits. (B, *input shape) → (B, M, *output shape)."""
        expected = example_shape(self.spec.graph.input.shape)
        found = tuple(getattr(inputs, "shape", expected))
        if found[-len(expected) :] != expected or len(found) != len(expected) + 1:
            raise DataError(
                f"input: expected shape (batch, {', '.join(map(str, expected))}), found {found}"
                + ("; images are (batch, height, width, channels) in Keras" if len(expected) == IMAGE else "")
            )
        return super().__call__(inputs, *args, **kwargs)

    def variable(self, name: str) -> keras.Variable:
        """Return the variable behind a weight's full name; kernels in Keras' layout."""
        return self._places[name].variable

    def array(self, name: str) -> NDArray[Any]:
        """Return the values of a weight in the canonical layout."""
        place = self._places[name]
        return to_canonical(engine.to_numpy(place.variable), place.axes)

    def set_array(self, name: str, values: NDArray[Any]) -> None:
        """Give a weight values, which are in the canonical layout."""
        place = self._places[name]
        place.variable.assign(to_keras(values, place.axes))

    def mask(self, name: str) -> NDArray[np.bool_] | None:
        """Return the mask of a weight in the canonical layout, True where active; None where it has none."""
        place = self._places[name]
        mask = getattr(place.variable, "mask", None)
        return None if mask is None else to_canonical(engine.to_numpy(mask), place.axes)

    @property
    def masked(self) -> tuple[str, ...]:
        """The full names of all weights that have a mask."""
        return tuple(name for name, place in self._places.items() if hasattr(place.variable, "mask"))

    @property
    def density(self) -> float:
        """Active over all maskable weights."""
        masks = [engine.to_numpy(self.variable(name).mask) for name in self.masked]
        return sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks) if masks else 1.0

    def set_mask(self, name: str, mask: Mask) -> None:
        """Give a weight a mask and set its inactive elements to zero.

        Raises:
            TopologyError: the model was compiled without masks.
        """
        place = self._places[name]
        if not hasattr(place.variable, "mask"):
            raise TopologyError(
                f"weight {name!r}: the model has no variable for its mask; compile a spec whose topology is "
                "not dense"
            )
        place.variable.mask.assign(to_keras(mask.dense(), place.axes))
        place.variable.assign(clear(place.variable.value, place.variable.mask.value))

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Train, as ``keras.Model.fit``.

        Raises:
            TopologyError: the optimiser was not wrapped by ``nt_keras.sparse``, or two
                ``nt_keras.TopologyUpdate`` callbacks are given. None, where the spec's topology changes, is a
                warning.
        """
        expect_one_topology_update(self, args, kwargs)
        return super().fit(*args, **kwargs)

    def make_train_function(self, force: bool = False) -> Callable[..., Any]:
        """Make the function that trains one step, once the optimiser is known to keep to the masks."""
        if self.masked and self.optimizer is not None:
            find_sparse(self.optimizer).follow(self.trainable_variables)
        return super().make_train_function(force)

    def get_config(self) -> dict[str, Any]:
        """Return what :meth:`from_config` needs: the spec, spelled out."""
        policy = keras.dtype_policies.serialize(self._policy)
        return {"name": self.name, "spec": self.spec.to_dict(), "seed": self._seed, "dtype": policy}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Self:
        """Make the model of a config."""
        policy = keras.dtype_policies.deserialize(config["dtype"])
        spec = EnsembleSpec.from_dict(config["spec"])
        return cls(spec, seed=config["seed"], dtype=policy, name=config["name"])


class _Writer:
    """Writes a spec's ops as layers, remembering where each weight went."""

    def __init__(self, spec: EnsembleSpec, seed: int, policy: Any) -> None:
        self.spec, self.random, self.policy = spec, Random(seed), policy
        self.places: dict[str, _Place] = {}
        self.names: set[str] = set()
        self.masked = spec.topology.kind != "dense"

    def write(self, inputs: Any) -> list[Any]:
        """Return every head's output."""
        layout = self.spec.layout
        values = {INPUT: inputs}
        if layout.backbone is not None:
            values = self.part(layout.backbone, values)
        output = self.spec.graph.output
        return [self.part(head, values)[output] for head in layout.heads]

    def part(self, part: Part, values: Mapping[str, Any]) -> dict[str, Any]:
        values = dict(values)
        shapes = self.spec.layout.graph.shapes
        for block in part.blocks:
            for node in block.nodes:
                full = f"{part.name}/{block.name}/{node.name}"
                lowering = LOWERINGS[type(node.op)]
                lowered = lowering(node.op, [shapes[ref] for ref in node.inputs], self.settings(full))
                values[f"{block.name}/{node.name}"] = lowered.compute(*[values[ref] for ref in node.inputs])
                self.remember(full, node.op, lowered)
        return values

    def settings(self, full: str) -> Settings:
        seed = self.random.at(weight=full, purpose="dropout").key[0]
        return Settings(name=self.layer_name(full), dtype=self.policy, masked=self.masked, seed=seed)

    def layer_name(self, full: str) -> str:
        """Name a layer: no engine takes slashes, PyTorch no dots, TensorFlow few other signs."""
        name = re.sub(r"[^A-Za-z0-9_-]", "_", full.replace("/", "-"))
        if name in self.names:
            raise GraphError(
                f"op {full!r}: Keras names it {name!r}, which is taken; rename the block or the op: a dot "
                "and an underscore are the same there, and so are a slash and a dash"
            )
        self.names.add(name)
        return name

    def remember(self, full: str, op: Any, lowered: Lowered) -> None:
        for weight, attribute in lowered.variables.items():
            assert lowered.layer is not None
            place = _Place(lowered.layer, attribute, kernel_axes(op, weight))
            self.places[f"{full}.{weight}"] = place


def compile(  # noqa: A001
    spec: EnsembleSpec, *, seed: int = 0, dtype: Any = None, name: str | None = None
) -> Ensemble:
    """Make the model a spec declares, with the initial values and masks every backend starts from.

    Args:
        spec: what is declared.
        seed: keys initial values, masks and dropout.
        dtype: of its layers, ``"mixed_bfloat16"`` say; None: Keras' global policy.
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
    """Give a model values and masks, in the canonical layout."""
    for name, value in values:
        model.set_array(name, value)
    for name, mask in masks:
        model.set_mask(name, mask)
