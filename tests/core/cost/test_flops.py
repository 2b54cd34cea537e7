from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nt_models
from nt_core.cost import Cost, cost
from nt_core.errors import AllocationError
from nt_core.graph import BlockGraph, GraphBuilder, Tokens
from nt_core.policies import AtRandom, Gradient, MagnitudeAndGradient
from nt_core.spec import PRESETS, EnsembleSpec
from nt_core.structure import Independent, MultiHead, Single, Structure
from nt_core.testing.models import language_model, perceptron
from nt_core.testing.strategies import block_graphs, structures
from nt_core.topology import ERK, Dense, Dynamic, Explicit, GradualPruning, Static, Uniform
from tests.core.work import calls_in, peak_bytes_in

WRN = nt_models.wide_resnet(depth=28, width=10, classes=100)
SPLIT = MultiHead(split=4, heads=3)


def figures(graph: BlockGraph = WRN, **choices: Any) -> Cost:
    return cost(EnsembleSpec(graph=graph, **choices))


@st.composite
def specs(draw: st.DrawFn) -> EnsembleSpec:
    graph = draw(block_graphs())
    sparsity = draw(st.sampled_from([0.0, 0.3, 0.8, 0.999999]))
    topology = draw(
        st.sampled_from([Dense(), *(kind(sparsity=sparsity) for kind in (Static, Dynamic, GradualPruning))])
    )
    return EnsembleSpec(graph=graph, structure=draw(structures(graph)), topology=topology)


# FLOPs.


@settings(max_examples=150)
@given(specs())
def test_figures_are_sums_over_layers_of_active_weights_times_positions(spec: EnsembleSpec) -> None:
    found, counts = cost(spec), spec.counts
    placed = spec.layout.sparsifiable
    assert [layer.name for layer in found.layers] == [p.name for p in placed]
    for layer, p in zip(found.layers, placed, strict=True):
        assert (layer.part, layer.shape, layer.size) == (p.label, p.weight.shape, p.weight.size)
        assert layer.active == counts[p.name]
        assert layer.density == layer.active / layer.size
        assert layer.flops == 2 * layer.active * p.positions
        assert layer.dense_flops == 2 * layer.size * p.positions
    assert found.flops_inference == sum(layer.flops for layer in found.layers)
    assert found.flops_dense == sum(layer.dense_flops for layer in found.layers)
    assert found.weights_total == sum(layer.size for layer in found.layers)
    assert found.weights_active == sum(counts.values())
    assert found.blocks_counted == len(spec.graph.counted)
    trainable = [p.weight.size for p in spec.layout.weights if p.weight.role != "running"]
    assert found.parameters_total == sum(trainable)
    assert found.parameters["kernels"] == found.weights_total


@settings(max_examples=100)
@given(specs())
def test_a_sparse_ensemble_costs_at_most_its_dense_execution(spec: EnsembleSpec) -> None:
    found = cost(spec)
    assert 0 <= found.flops_inference <= found.flops_dense
    assert 3 * found.flops_inference <= found.flops_training_step <= 3 * found.flops_dense
    if getattr(spec.topology, "sparsity", 0.0) == 0.0:
        assert found.flops_inference == found.flops_dense
        assert found.flops_training_step == 3 * found.flops_dense


@settings(max_examples=60)
@given(block_graphs(), st.integers(1, 4))
def test_the_single_dense_network_is_the_measure_of_all(graph: BlockGraph, members: int) -> None:
    ratios = figures(graph).relative_to_single_dense()
    if figures(graph).flops_inference:
        assert set(ratios.values()) == {1.0}
    many = figures(graph, structure=Independent(count=members))
    assert many.single_flops == figures(graph).flops_inference
    assert many.flops_inference == members * many.single_flops
    assert many.weights_total == members * many.single_weights


@settings(max_examples=60)
@given(block_graphs(), st.integers(1, 4), st.data())
def test_the_backbone_is_counted_once(graph: BlockGraph, heads: int, data: st.DataObject) -> None:
    split = data.draw(st.integers(0, len(graph.counted)))
    one, many = (figures(graph, structure=MultiHead(split=split, heads=m)) for m in (1, heads))
    below = sum(layer.flops for layer in many.layers if layer.part == "backbone")
    assert many.flops_inference == below + heads * (one.flops_inference - below)
    assert (many.split, one.flops_inference) == (split, many.single_flops)


def test_dense_wide_resnet_28_10_has_the_published_cost() -> None:
    found = figures()
    assert found.flops_inference == found.flops_dense == 10_486_772_736
    assert found.weights_total == found.weights_active == 36_518_832
    assert found.blocks_counted == 12
    assert found.flops_training_step == 3 * 10_486_772_736
    assert found.parameters_total == 36_536_884


