from __future__ import annotations

import hashlib
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import nt_models
from nt_core.graph import Features, GraphBuilder, Weight
from nt_core.graph.weights import kernel
from nt_core.random import Random
from nt_core.structure import Independent, Layout, MultiHead, Single
from nt_core.testing.strategies import block_graphs, structures
from nt_core.topology import (
    ERK,
    AnyTopology,
    Dense,
    Dynamic,
    GradualPruning,
    Static,
    Uniform,
    draw,
    initial_masks,
    initial_values,
)

SPARSE = Dynamic(sparsity=0.7)


def three_heads() -> Layout:
    return MultiHead(split=1, heads=3).layout(nt_models.mlp(inputs=20, hidden=(16, 12), classes=5, norm=True))


@st.composite
def layouts(draw_: st.DrawFn) -> Layout:
    graph = draw_(block_graphs())
    return draw_(structures(graph)).layout(graph)


@settings(max_examples=80)
@given(layouts(), st.integers(0, 2**40))
def test_every_array_is_drawn_once_in_its_shape(layout: Layout, seed: int) -> None:
    values = list(initial_values(layout, seed))
    assert [name for name, _ in values] == [placed.name for placed in layout.weights]
    for placed, (_, value) in zip(layout.weights, values, strict=True):
        assert value.shape == placed.weight.shape
        assert value.dtype == np.float32
        assert np.isfinite(value).all()
        kind, parameter = placed.weight.init
        if kind == "constant":
            assert (value == parameter).all()
        elif kind == "uniform":
            assert (abs(value) <= np.float32(parameter)).all()


@settings(max_examples=80)
@given(
    layouts(),
    st.integers(0, 2**40),
    st.sampled_from([0.0, 0.3, 0.9, 0.999999]),
    st.sampled_from([Static, Dynamic]),
    st.sampled_from([Uniform(), ERK()]),
)
def test_masks_have_exactly_their_counts(
    layout: Layout, seed: int, sparsity: float, kind: Any, rule: Any
) -> None:
    topology = kind(sparsity=sparsity, allocation=rule)
    masks = dict(initial_masks(topology, layout, seed))
    assert {name: mask.count for name, mask in masks.items()} == topology.final_counts(layout)
    assert {name: mask.shape for name, mask in masks.items()} == {
        placed.name: placed.weight.shape for placed in layout.sparsifiable
    }


def test_a_dense_topology_has_no_masks_and_gradual_pruning_starts_full() -> None:
    assert list(initial_masks(Dense(), three_heads(), 0)) == []
    masks = dict(initial_masks(GradualPruning(sparsity=0.9), three_heads(), 0))
    assert all(mask.count == mask.size for mask in masks.values())
    assert len(masks) == len(three_heads().sparsifiable)


def test_heads_start_from_different_weights_and_different_masks() -> None:
    layout = three_heads()
    values, masks = dict(initial_values(layout, 0)), dict(initial_masks(SPARSE, layout, 0))
    for own in ("hidden2/linear1.weight", "classifier/linear1.weight"):
        heads = [f"head{m}/{own}" for m in (1, 2, 3)]
        assert len({values[name].tobytes() for name in heads}) == 3
        assert len({masks[name].digest() for name in heads}) == 3
        drawn = np.stack([values[name].reshape(-1) for name in heads])
        assert abs(np.corrcoef(drawn) - np.eye(3)).max() < 0.4


def test_weights_and_masks_are_drawn_apart() -> None:
    """A mask that kept the large initial weights would be one-shot pruning, not a random mask."""
    layout = Single().layout(nt_models.mlp(inputs=100, hidden=(100,), classes=2))
    name = "head1/hidden1/linear1.weight"
    value = dict(initial_values(layout, 0))[name]
    kept = dict(initial_masks(Static(sparsity=0.5, allocation=Uniform()), layout, 0))[name].dense()
    for statistic in (value, abs(value)):
        assert abs(np.corrcoef(statistic.reshape(-1), kept.reshape(-1))[0, 1]) < 0.05


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    layout = three_heads()
    assert fingerprint(layout, 5) == fingerprint(layout, 5)
    for seed in (6, 5 + 2**32):
        values, others = dict(initial_values(layout, 5)), dict(initial_values(layout, seed))
        masks, other_masks = (dict(initial_masks(SPARSE, layout, s)) for s in (5, seed))
        for placed in layout.sparsifiable:
            assert (values[placed.name] != others[placed.name]).any()
            assert masks[placed.name] != other_masks[placed.name] or masks[placed.name].count < 2


def as_first_released() -> Layout:
    """A network written here, so that only the core's own bits are compared."""
    net = GraphBuilder(Features(count=20))
    with net.block("a") as b:
        b.out = b.relu(b.norm(b.linear(b.inp, 16)))
    with net.classifier() as b:
        b.out = b.linear(b.inp, 5)
    return MultiHead(split=1, heads=2).layout(net.build())


def fingerprint(layout: Layout, seed: int, topology: AnyTopology = SPARSE) -> str:
    content = hashlib.sha256()
    for name, value in initial_values(layout, seed):
        content.update(name.encode() + value.tobytes())
    for name, mask in initial_masks(topology, layout, seed):
        content.update((name + mask.digest()).encode())
    return content.hexdigest()[:16]


