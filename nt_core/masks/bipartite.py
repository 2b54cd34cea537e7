"""Link prediction in a mask: scores of missing connections from the existing connections alone.

A mask is a bipartite graph between its rows (outputs u) and columns (inputs v). A missing connection (u, v)
is scored by the paths u–b–a–v of length 3 through inputs b of u and outputs a of v. The *internal* degree di
of an intermediate node counts its links to other intermediate nodes of the pair. Its *external* degree de
counts its links to all nodes but the intermediate ones, u and v. Both follow from common neighbours:
di = |N(b) ∩ N(v)| and 1 + de = d(b) − di for an input b of u, and alike for an output a of v.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Rule: TypeAlias = Literal["ch3_l3", "ch2_l3", "ch2_l3n", "l3"]
"""``ch3_l3``: Σ over paths 1 / √((1 + de_a)(1 + de_b)). ``ch2_l3``: Σ over paths √((1 + di_a)(1 + di_b) /
((1 + de_a)(1 + de_b))). ``ch2_l3n``: Σ over intermediate nodes (1 + di) / (1 + de). ``l3``: the number of
paths."""

RULES: tuple[Rule, ...] = get_args(Rule)

DENSE_FROM = 0.15
"""The density from which products of dense matrices are faster than products of sparse ones (measured)."""

Floats = NDArray[np.float64]


def link_scores(active: NDArray[np.bool_], rule: Rule) -> NDArray[np.float32]:
    """Score every missing connection (Muscoloni et al. 2018, CH2-L3; 2022, CH3-L3; Zhang et al. 2025, §3).

    Args:
        active: (outputs, inputs) bool.
        rule: see :data:`Rule`.

    Returns:
        (outputs, inputs) scores, above 0 where a path exists, 0 where none does or the connection exists.
        Sums are computed in double precision and rounded at the end, so that equal sums stay equal in any
        order.

    Example:
        >>> link_scores(np.array([[1, 1, 0], [0, 1, 1]], bool), "l3").tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    links = active.astype(np.float64)
    if rule == "l3":
        found = links @ links.T @ links
    elif rule == "ch2_l3n":
        inside, outside = _node_terms(links, _ratio)
        found = links @ inside + (links.T @ outside).T
    else:
        found = _over_paths(active, *_node_terms(links, _ROOTS[rule]))
    found[active] = 0
    return found.astype(np.float32)


def _node_terms(links: Floats, term: Callable[[Floats, Floats], Floats]) -> tuple[Floats, Floats]:
    """Return each intermediate node's term: (inputs b, inputs v), and (outputs a, outputs u).

    The term is 0 where b and v, or a and u, have no neighbour in common. Terms of linked pairs have no
    meaning.
    """
    found = []
    for one in (links.T, links):
        common = one @ one.T
        free = np.maximum(one.sum(axis=1)[:, None] - common, 1)
        found.append(np.where(common > 0, term(common, free), 0))
    return found[0], found[1]


def _ratio(internal: Floats, external: Floats) -> Floats:
    return np.asarray((1 + internal) / external)


def _inverse_root(_: Floats, external: Floats) -> Floats:
    return np.asarray(1 / np.sqrt(external))


def _root_ratio(internal: Floats, external: Floats) -> Floats:
    return np.sqrt(_ratio(internal, external))


_ROOTS = {"ch3_l3": _inverse_root, "ch2_l3": _root_ratio}


def _over_paths(active: NDArray[np.bool_], of_inputs: Floats, of_outputs: Floats) -> Floats:
    """Sum ``of_inputs[b, v]·of_outputs[a, u]`` over the paths u–b–a–v, for one output u after another."""
    many = active.size > 0 and active.mean() > DENSE_FROM
    links: Any = active.astype(np.float64) if many else sp.csr_array(active, dtype=np.float64)
    columns, found = links.T if many else links.T.tocsr(), np.zeros(active.shape)
    for u, row in enumerate(active):
        inputs = np.flatnonzero(row)
        if not inputs.size:
            continue
        chosen, weights = columns[inputs], of_outputs[:, u]
        if many:
            found[u] = np.einsum("bv,bv->v", of_inputs[inputs], (chosen * weights) @ links)
        else:
            found[u] = ((chosen @ sp.diags_array(weights)) @ links).multiply(of_inputs[inputs]).sum(axis=0)
    return found