@pytest.mark.parametrize(
    ("structure", "sparsity", "inference", "uniform"),
    [
        (Single(), 0.0, 1.0, 1.0),
        (Single(), 0.8, 0.3374, 0.2),
        (Single(), 0.9, 0.1663, 0.1),
        (SPLIT, 0.0, 2.3599, 2.3599),
        (SPLIT, 0.8, 0.683, 0.47198),
        (MultiHead(split=4, heads=5), 0.9, 0.502, 0.37198),
    ],
    ids=str,
)
def test_true_and_uniform_equivalent_figures_stand_side_by_side(
    structure: Structure, sparsity: float, inference: float, uniform: float
) -> None:
    ratios = figures(structure=structure, topology=Static(sparsity=sparsity)).relative_to_single_dense()
    digits = 3 if inference in (0.683, 0.502) else 4
    assert round(ratios["flops_inference"], digits) == inference
    assert ratios["flops_uniform_equivalent"] == pytest.approx(uniform, abs=2e-5)


def test_relative_weights_of_the_published_split() -> None:
    ratios = figures(structure=SPLIT, topology=Static(sparsity=0.8)).relative_to_single_dense()
    assert round(ratios["weights_total"], 4) == 2.9102
    assert ratios["weights_active"] == pytest.approx(0.2 * 2.9102, rel=1e-4)


def test_uniform_equivalent_is_true_under_uniform_allocation() -> None:
    ratios = figures(
        structure=SPLIT, topology=Static(sparsity=0.8, allocation=Uniform())
    ).relative_to_single_dense()
    assert ratios["flops_inference"] == pytest.approx(ratios["flops_uniform_equivalent"], rel=1e-5)


def test_known_counts_replace_the_expected_ones() -> None:
    spec = EnsembleSpec(graph=perceptron(), topology=GradualPruning(sparsity=0.5))
    counts = dict.fromkeys(spec.counts, 0)
    found = cost(spec, counts)
    assert (found.flops_inference, found.weights_active, found.density) == (0, 0, 0.0)
    assert found.flops_dense == cost(spec).flops_dense
    assert sum(layer.dense_flops for layer in found.layers) == found.flops_dense  # though none is active


# A training step.


@pytest.mark.parametrize("interval", [1, 50, 100, 1000])
def test_reading_the_dense_gradient_is_amortised_as_in_rigl(interval: int) -> None:
    found = figures(topology=Dynamic(sparsity=0.8, interval=interval))
    sparse, dense = found.flops_inference, found.flops_dense
    expected = (3 * sparse * interval + 2 * sparse + dense) / (interval + 1)
    assert found.flops_training_step == pytest.approx(expected, rel=1e-12)


def test_snfs_pays_for_the_dense_gradient_at_every_step() -> None:
    """RigL, appendix H: the forward pass and the activations' gradient are sparse, the weights' is dense."""
    spec = PRESETS["snfs"](nt_models.mlp(inputs=20, hidden=(30,), classes=10), sparsity=0.8)
    figures = cost(spec)
    assert figures.flops_training_step == 2 * figures.flops_inference + figures.flops_dense
    assert figures.flops_training_step > cost(PRESETS["rigl"](spec.graph, sparsity=0.8)).flops_training_step


def test_only_topologies_that_read_the_dense_gradient_pay_for_it() -> None:
    sparse = figures(topology=Static(sparsity=0.8)).flops_inference
    for topology, pays in (
        (Static(sparsity=0.8), False),
        (Dynamic(sparsity=0.8, grow=AtRandom()), False),
        (Dynamic(sparsity=0.8, grow=Gradient()), True),
        (Dynamic(sparsity=0.8, prune=MagnitudeAndGradient(), grow=AtRandom()), True),
    ):
        assert (figures(topology=topology).flops_training_step > 3 * sparse) is pays


@pytest.mark.parametrize(
    ("begin", "end"), [(0.0, 0.75), (0.5, 0.5), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.2, 0.9)]
)
def test_gradual_pruning_costs_the_mean_over_training(begin: float, end: float) -> None:
    topology = GradualPruning(sparsity=0.8, begin=begin, end=end)
    found = figures(topology=topology)
    dense, sparse = found.flops_dense, found.flops_inference
    assert 3 * sparse <= found.flops_training_step <= 3 * dense
    times = [(i + 0.5) / 20_000 for i in range(20_000)]
    reached = [
        1.0 if t >= end else 0.0 if t <= begin else 1 - (1 - (t - begin) / (end - begin)) ** 3 for t in times
    ]
    mean = sum(dense - (dense - sparse) * r for r in reached) / len(times)
    assert found.flops_training_step == pytest.approx(3 * mean, rel=1e-4)


