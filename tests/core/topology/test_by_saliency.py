"""Pruning at initialisation: which masks a batch's gradients choose."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nt_models
from nt_core import (
    AllocationError,
    DataError,
    EnsembleSpec,
    Grasp,
    Independent,
    MultiHead,
    OneRun,
    PruneAtInit,
    Single,
    Snip,
    SpecError,
    TopologyError,
    initial_masks,
)
from nt_core.cost import cost
from nt_core.testing import Blobs
from nt_core.testing.saliency import gradients_at, reference_gradients, saliency_case
from nt_core.topology import expect_chosen, saliency_masks
from nt_core.training import first_examples

GRAPH = nt_models.mlp(inputs=6, hidden=(9, 7), classes=3)
BOTH = pytest.mark.parametrize("criterion", [Snip(), Grasp()], ids=lambda each: each.kind)


def arrays(layout, seed, *, ties=False):
    draw = np.random.default_rng(seed)
    shapes = {placed.name: placed.weight.shape for placed in layout.sparsifiable}
    if ties:
        return {name: draw.integers(-2, 3, shape).astype(float) for name, shape in shapes.items()}
    return {name: draw.normal(size=shape) for name, shape in shapes.items()}


def choose(topology, layout, values, gradients):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saliency_masks(topology, layout, values, gradients)


@given(
    sparsity=st.floats(0, 0.95),
    scope=st.sampled_from(["layer", "global"]),
    criterion=st.sampled_from([Snip(), Grasp()]),
    structure=st.sampled_from([Single(), Independent(count=2), MultiHead(split=1, heads=3)]),
    ties=st.booleans(),
    seed=st.integers(0, 99),
)
def test_exactly_the_requested_total_of_the_highest_scores(sparsity, scope, criterion, structure, ties, seed):
    layout = structure.layout(GRAPH)
    topology = PruneAtInit(sparsity=sparsity, criterion=criterion, scope=scope)
    values, gradients = arrays(layout, seed, ties=ties), arrays(layout, seed + 100, ties=ties)
    masks = choose(topology, layout, values, gradients)
    counts = topology.final_counts(layout)
    assert list(masks) == list(counts)
    size = sum(mask.size for mask in masks.values())
    assert sum(mask.count for mask in masks.values()) == round((1 - sparsity) * size)
    if scope == "layer":
        assert {name: mask.count for name, mask in masks.items()} == counts
    together = [list(masks)] if scope == "global" else [[name] for name in masks]
    for names in together:
        product = np.concatenate([(values[n] * gradients[n]).reshape(-1) for n in names])
        scores = np.abs(product) if criterion.kind == "snip" else product
        active = np.concatenate([masks[n].dense().reshape(-1) for n in names])
        best = np.argsort(-scores, kind="stable")[: active.sum()]  # ties: the lowest position first
        assert set(best) == set(np.flatnonzero(active))


def test_snip_keeps_what_the_loss_depends_on_whatever_its_sign():
    layout = Single().layout(nt_models.mlp(inputs=4, hidden=(), classes=1))
    name = "head1/classifier/linear1.weight"
    values, gradients = {name: np.array([[1.0, -3, 2, 9]])}, {name: np.array([[-5.0, 1, -0.1, 0]])}
    found = saliency_masks(PruneAtInit(sparsity=0.5), layout, values, gradients)
    assert found[name].flat().tolist() == [0, 1]


def test_grasp_prunes_the_highest_scores_and_not_the_highest_magnitudes():
    """The paper's score is −w·(H·g), and the highest go; not |w·(H·g)|, nor the lowest."""
    layout = Single().layout(nt_models.mlp(inputs=4, hidden=(), classes=1))
    name = "head1/classifier/linear1.weight"
    values, products = {name: np.ones((1, 4))}, {name: np.array([[-9.0, 0.1, 2, -0.1]])}
    found = saliency_masks(PruneAtInit(sparsity=0.5, criterion=Grasp()), layout, values, products)
    assert found[name].flat().tolist() == [1, 2]


