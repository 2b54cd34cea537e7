"""Reference of a whole ensemble in NumPy: the backbone once, then each head, and gradients back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nt_core.errors import NeuroTrailsError, nearest
from nt_core.graph import INPUT, Node
from nt_core.graph.ops import Op
from nt_core.reference.contract import Applied, Array, Reference
from nt_core.reference.members import from_examples, from_rows, to_rows
from nt_core.reference.table import REFERENCE
from nt_core.structure import Layout, Part, weight_name

Values = Mapping[str, Array]
"""The arrays of an ensemble, by their full names."""


class Evaluated(NamedTuple):
    """Results of one batch.

    Attributes:
        logits: (M, B, *output shape).
        gradients: of Σ upstream·logits, by full name, one for each trainable weight.
        running: the new running statistics by full name; empty in evaluation.
    """

    logits: Array
    gradients: dict[str, Array]
    running: dict[str, Array]


def forward(
    layout: Layout,
    values: Values,
    x: Array,
    *,
    training: bool = False,
    references: Mapping[type[Op], Reference] = REFERENCE,
) -> Array:
    """Compute every member's logits.

    Args:
        layout: a graph spread over backbone and heads.
        values: every weight of the layout by its full name.
        x: (B, *input shape); token numbers for a network that reads tokens.
        training: normalise by the batch's statistics; a layout whose members have rows of their own gives
            each member B / M of them.
        references: the reference of each op; another table serves to test the tests.

    Returns:
        (M, B, *output shape), in the dtype of the values.

    Raises:
        NeuroTrailsError: a value is missing, a value or the input has another shape, or dropout in training.

    Example:
        >>> import nt_models
        >>> from nt_core import Independent
        >>> layout = Independent(count=2).layout(nt_models.mlp(inputs=3, hidden=(), classes=2))
        >>> values = {placed.name: np.ones(placed.weight.shape) for placed in layout.weights}
        >>> forward(layout, values, np.ones((1, 3))).tolist()
        [[[4.0, 4.0]], [[4.0, 4.0]]]
    """
    _expect_arrays(layout, values, x)
    return _trace(layout, values, x, training, references).logits


def value_and_gradients(
    layout: Layout,
    values: Values,
    x: Array,
    upstream: Array,
    *,
    training: bool = True,
    references: Mapping[type[Op], Reference] = REFERENCE,
) -> Evaluated:
    """Compute logits, the gradients of Σ upstream·logits, and the new running statistics.

    Gradients add up where a tensor is read several times, and over all heads in the backbone. A weight
    without influence on the logits has gradient 0.

    Args:
        layout: a graph spread over backbone and heads.
        values: every weight of the layout by its full name.
        x: (B, *input shape).
        upstream: (M, B, *output shape), the gradient of a loss with respect to the logits.
        training: normalise by the batch's statistics.
        references: the reference of each op.

    Raises:
        NeuroTrailsError: as :func:`forward`; or ``upstream`` has another shape than the logits.

    Example:
        >>> import nt_models
        >>> from nt_core import Single
        >>> layout = Single().layout(nt_models.mlp(inputs=3, hidden=(), classes=2))
        >>> values = {placed.name: np.ones(placed.weight.shape) for placed in layout.weights}
        >>> upstream = np.array([[[1.0, 0.0]]])
        >>> result = value_and_gradients(layout, values, np.array([[5.0, 6.0, 7.0]]), upstream)
        >>> result.gradients["head1/classifier/linear1.weight"].tolist()
        [[5.0, 6.0, 7.0], [0.0, 0.0, 0.0]]
    """
    _expect_arrays(layout, values, x)
    trace = _trace(layout, values, x, training, references)
    _expect_shape("upstream", upstream.shape, trace.logits.shape)
    gradients = {p.name: np.zeros_like(values[p.name]) for p in layout.weights if p.weight.trainable}
    into_backbone: dict[str, Array] = {} if layout.heads else {layout.graph.output: to_rows(layout, upstream)}
    for calls, d_logits in zip(trace.heads, upstream, strict=False):
        cotangents = {layout.graph.output: d_logits}
        gradients |= _pull(calls, cotangents)
        _accumulate(into_backbone, cotangents)
    gradients |= _pull(trace.backbone, into_backbone)
    every = [call for calls in (trace.backbone, *trace.heads) for call in calls]
    running = {call.weight(name): new for call in every for name, new in call.applied.running.items()}
    return Evaluated(trace.logits, gradients, running)


class _Call(NamedTuple):
    """An applied op and its place in the layout."""

    part: str
    block: str
    node: Node
    applied: Applied

    def weight(self, name: str) -> str:
        return weight_name(self.part, self.block, self.node.name, name)


class _Trace(NamedTuple):
    """The applied ops, and the logits."""

    backbone: list[_Call]
    heads: list[list[_Call]]
    logits: Array


def _trace(
    layout: Layout, values: Values, x: Array, training: bool, references: Mapping[type[Op], Reference]
) -> _Trace:
    """Run backbone and heads."""
    shared = {INPUT: from_examples(layout, x, training=training)}
    below = _run(layout.backbone, shared, values, training, references) if layout.backbone else []
    if not layout.heads:
        return _Trace(below, [], from_rows(layout, shared[layout.graph.output]))
    heads, logits = [], []
    for head in layout.heads:
        tensors = dict(shared)
        heads.append(_run(head, tensors, values, training, references))
        logits.append(tensors[layout.graph.output])
    return _Trace(below, heads, np.stack(logits))


def _run(
    part: Part,
    tensors: dict[str, Array],
    values: Values,
    training: bool,
    references: Mapping[type[Op], Reference],
) -> list[_Call]:
    """Run a part's ops, adding to the tensors."""
    calls = []
    for block in part.blocks:
        for node in block.nodes:
            own = {
                w.name: values[weight_name(part.name, block.name, node.name, w.name)]
                for w in node.op.weights()
            }
            try:
                applied = references[type(node.op)](
                    node.op, tuple(tensors[r] for r in node.inputs), own, training
                )
            except NeuroTrailsError as error:
                raise NeuroTrailsError(f"block {block.name!r}, op {node.name!r}: {error}") from None
            tensors[f"{block.name}/{node.name}"] = applied.output
            calls.append(_Call(part.name, block.name, node, applied))
    return calls