# Attention.


def test_products_among_activations_stand_apart() -> None:
    graph = language_model()
    one = figures(graph)
    length, features, blocks = 6, 16, 2
    assert one.flops_products == 2 * blocks * 2 * length * length * features
    assert one.flops_inference == sum(layer.flops for layer in one.layers)
    sparse = figures(graph, structure=MultiHead(split=1, heads=3), topology=Static(sparsity=0.8))
    assert sparse.flops_products == one.flops_products // 2 * (1 + 3)  # no mask saves them
    assert figures(perceptron()).flops_products == 0


# As JSON.


def test_figures_can_be_written_as_json() -> None:
    found = figures(structure=SPLIT, topology=Static(sparsity=0.8)).to_dict()
    again = json.loads(json.dumps(found))
    assert again["blocks_counted"] == 12
    assert set(again["weights"]) == {"total", "active", "density"}
    assert {"inference", "training_step"} <= again["flops"].keys()
    assert {
        "weights_total",
        "weights_active",
        "flops_inference",
        "flops_uniform_equivalent",
    } <= again["relative_to_single_dense"].keys()
    for layer in again["layers"]:
        assert {"name", "part", "shape", "size", "active", "density", "flops"} <= layer.keys()
    assert {layer["part"] for layer in again["layers"]} == {"backbone", "head 1", "head 2", "head 3"}


def test_a_network_without_kernels_costs_nothing() -> None:
    net = GraphBuilder(Tokens(length=2, vocabulary=3))
    with net.classifier() as b:
        b.out = b.embedding(b.inp, 3, 3)
    found = figures(net.build())
    assert (found.flops_inference, found.weights_total, found.parameters_total) == (0, 0, 9)
    assert found.density == 1.0
    assert all(math.isfinite(ratio) for ratio in found.relative_to_single_dense().values())


# Large specs are cheap.


def billion_weights() -> BlockGraph:
    """A transformer of 24 blocks, as large language models are built."""
    width, inner, vocabulary = 2048, 5632, 32_000
    net = GraphBuilder(Tokens(length=1024, vocabulary=vocabulary))
    with net.stem() as b:
        b.out = b.embedding(b.inp, vocabulary, width)
    for number in range(1, 25):
        with net.block(f"block{number}") as b:
            x = b.rms_norm(b.inp)
            q, k, v = (b.linear(x, width, bias=False) for _ in range(3))
            h = b.add(b.inp, b.linear(b.attention(q, k, v, heads=16, causal=True), width, bias=False))
            x = b.rms_norm(h)
            gate = b.activation(b.linear(x, inner, bias=False), "silu")
            up = b.multiply(gate, b.linear(x, inner, bias=False))
            b.out = b.add(h, b.linear(up, width, bias=False))
    with net.classifier() as b:
        b.out = b.linear(b.rms_norm(b.inp), vocabulary, bias=False)
    return net.build()


def described() -> Cost:
    topology = Dynamic(sparsity=0.5, allocation=ERK(dense=("@attention",)))
    return cost(
        EnsembleSpec(graph=billion_weights(), structure=MultiHead(split=8, heads=3), topology=topology)
    )


def test_describing_a_billion_weights_takes_some_hundred_calls_for_each() -> None:
    described()
    found, calls = calls_in(described)
    assert found.single_weights > 10**9
    assert found.weights_total > 2 * 10**9
    assert found.weights_active == round(0.5 * found.weights_total)
    assert calls < 500 * len(found.layers)


def test_describing_a_billion_weights_makes_no_array_of_that_size() -> None:
    described()  # what is made once for all specs is not theirs
    found, peak = peak_bytes_in(described)
    assert found.weights_total > 2 * 10**9
    assert peak < 10 * 2**20


def test_one_layer_of_a_billion_weights_is_as_cheap() -> None:
    graph = nt_models.mlp(inputs=32_768, hidden=(32_768,), classes=10)
    for rule in (ERK(), Uniform(), Explicit(densities={"*hidden1*": 0.5})):
        tracemalloc.start()
        found = figures(graph, structure=Independent(count=2), topology=Static(sparsity=0.5, allocation=rule))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.weights_active == round(0.5 * found.weights_total)
        assert peak < 2**20
    with pytest.raises(AllocationError):
        figures(graph, topology=Static(sparsity=0.9, allocation=ERK(dense=("*hidden1*",))))
