"""Scores of missing links, against networks walked through node by node."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from nt_core.masks import Moment, Rule, bipartite, link_scores
from nt_core.masks.bipartite import RULES
from nt_core.policies import CannistraciHebb, Layer, Magnitude, swap
from nt_core.random import Random

Flags = NDArray[np.bool_]
masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 7)))
MOMENT = Moment(step=4, random=Random(2))


def layer_of(active: Flags, weights: NDArray[np.float64] | None = None) -> Layer:
    values = np.zeros(active.size) if weights is None else weights.reshape(-1)
    return Layer(name="w", weights=values, gradients=None, active=active.reshape(-1), shape=active.shape)


def walked(active: Flags, rule: Rule) -> NDArray[np.float64]:
    """Score each missing link by the definitions: every path, every degree, one by one."""
    graph, scores = nx.Graph(), np.zeros(active.shape)
    graph.add_nodes_from(
        [*(("out", u) for u in range(len(active))), *(("in", v) for v in range(len(active.T)))]
    )
    graph.add_edges_from((("out", u), ("in", v)) for u, v in np.argwhere(active))
    for u, v in np.argwhere(~active):
        ends = ("out", u), ("in", v)
        paths = [(b, a) for b in graph[ends[0]] for a in graph[ends[1]] if graph.has_edge(a, b)]
        between = {node for path in paths for node in path}
        inner = {z: 1 + sum(n in between for n in graph[z]) for z in between}
        outer = {z: 1 + sum(n not in between and n not in ends for n in graph[z]) for z in between}
        if rule == "l3":
            scores[u, v] = len(paths)
        elif rule == "ch3_l3":
            scores[u, v] = sum(1 / math.sqrt(outer[a] * outer[b]) for b, a in paths)
        elif rule == "ch2_l3":
            scores[u, v] = sum(math.sqrt(inner[a] * inner[b] / (outer[a] * outer[b])) for b, a in paths)
        else:
            scores[u, v] = sum(inner[z] / outer[z] for z in between)
    return scores


@pytest.mark.parametrize("dense_from", [0.0, 1.0], ids=["dense", "sparse"])
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40)
@given(active=masks)
def test_links_are_scored_as_the_papers_define(rule: Rule, dense_from: float, active: Flags) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bipartite, "DENSE_FROM", dense_from)
        np.testing.assert_allclose(link_scores(active, rule), walked(active, rule), rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40)
@given(active=masks, seed=st.integers(0, 99))
def test_scores_follow_the_network_not_the_order_of_its_nodes(rule: Rule, active: Flags, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = (rng.permutation(size) for size in active.shape)
    found = link_scores(active, rule)
    np.testing.assert_allclose(
        link_scores(active[rows][:, columns], rule), found[rows][:, columns], rtol=1e-6
    )
    np.testing.assert_allclose(link_scores(active.T, rule), found.T, rtol=1e-6)


def test_growth_sees_the_mask_after_the_pruning_and_no_gradient() -> None:
    differs = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        active = rng.random((5, 6)) < 0.5
        change = swap(Magnitude(), CannistraciHebb())(
            layer_of(active, active * rng.random((5, 6))), 3, MOMENT
        )
        left = active.copy().reshape(-1)
        left[change.pruned] = False
        before, after = (
            np.where(active, 0, link_scores(mask.reshape(5, 6), "ch3_l3")).reshape(-1)
            for mask in (active, left)
        )
        assert after[change.grown].min() >= np.delete(after, change.grown).max()
        differs += set(change.grown) != set(np.argsort(-before, kind="stable")[:3])
    assert differs


@pytest.mark.parametrize("soft", [False, True])
def test_positions_that_no_path_reaches_come_last_and_in_random_order(soft: bool) -> None:
    active = np.zeros((6, 8), bool)
    active[:3, :3] = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 1]])
    active[5, 7] = True
    criterion = CannistraciHebb(rule="ch2_l3n", soft=soft)
    draws = [Moment(step=step, random=Random(0)).draws("w", "grow") for step in (1, 2)]
    scores = [criterion.scorer(layer_of(active), one)(slice(0, 48, 1)) for one in draws]
    reached = link_scores(active, "ch2_l3n").reshape(-1) > 0
    assert reached.sum() == 2
    for found in scores:
        assert found[reached].min() > found[~reached].max()
    assert (np.argsort(scores[0][~reached]) != np.argsort(scores[1][~reached])).any()


def test_soft_growth_samples_in_proportion_to_the_score() -> None:
    active = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1]], bool)
    chances = link_scores(active, "l3").reshape(-1)
    chances = chances / chances.sum()
    criterion, seen, draws = CannistraciHebb(rule="l3", soft=True), np.zeros(16), 1000
    for step in range(draws):
        score = criterion.scorer(layer_of(active), Moment(step=step, random=Random(1)).draws("w", "grow"))
        seen[score(slice(0, 16, 1)).argmax()] += 1
    assert (abs(seen / draws - chances) <= 4.5 * np.sqrt(chances * (1 - chances) / draws)).all()


def test_a_convolution_is_read_as_outputs_by_fan_in() -> None:
    active = np.random.default_rng(0).random((4, 3, 2, 2)) < 0.5
    score = CannistraciHebb(rule="l3").scorer(layer_of(active), MOMENT.draws("w", "grow"))(slice(0, 48, 1))
    expected = link_scores(active.reshape(4, 12), "l3").reshape(-1)
    np.testing.assert_array_equal(np.maximum(score, 0), expected)