def masks_only(layout: Layout, seed: int) -> str:
    content = hashlib.sha256()
    for name, mask in initial_masks(SPARSE, layout, seed):
        content.update((name + mask.digest()).encode())
    return content.hexdigest()[:16]


@pytest.mark.parametrize(("seed", "golden"), [(0, "3d9f274c0447351b"), (1, "431b102f6846294e")])
def test_masks_are_the_same_bits_on_every_machine(seed: int, golden: str) -> None:
    assert masks_only(as_first_released(), seed) == golden


@pytest.mark.parametrize(("seed", "golden"), [(0, "b84f3c8f1a5b03c0"), (1, "55c3850d9eb38349")])
def test_uniform_values_are_the_same_bits_on_every_machine(seed: int, golden: str) -> None:
    assert fingerprint(as_first_released(), seed) == golden


def test_what_is_drawn_for_a_weight_depends_on_its_name_alone() -> None:
    """Not on the other weights, the order, or the number of members."""
    graph = nt_models.wide_resnet(depth=10, width=1, classes=5, size=8)
    structures_ = (Independent(count=2), Independent(count=3), Single())
    first, *others = [dict(initial_values(each.layout(graph), 3)) for each in structures_]
    for other in others:
        shared = first.keys() & other.keys()
        assert len(shared) >= len(first) / 2
        for name in shared:
            np.testing.assert_array_equal(first[name], other[name])


def weight(init: Any, size: int = 200_000) -> Weight:
    return Weight(name="weight", shape=(size,), role="kernel", init=init)


@pytest.mark.parametrize("seed", [0, 1])
def test_distributions_have_their_spread_and_bounds(seed: int) -> None:
    stream, everything = Random(seed).at(weight="w", purpose="initial"), slice(0, 200_000, 1)
    normal = draw(weight(("normal", 0.5)), stream, everything)
    assert abs(normal.mean()) < 5 * 0.5 / math.sqrt(200_000)
    assert normal.std() == pytest.approx(0.5, rel=0.01)
    assert abs((abs(normal) < 0.5).mean() - 0.6827) < 0.005
    uniform = draw(weight(("uniform", 0.25)), stream, everything)
    assert abs(uniform.mean()) < 5 * 0.25 / math.sqrt(3 * 200_000)
    assert uniform.std() == pytest.approx(0.25 / math.sqrt(3), rel=0.01)
    assert 0.2499 < abs(uniform).max() <= 0.25
    assert (draw(weight(("constant", 3.0)), stream, everything) == 3.0).all()


@pytest.mark.parametrize(
    ("init", "distribution", "parameter"),
    [
        ("he_normal", "normal", math.sqrt(2 / (6 * 3 * 5))),
        ("lecun_uniform", "uniform", 1 / math.sqrt(6 * 3 * 5)),
        ("normal_002", "normal", 0.02),
    ],
)
def test_kernels_scale_with_their_fan_in(init: Any, distribution: str, parameter: float) -> None:
    assert kernel((8, 6, 3, 5), init).init == (distribution, pytest.approx(parameter))


@given(st.lists(st.integers(0, 999), max_size=20), st.integers(0, 100))
def test_any_positions_can_be_drawn_alone(positions: list[int], seed: int) -> None:
    """As a grown weight that starts from the initial distribution is."""
    stream = Random(seed).at(weight="w", purpose="initial")
    for init in (("normal", 0.5), ("uniform", 0.5), ("constant", 2.0)):
        whole = draw(weight(init, 1000), stream, slice(0, 1000, 1))
        chosen: NDArray[np.int64] = np.array(positions, dtype=np.int64)
        np.testing.assert_array_equal(draw(weight(init, 1000), stream, chosen), whole[chosen])


def test_biases_and_running_statistics_start_where_they_should() -> None:
    values = dict(initial_values(three_heads(), 0))
    starts = {"bias": 0, "running_mean": 0, "running_var": 1}
    for name, value in values.items():
        if (own := name.rpartition(".")[2]) in starts:
            assert (value == starts[own]).all()
        if name.endswith("norm1.weight"):
            assert (value == 1).all()


def test_masks_spread_evenly_over_positions() -> None:
    layout = Single().layout(nt_models.mlp(inputs=50, hidden=(40,), classes=2))
    name, topology = "head1/hidden1/linear1.weight", Static(sparsity=0.8, allocation=Uniform())
    hits = sum(dict(initial_masks(topology, layout, seed))[name].dense().astype(int) for seed in range(200))
    share = np.asarray(hits) / 200
    assert share.mean() == pytest.approx(0.2)
    assert share.std() == pytest.approx(math.sqrt(0.2 * 0.8 / 200), rel=0.1)


def test_arrays_are_drawn_one_after_another() -> None:
    layout = Independent(count=8).layout(nt_models.mlp(inputs=500, hidden=(500,), classes=2))
    tracemalloc.start()
    for _ in initial_values(layout, 0):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 8 * 250_000 / 2  # at most half of all members in float64
