"""Cost: weights and floating-point operations of a spec, from its graph alone.

FLOPs are 2 × multiply-adds of convolutions and linear maps, forward, for one example (of a language model one
sequence). The backbone is counted once and each weight with its own active count. A training step is 3 ×
forward (RigL, Evci et al. 2020, appendix H). A topology that reads the dense gradient every ΔT steps costs
(3·f_S·ΔT + 2·f_S + f_D) / (ΔT + 1) on average. A topology that smooths the dense gradient (SNFS) costs
2·f_S + f_D at every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from nt_core.graph import Role, Tokens
from nt_core.graph.ops import Op
from nt_core.spec import EnsembleSpec
from nt_core.structure import Layout, Single, part_label

PARAMETERS: Mapping[Role, str] = MappingProxyType(
    {"kernel": "kernels", "bias": "biases", "scale": "norms", "factor": "factors", "table": "embeddings"}
)
"""Role → category in the count of parameters; a norm's shift is among the biases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """Cost of one convolution or linear map.

    Attributes:
        name: the weight's full name.
        part: ``"backbone"`` or ``"head 1"``, ….
        shape: of the weight.
        size: number of the weight's elements.
        active: number of active elements.
        density: active / size.
        flops: for one example, of the active elements.
        dense_flops: for one example, of all elements, as in a dense execution.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    size: int
    active: int
    density: float
    flops: int
    dense_flops: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a spec; the module's documentation defines the figures.

    Attributes:
        layers: every convolution and linear map, in the order of the layout.
        blocks_counted: depth of the graph in blocks.
        split: counted blocks in the backbone.
        parameters: number of trainable elements, active or not, by category: ``kernels``, ``biases``,
            ``norms``, ``factors`` (BatchEnsemble's), ``embeddings`` (tables that are looked up or added:
            class tokens and positions too).
        tokens: in one example, where the network reads token numbers; None elsewhere.
        flops_inference: sparse FLOPs for one example.
        flops_dense: FLOPs for one example in a dense execution of the same ensemble.
        flops_products: FLOPs among activations (attention), which masks do not save; not in the other
            figures.
        flops_training_step: for one example, forward and backward, with topology updates on average.
        single_weights: sparsifiable weights of the single dense network.
        single_flops: FLOPs of the single dense network for one example.
    """

    layers: tuple[LayerCost, ...]
    blocks_counted: int
    split: int
    parameters: Mapping[str, int]
    tokens: int | None
    flops_inference: int
    flops_dense: int
    flops_products: int
    flops_training_step: float
    single_weights: int
    single_flops: int

    @property
    def parameters_total(self) -> int:
        """Number of trainable elements, active or not, with biases, norms and embeddings."""
        return sum(self.parameters.values())

    @cached_property
    def weights_total(self) -> int:
        """Number of sparsifiable weights, counted in each head."""
        return sum(layer.size for layer in self.layers)

    @cached_property
    def weights_active(self) -> int:
        """Number of active sparsifiable weights."""
        return sum(layer.active for layer in self.layers)

    @property
    def density(self) -> float:
        """Active weights / sparsifiable weights."""
        return self.weights_active / self.weights_total if self.weights_total else 1.0

    def relative_to_single_dense(self) -> dict[str, float]:
        """Return the ratios to the single dense network.

        ``flops_uniform_equivalent`` is density × the dense ensemble's FLOPs, as if every layer had the same
        density. Some papers print that figure.
        """
        flops = max(self.single_flops, 1)
        return {
            "weights_total": self.weights_total / max(self.single_weights, 1),
            "weights_active": self.weights_active / max(self.single_weights, 1),
            "flops_inference": self.flops_inference / flops,
            "flops_training_step": self.flops_training_step / (3 * flops),
            "flops_uniform_equivalent": self.density * self.flops_dense / flops,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as values that JSON can hold."""
        return {
            "blocks_counted": self.blocks_counted,
            "split": self.split,
            "weights": {
                "total": self.weights_total,
                "active": self.weights_active,
                "density": self.density,
            },
            "parameters_total": self.parameters_total,
            "parameters": dict(self.parameters),
            "tokens": self.tokens,
            "flops": {
                "inference": self.flops_inference,
                "training_step": self.flops_training_step,
                "dense_execution": self.flops_dense,
                "attention_products": self.flops_products,
            },
            "relative_to_single_dense": self.relative_to_single_dense(),
            "layers": [asdict(layer) for layer in self.layers],
        }


def cost(spec: EnsembleSpec, counts: Mapping[str, int] | None = None) -> Cost:
    """Compute the cost of a spec.

    Args:
        spec: of the ensemble.
        counts: active elements of each weight, where they differ from the allocation (after global pruning,
            say).

    Returns:
        The figures, computed without any array of a weight's size.

    Example:
        >>> import nt_models
        >>> figures = cost(EnsembleSpec(graph=nt_models.wide_resnet(depth=28, width=10, classes=100)))
        >>> figures.flops_inference, figures.weights_total, figures.blocks_counted
        (10486772736, 36518832, 12)
    """
    layout = spec.result.layout
    layers = _layers(layout, spec.result.counts if counts is None else counts)
    single = Single().layout(spec.graph)
    sparse = sum(layer.flops for layer in layers)
    dense = sum(_flops(layout, {}).values())
    backbone = layout.backbone.blocks if layout.backbone else ()
    step = spec.topology.step_flops(sparse, dense) * spec.structure.training_rows / layout.rows
    return Cost(
        layers=layers,
        blocks_counted=len(spec.graph.counted),
        split=sum(block.kind == "counted" for block in backbone),
        parameters=_parameters(layout),
        tokens=spec.graph.input.length if isinstance(spec.graph.input, Tokens) else None,
        flops_inference=sparse,
        flops_dense=dense,
        flops_products=_products(layout),
        flops_training_step=step * spec.members / spec.result.members,
        single_weights=sum(p.weight.size for p in single.sparsifiable),
        single_flops=sum(_flops(single, {}).values()),
    )


def _parameters(layout: Layout) -> dict[str, int]:
    found = dict.fromkeys(PARAMETERS.values(), 0)
    for placed in layout.weights:
        if placed.weight.trainable:
            found[PARAMETERS[placed.weight.role]] += placed.weight.size
    return found


def _flops(layout: Layout, counts: Mapping[str, int]) -> dict[str, int]:
    each = 2 * layout.rows
    return {p.name: each * counts.get(p.name, p.weight.size) * p.positions for p in layout.sparsifiable}


def _layers(layout: Layout, counts: Mapping[str, int]) -> tuple[LayerCost, ...]:
    flops, dense = _flops(layout, counts), _flops(layout, {})
    return tuple(
        LayerCost(
            name=p.name,
            part=part_label(p.part),
            shape=p.weight.shape,
            size=p.weight.size,
            active=counts[p.name],
            density=counts[p.name] / p.weight.size,
            flops=flops[p.name],
            dense_flops=dense[p.name],
        )
        for p in layout.sparsifiable
    )


def _products(layout: Layout) -> int:
    def of(op: Op, inputs: tuple[str, ...]) -> int:
        return op.product_multiply_adds(*[layout.graph.shapes[ref] for ref in inputs])

    nodes = (node for part in layout.parts for block in part.blocks for node in block.nodes)
    return layout.rows * sum(2 * of(node.op, node.inputs) for node in nodes)
