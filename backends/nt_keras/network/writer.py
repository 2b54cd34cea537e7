"""Writer of a spec's ops as layers of Keras."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from nt_core import EnsembleSpec, GraphError, Random
from nt_core.graph import INPUT
from nt_core.structure import Part
from nt_keras.engines.layouts import kernel_axes
from nt_keras.network.lowering import Lowered, Settings, find_lowering
from nt_keras.network.members import FromExamples, FromRows


@dataclass(frozen=True, slots=True)
class Place:
    """Place of a spec's weight in the model.

    Attributes:
        layer: the layer that holds the weight.
        attribute: name of the weight's variable in the layer.
        axes: canonical axes in Keras' order; None: the same order.
    """

    layer: keras.layers.Layer
    attribute: str
    axes: tuple[int, ...] | None

    @property
    def variable(self) -> keras.Variable:
        """The variable of the weight."""
        return getattr(self.layer, self.attribute)


class Writer:
    """Writer of a spec's ops as layers, which records the place of each weight.

    Attributes:
        places: weight → place in the model.
    """

    def __init__(self, spec: EnsembleSpec, seed: int, policy: Any) -> None:
        self.spec, self.random, self.policy = spec, Random(seed), policy
        self.places: dict[str, Place] = {}
        self.names: set[str] = set()
        self.masked = spec.topology.kind != "dense"

    def write(self, inputs: Any) -> Any:
        """Return every member's logits, (B, M, *output shape)."""
        layout = self.spec.layout
        own = {"members": layout.members, "along": layout.along, "dtype": self.policy}
        if layout.along != "heads":
            inputs = FromExamples(name="from_examples", own_rows=layout.own_rows, **own)(inputs)
        values = {INPUT: inputs}
        if layout.backbone is not None:
            values = self._part(layout.backbone, values)
        output = layout.graph.output
        if not layout.heads:
            return FromRows(name="from_rows", **own)(values[output])
        return keras.ops.stack([self._part(head, values)[output] for head in layout.heads], axis=1)

    def _part(self, part: Part, values: Mapping[str, Any]) -> dict[str, Any]:
        values = dict(values)
        shapes = self.spec.layout.graph.shapes
        for block in part.blocks:
            for node in block.nodes:
                full = f"{part.name}/{block.name}/{node.name}"
                lowering = find_lowering(node.op, f"block {block.name!r}, op {node.name!r}")
                lowered = lowering(node.op, [shapes[ref] for ref in node.inputs], self._settings(full))
                values[f"{block.name}/{node.name}"] = lowered.compute(*[values[ref] for ref in node.inputs])
                self._remember(full, node.op, lowered)
        return values

    def _settings(self, full: str) -> Settings:
        seed = self.random.at(weight=full, purpose="dropout").key[0]
        return Settings(name=self._layer_name(full), dtype=self.policy, masked=self.masked, seed=seed)

    def _layer_name(self, full: str) -> str:
        """Return a layer's name without the signs that an engine refuses: slashes, dots, and others."""
        name = re.sub(r"[^A-Za-z0-9_-]", "_", full.replace("/", "-"))
        if name in self.names:
            raise GraphError(
                f"op {full!r}: Keras names it {name!r}, which is taken; rename the block or the op: a dot "
                "and an underscore are the same there, and so are a slash and a dash"
            )
        self.names.add(name)
        return name

    def _remember(self, full: str, op: Any, lowered: Lowered) -> None:
        for weight, attribute in lowered.variables.items():
            assert lowered.layer is not None
            place = Place(lowered.layer, attribute, kernel_axes(op, weight))
            self.places[f"{full}.{weight}"] = place
