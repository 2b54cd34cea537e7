"""Pruning at initialisation: selection of masks by one batch's gradients, which backends compute."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import DataError, TopologyError
from nt_core.masks import Mask, top_k
from nt_core.structure import Layout
from nt_core.structure.fission import divide_masks
from nt_core.topology.at_init import Grasp, PruneAtInit, Snip
from nt_core.topology.base import DeclaredTopology

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


def saliency(criterion: Snip | Grasp, values: NDArray[Any], gradients: NDArray[Any]) -> NDArray[Any]:
    """Score each element of a weight; the largest scores are kept.

    Args:
        criterion: of the score.
        values: of the dense weight.
        gradients: of the weight's shape: for SNIP ∂L/∂w; for GraSP H·g, the Hessian times the gradient g.

    Example:
        >>> weights, gradients = np.array([1.0, -2.0]), np.array([3.0, 2.0])
        >>> saliency(Snip(), weights, gradients), saliency(Grasp(), weights, gradients)
        (array([3., 4.]), array([ 3., -4.]))
    """
    scores: NDArray[Any] = values * gradients
    return np.abs(scores) if isinstance(criterion, Snip) else scores


def saliency_masks(
    topology: PruneAtInit, layout: Layout, values: Arrays, gradients: Arrays
) -> Mapping[str, Mask]:
    """Select the masks of pruning at initialisation, exactly the requested total, lowest positions on ties.

    Args:
        topology: gives sparsity, criterion and scope.
        layout: of the ensemble.
        values: full name → dense array, for each sparsifiable weight at least.
        gradients: full name → gradients for :func:`saliency`, for the same weights.

    Raises:
        TopologyError: a weight has no gradient, or a score is NaN.

    Warns:
        UserWarning: a weight is left without any connection, which the global scope permits.

    Example:
        >>> import nt_models
        >>> from nt_core import Single
        >>> layout = Single().layout(nt_models.mlp(inputs=3, hidden=(), classes=2))
        >>> ones = {"head1/classifier/linear1.weight": np.ones((2, 3))}
        >>> found = saliency_masks(PruneAtInit(sparsity=0.5), layout, ones, ones)
        >>> [mask.flat().tolist() for mask in found.values()]
        [[0, 1, 2]]
    """
    counts = topology.final_counts(layout)
    scores = {name: _scores(topology, name, values, gradients) for name in counts}
    if topology.scope == "layer":
        chosen = {name: _best(score, counts[name]) for name, score in scores.items()}
    else:
        chosen = _best_of_all(scores, sum(counts.values()))
    masks = {name: Mask.from_flat(values[name].shape, positions) for name, positions in chosen.items()}
    _warn_of_empty(topology, masks)
    return masks


def masks_of_parts(layout: Layout, masks: Mapping[str, Mask], seed: int) -> Iterator[tuple[str, Mask]]:
    """Return the masks of a layout's weights; a divided layout divides the single network's masks.

    Args:
        layout: of the model.
        masks: of :func:`saliency_masks`, on the single network's layout where ``layout.divided``.
        seed: keys the partition.
    """
    return divide_masks(layout, masks.items(), seed) if layout.divided else iter(masks.items())


def expect_prunable(topology: DeclaredTopology, examples: int) -> PruneAtInit:
    """Return the topology by which masks are to be chosen.

    Args:
        topology: of the model.
        examples: number of examples in the batch.

    Raises:
        TopologyError: the topology is not ``PruneAtInit``.
        DataError: the batch is empty.
    """
    if not isinstance(topology, PruneAtInit):
        raise TopologyError(
            f"topology: expected prune_at_init, found {topology.kind}; its masks are there already"
        )
    if not examples:
        raise DataError(
            "inputs: expected examples for the topology prune_at_init to choose masks by, found none"
        )
    return topology


def expect_chosen(topology: DeclaredTopology, layout: Layout, active: int) -> None:
    """Raise if a model is to be trained whose masks no data has decided yet.

    Args:
        topology: of the model.
        layout: of the model.
        active: number of the model's active connections.

    Raises:
        TopologyError: the masks are not selected yet; the message names the function to call.
    """
    if topology.examples_needed and active != (wanted := sum(topology.final_counts(layout).values())):
        raise TopologyError(
            f"topology {topology.kind}: expected {wanted} active connections, found "
            f"{active}: the masks come from data; call prune_at_init(model, inputs, labels) before training"
        )


def _scores(topology: PruneAtInit, name: str, values: Arrays, gradients: Arrays) -> NDArray[Any]:
    if gradients.get(name) is None:
        raise TopologyError(
            f"weight {name!r}: it has no gradient, but the topology prune_at_init reads it; the loss must "
            "depend on every member"
        )
    scores = saliency(topology.criterion, values[name], gradients[name]).reshape(-1)
    if np.isnan(scores).any():
        raise TopologyError(
            f"weight {name!r}: its {topology.criterion.kind} score is NaN at position "
            f"{int(np.isnan(scores).argmax())}; check the data, or give it more examples"
        )
    return scores


def _best(scores: NDArray[Any], count: int) -> NDArray[np.int64]:
    return top_k(scores, np.ones(scores.size, dtype=np.bool_), count)


def _best_of_all(scores: Arrays, count: int) -> dict[str, NDArray[np.int64]]:
    found = _best(np.concatenate([np.empty(0), *scores.values()]), count)
    ends = np.cumsum([0, *(score.size for score in scores.values())])
    first = np.searchsorted(found, ends)
    return {name: found[first[i] : first[i + 1]] - ends[i] for i, name in enumerate(scores)}


def _warn_of_empty(topology: PruneAtInit, masks: Mapping[str, Mask]) -> None:
    empty = [name for name, mask in masks.items() if not mask.count]
    if empty:
        listed = ", ".join(empty[:5]) + (", …" if len(empty) > 5 else "")
        warnings.warn(
            f"topology prune_at_init: {topology.criterion.kind} at sparsity {topology.sparsity:g} leaves "
            f"{len(empty)} of {len(masks)} weights without a connection ({listed}); they pass nothing on. "
            "Lower the sparsity, or use scope layer",
            stacklevel=3,
        )
