"""Gradients of one batch for pruning at initialisation, by the NumPy reference, for tests of backends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nt_core.reference import Array, forward, value_and_gradients
from nt_core.spec import EnsembleSpec
from nt_core.structure import MultiHead
from nt_core.testing.data import generator, random_input, random_values
from nt_core.testing.models import MODELS
from nt_core.topology import AnySaliency, Grasp, PruneAtInit, expect_prunable

STEP = 1e-5
"""Length of the step to either side in the central difference for the Hessian-gradient product."""


@dataclass(frozen=True, kw_only=True)
class SaliencyCase:
    """One comparison of gradients, on two heads with a backbone.

    Attributes:
        spec: with the topology ``PruneAtInit``.
        values: float64 arrays by full name.
        inputs: (N, *input shape).
        labels: (N,) or (N, T).
    """

    spec: EnsembleSpec
    values: dict[str, Array]
    inputs: Array
    labels: Array


def saliency_case(model: str, criterion: AnySaliency, *, examples: int = 6) -> SaliencyCase:
    """Make the case of one of :data:`nt_core.testing.models.MODELS`.

    Example:
        >>> saliency_case("mlp", Grasp()).labels.shape
        (6,)
    """
    spec = EnsembleSpec(
        graph=MODELS[model](),
        structure=MultiHead(split=1, heads=2),
        topology=PruneAtInit(sparsity=0.7, criterion=criterion),
    )
    *places, classes = spec.graph.output_shape
    labels = generator(0, "labels").integers(0, classes, (examples, *places))
    inputs = random_input(spec.graph, examples, 0)
    return SaliencyCase(spec=spec, values=random_values(spec.layout, 0), inputs=inputs, labels=labels)


def reference_gradients(case: SaliencyCase) -> dict[str, Array]:
    """Return the gradients for the case's criterion: g, or H·g by central differences of g, by full name."""
    values, direction = case.values, gradients_at(case, case.values)
    if not isinstance(_criterion(case), Grasp):
        return direction
    step = STEP / np.sqrt(sum((each**2).sum() for each in direction.values()))
    ahead, behind = (
        gradients_at(case, values | {name: values[name] + side * each for name, each in direction.items()})
        for side in (step, -step)
    )
    return {name: (ahead[name] - behind[name]) / (2 * step) for name in direction}


def gradients_at(case: SaliencyCase, values: dict[str, Array]) -> dict[str, Array]:
    """Return the gradient g with respect to the sparsifiable weights, at given values."""
    spec, criterion = case.spec, _criterion(case)
    temperature = criterion.temperature if isinstance(criterion, Grasp) else 1.0
    logits = forward(spec.layout, values, case.inputs, training=True) / temperature
    upstream = _cross_entropy_gradient(logits, case.labels)
    upstream /= temperature * (spec.members if spec.loss_reduction == "mean" else 1)
    found = value_and_gradients(spec.layout, values, case.inputs, upstream).gradients
    return {placed.name: found[placed.name] for placed in spec.layout.sparsifiable}


def _criterion(case: SaliencyCase) -> AnySaliency:
    return expect_prunable(case.spec.topology, len(case.inputs)).criterion


def _cross_entropy_gradient(logits: Array, labels: Array) -> Array:
    """Return the gradient of each member's mean loss. (M, B, …, classes)."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    truth = np.eye(logits.shape[-1])[labels]
    gradient: Array = (shifted / shifted.sum(-1, keepdims=True) - truth) / labels.size
    return gradient