def _pull(calls: list[_Call], cotangents: dict[str, Array]) -> dict[str, Array]:
    """Propagate gradients back through a part; cotangents of tensors from outside the part remain."""
    gradients: dict[str, Array] = {}
    for call in reversed(calls):
        d_output = cotangents.pop(f"{call.block}/{call.node.name}", None)
        if d_output is None:
            continue
        d_inputs, d_weights = call.applied.pullback(d_output)
        for reference, d_input in zip(call.node.inputs, d_inputs, strict=True):
            if d_input is not None:
                _accumulate(cotangents, {reference: d_input})
        gradients |= {call.weight(name): d for name, d in d_weights.items()}
    return gradients


def _accumulate(total: dict[str, Array], more: Mapping[str, Array]) -> None:
    for reference, gradient in more.items():
        # Not in place: ops may hand one array to several inputs.
        total[reference] = total[reference] + gradient if reference in total else gradient


def _expect_arrays(layout: Layout, values: Values, x: Array) -> None:
    for placed in layout.weights:
        if placed.name not in values:
            raise NeuroTrailsError(f"values: no {placed.name!r}{nearest(placed.name, values)}")
        _expect_shape(f"values: {placed.name!r}", values[placed.name].shape, placed.weight.shape)
    _expect_shape("input", x.shape, (x.shape[0] if x.ndim else 0, *layout.input_shape))


def _expect_shape(what: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise NeuroTrailsError(f"{what}: expected shape {expected}, found {found}")