def test_what_grasp_keeps_carries_the_gradient():
    """Shrinking a weight changes the squared norm of the gradient by −2·w·(H·g), to first order."""
    case = saliency_case("mlp", Grasp())
    products = reference_gradients(case)
    name = next(iter(products))

    def norm(values):
        return sum((each**2).sum() for each in gradients_at(case, values).values())

    scores = case.values[name] * products[name]
    for at in (np.unravel_index(pick(scores), scores.shape) for pick in (np.argmin, np.argmax)):
        values = case.values | {name: case.values[name].copy()}
        values[name][at] *= 1 - 1e-5
        change = norm(values) - norm(case.values)
        assert change == pytest.approx(-2e-5 * scores[at], rel=1e-2)


def test_a_layer_that_is_emptied_is_named():
    layout = Single().layout(GRAPH)
    values, gradients = arrays(layout, 0), arrays(layout, 1)
    name = "head1/hidden2/linear1.weight"
    gradients[name] *= 1e-9
    with pytest.warns(
        UserWarning, match=f"leaves 1 of 3 weights without a connection .{name}.; .* scope layer"
    ):
        masks = saliency_masks(PruneAtInit(sparsity=0.6), layout, values, gradients)
    assert masks[name].count == 0


@BOTH
def test_masks_start_full_until_data_has_chosen(criterion):
    spec = EnsembleSpec(graph=GRAPH, topology=PruneAtInit(sparsity=0.6, criterion=criterion))
    masks = dict(initial_masks(spec.topology, spec.layout, 0))
    assert all(mask.count == mask.size for mask in masks.values())
    with pytest.raises(
        TopologyError, match=r"expected 55 active connections, found 138: .* call prune_at_init"
    ):
        expect_chosen(spec.topology, spec.layout, sum(mask.count for mask in masks.values()))
    expect_chosen(spec.topology, spec.layout, 55)
    figures = cost(spec)
    assert figures.flops_training_step == 3 * figures.flops_inference


def test_the_batch_is_the_first_of_the_training_data():
    inputs, labels = first_examples(Blobs(), 7)
    (first, truth), *_ = Blobs().epoch(1, 7)
    np.testing.assert_array_equal(inputs, first)
    np.testing.assert_array_equal(labels, truth)
    with pytest.raises(DataError, match="expected examples for the topology prune_at_init"):
        first_examples(Blobs(0), 7)


@BOTH
def test_gradients_that_are_not_there_or_not_numbers_are_errors(criterion):
    layout = Single().layout(GRAPH)
    topology = PruneAtInit(sparsity=0.5, criterion=criterion)
    values, gradients = arrays(layout, 0), arrays(layout, 1)
    name = "head1/hidden1/linear1.weight"
    gradients[name][0, 3] = np.nan
    with pytest.raises(
        TopologyError, match=rf"weight '{name}': its {criterion.kind} score is NaN at position 3"
    ):
        saliency_masks(topology, layout, values, gradients)
    del gradients[name]
    with pytest.raises(TopologyError, match=rf"weight '{name}': it has no gradient"):
        saliency_masks(topology, layout, values, gradients)


def test_bad_declarations_are_errors():
    with pytest.raises(SpecError, match=r"topology.criterion.kind: no kind 'snap'; did you mean 'snip'"):
        EnsembleSpec(graph=GRAPH, topology={"kind": "prune_at_init", "sparsity": 0.5, "criterion": "snap"})
    with pytest.raises(SpecError, match="temperature"):
        Grasp(temperature=0)
    with pytest.raises(SpecError, match="examples"):
        PruneAtInit(sparsity=0.5, examples=0)
    topology = PruneAtInit(sparsity=0.9, scope="layer", allocation={"kind": "erk", "dense": ["@first"]})
    with pytest.raises(AllocationError, match="choose a sparsity from"):
        EnsembleSpec(graph=GRAPH, topology=topology)
    global_ = PruneAtInit(sparsity=0.5)
    with pytest.raises(SpecError, match=r"structure.only: expected topology.scope layer"):
        EnsembleSpec(graph=GRAPH, structure=Independent(count=2, only=(1,)), topology=global_)
    with pytest.raises(SpecError, match=r"plan.at_once: expected topology.scope layer"):
        EnsembleSpec(graph=GRAPH, structure=Independent(count=2), topology=global_, plan=OneRun(at_once=1))
