from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import nt_models
from nt_core.errors import AllocationError, SpecError
from nt_core.graph import BlockGraph, Features, GraphBuilder, Tokens
from nt_core.graph.weights import kernel
from nt_core.masks import hypergeometric
from nt_core.structure import Independent, Layout, MultiHead, PlacedWeight, Single
from nt_core.testing.models import language_model
from nt_core.testing.strategies import block_graphs, structures
from nt_core.topology import (
    ER,
    ERK,
    ERKPlus,
    Explicit,
    RandomGlobal,
    Static,
    Uniform,
    UniformPlus,
    allocate,
    initial_masks,
)
from nt_core.topology.allocation import GROUPS, Allocation, dense_names
from tests.core.work import calls_in, peak_bytes_in

PLAIN = (Uniform(), ER(), ERK())
sparsities = st.one_of(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.0, 5e-324, 1e-9, 0.5, 0.9, 0.99, 0.999999, math.nextafter(1, 0)]),
)


@st.composite
def wide_perceptrons(draw: st.DrawFn) -> BlockGraph:
    """Layers of very different sizes, of one element among them; nothing of their size is ever made."""
    widths = st.one_of(st.integers(1, 5), st.sampled_from([1, 1000, 30_000]))
    sizes = draw(st.lists(widths, max_size=5))
    return nt_models.mlp(inputs=draw(widths), hidden=tuple(sizes), classes=draw(widths))


GRAPHS = st.one_of(block_graphs(), wide_perceptrons())


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    graph = draw(GRAPHS)
    return draw(structures(graph)).layout(graph)


@st.composite
def rules(draw: st.DrawFn, layout: Layout) -> Allocation:
    names = [placed.name for placed in layout.sparsifiable]
    some = st.lists(st.sampled_from([*names, *GROUPS, "*"]), max_size=2, unique=True).map(tuple)
    share = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.2, 1.0]))
    budget = draw(st.sampled_from(["inside", "outside"]))
    kind = draw(st.sampled_from([Uniform, UniformPlus, ER, ERK, ERKPlus, Explicit, RandomGlobal]))
    if kind in (UniformPlus, ERKPlus):
        if draw(st.booleans()):
            return kind(last_density=draw(share), dense_budget=budget)
        return kind(last_density=draw(share), dense=draw(some), dense_budget=budget)
    if kind is Explicit:
        densities = draw(st.dictionaries(st.sampled_from([*names, "*classifier*"]), share, max_size=3))
        return Explicit(densities=densities, dense=draw(some), dense_budget=budget)
    return kind(dense=draw(some), dense_budget=budget)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Layout, Allocation, float]:
    layout = draw(layouts())
    return layout, draw(rules(layout)), draw(sparsities)


def shared(layout: Layout, rule: Allocation) -> list[PlacedWeight]:
    """The weights among which the budget is divided."""
    outside = dense_names(rule.dense, layout) if rule.dense_budget == "outside" else frozenset()
    return [placed for placed in layout.sparsifiable if placed.name not in outside]


def size(placed: Sequence[PlacedWeight]) -> int:
    return sum(each.weight.size for each in placed)


def exact_shares(propensities: Sequence[Fraction], sizes: Sequence[int], budget: int) -> list[Fraction]:
    """Cap, refill, repeat: the textbook loop, in exact arithmetic."""
    full: set[int] = set()
    while True:
        free = [i for i in range(len(sizes)) if i not in full]
        rest = budget - sum(sizes[i] for i in full)
        slope = sum((propensities[i] * sizes[i] for i in free), Fraction(0))
        epsilon = rest / slope if free else Fraction(0)
        over = {i for i in free if epsilon * propensities[i] > 1}
        if not over:
            shares = [epsilon * p * n for p, n in zip(propensities, sizes, strict=True)]
            return [Fraction(n) if i in full else shares[i] for i, n in enumerate(sizes)]
        full |= over


PROPENSITIES: Mapping[type[Allocation], Any] = {
    Uniform: lambda shape: Fraction(1),
    ER: lambda shape: Fraction(shape[0] + shape[1], shape[0] * shape[1]),
    ERK: lambda shape: Fraction(sum(shape), math.prod(shape)),
}


# Totals and bounds.


@settings(max_examples=500)
@given(problems())
def test_counts_add_up_exactly_within_bounds_or_the_feasible_range_is_stated(problem: Any) -> None:
    layout, rule, sparsity = problem
    among = shared(layout, rule)
    try:
        counts = allocate(layout, rule, sparsity)
    except AllocationError as error:
        assert_feasible_range(layout, rule, error)
        return
    assert list(counts) == [placed.name for placed in layout.sparsifiable]
    assert sum(counts[placed.name] for placed in among) == round((1 - sparsity) * size(among))
    dense = dense_names(rule.dense, layout)
    for placed in layout.sparsifiable:
        assert type(counts[placed.name]) is int
        assert 0 <= counts[placed.name] <= placed.weight.size
        if placed.name in dense:
            assert counts[placed.name] == placed.weight.size


def assert_feasible_range(layout: Layout, rule: Allocation, error: AllocationError) -> None:
    found = re.search(r"choose a sparsity from (\S+) to (\S+)$", str(error))
    assert found, error
    low, high = (float(text) for text in found.groups())
    assert 0 <= low <= high < 1
    for sparsity in (low, high, (low + high) / 2):
        allocate(layout, rule, sparsity)


@settings(max_examples=200)
@given(layouts(), st.sampled_from(PLAIN), sparsities)
def test_without_forced_layers_every_sparsity_is_feasible(
    layout: Layout, rule: Allocation, sparsity: float
) -> None:
    assert sum(allocate(layout, rule, sparsity).values()) == round((1 - sparsity) * size(layout.sparsifiable))


@settings(max_examples=100)
@given(problems(), st.integers(0, 2**32))
def test_published_bug_of_counts_that_hold_only_on_average_cannot_occur(problem: Any, seed: int) -> None:
    """``rand < density`` gives another count for each seed; a mask here has its count exactly."""
    layout, rule, sparsity = problem
    assume(size(layout.sparsifiable) < 10**5)
    try:
        counts = allocate(layout, rule, sparsity)
    except AllocationError:
        return
    masks = dict(initial_masks(Static(sparsity=sparsity, allocation=rule), layout, seed))
    assert {name: mask.count for name, mask in masks.items()} == counts


@settings(max_examples=100)
@given(problems())
def test_density_one_gives_all(problem: Any) -> None:
    layout, rule, _ = problem
    assume(not isinstance(rule, ERKPlus | Explicit))
    assert allocate(layout, rule, 0.0) == {p.name: p.weight.size for p in layout.sparsifiable}


@given(sparsities, st.sampled_from(PLAIN), st.integers(1, 6), st.booleans())
def test_layers_of_one_element(sparsity: float, rule: Allocation, depth: int, beside_large: bool) -> None:
    hidden = (1,) * depth + (1000,) * beside_large
    layout = Single().layout(nt_models.mlp(inputs=1, hidden=hidden, classes=1))
    counts = allocate(layout, rule, sparsity)
    assert sum(counts.values()) == round((1 - sparsity) * size(layout.sparsifiable))
    ones = [counts[p.name] for p in layout.sparsifiable if p.weight.size == 1]
    assert set(ones) <= {0, 1}


def test_a_budget_of_nothing_leaves_nothing() -> None:
    layout = Single().layout(nt_models.mlp(inputs=4, hidden=(3,), classes=2))
    assert set(allocate(layout, ERK(), math.nextafter(1, 0)).values()) == {0}


def test_a_network_without_kernels_has_nothing_to_allocate() -> None:
    net = GraphBuilder(Tokens(length=2, vocabulary=3))
    with net.classifier() as b:
        b.out = b.embedding(b.inp, 3, 3)
    layout = Single().layout(net.build())
    for rule in (*PLAIN, UniformPlus(), ERKPlus()):
        assert allocate(layout, rule, 0.5) == {}


# Division.


@settings(max_examples=300)
@given(layouts(), st.sampled_from(PLAIN), sparsities)
def test_counts_are_within_one_of_cap_refill_repeat(
    layout: Layout, rule: Allocation, sparsity: float
) -> None:
    placed = layout.sparsifiable
    sizes = [p.weight.size for p in placed]
    budget = round((1 - sparsity) * sum(sizes))
    propensities = [PROPENSITIES[type(rule)](p.weight.shape) for p in placed]
    shares = exact_shares(propensities, sizes, budget)
    assert sum(shares) == budget
    counts = allocate(layout, rule, sparsity)
    for p, share in zip(placed, shares, strict=True):
        assert abs(counts[p.name] - share) < 1 + 1e-6


def side_by_side_of(shapes: Sequence[tuple[int, ...]], last: int) -> Any:
    """Stand for a layout: kernels of these shapes, some of them in the classifier."""
    graph = nt_models.mlp(inputs=2, hidden=(2,), classes=2)
    placed = [
        PlacedWeight(
            name=f"head1/b{i}/fc.weight",
            part="head1",
            block=graph.blocks[i >= len(shapes) - last],
            node=graph.blocks[0].nodes[0],
            weight=kernel(shape, "normal_002"),
            positions=1,
        )
        for i, shape in enumerate(shapes)
    ]
    return SimpleNamespace(sparsifiable=tuple(placed))


def exact_water(
    propensities: Sequence[Fraction], bounds: Sequence[tuple[int, int]], sizes: Sequence[int], budget: int
) -> list[Fraction]:
    """Solve Σ min(upper, max(lower, ε·p·size)) = budget in exact arithmetic, by trying every segment."""
    slopes = [p * n for p, n in zip(propensities, sizes, strict=True)]

    def filled(epsilon: Fraction) -> list[Fraction]:
        asked = [(epsilon * slope, *pair) for slope, pair in zip(slopes, bounds, strict=True)]
        return [min(Fraction(upper), max(Fraction(lower), share)) for share, lower, upper in asked]

    steps = sorted(
        {limit / s for s, pair in zip(slopes, bounds, strict=True) for limit in pair} | {Fraction(0)}
    )
    for below, above in itertools.pairwise(steps):
        low, high = sum(filled(below)), sum(filled(above))
        if low <= budget <= high:
            share = (budget - low) / (high - low) if high > low else Fraction(0)
            return filled(below + share * (above - below))
    return filled(steps[-1])


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_exact_water_filling_for_thousands_of_layouts(seed: int) -> None:
    """Comparing a cap after rounding set one in sixty of these wrong: too rare for a few examples."""
    rng = random.Random(seed)
    for _ in range(700):
        shapes = [
            tuple(rng.randint(1, rng.choice([3, 40])) for _ in range(rng.choice([2, 2, 4])))
            for _ in range(rng.randint(1, 6))
        ]
        rule = rng.choice([*PLAIN, UniformPlus(dense=(), last_density=0.5), ERKPlus(last_density=0.5)])
        layout, sizes = side_by_side_of(shapes, last=1), [math.prod(shape) for shape in shapes]
        sparsity = rng.choice([rng.random(), 0.1, 0.25, 0.5, 0.75, 0.8, 0.9])
        budget = round((1 - sparsity) * sum(sizes))
        bounds = [(b.lower, b.upper) for b in (rule.bounds(p, layout, 0) for p in layout.sparsifiable)]
        if not sum(lo for lo, _ in bounds) <= budget <= sum(up for _, up in bounds):
            continue
        kind = {UniformPlus: Uniform, ERKPlus: ERK}.get(type(rule), type(rule))
        shares = exact_water([PROPENSITIES[kind](shape) for shape in shapes], bounds, sizes, budget)
        assert sum(shares) == budget
        counts = list(allocate(layout, rule, sparsity).values())
        assert sum(counts) == budget
        assert all(abs(n - share) < 1 + 1e-6 for n, share in zip(counts, shares, strict=True)), shapes


def test_a_cap_is_met_where_its_quotient_is_rounded() -> None:
    """(upper / slope)·slope may exceed upper; small layers were then left at a third of what is theirs."""
    shapes = [(30, 4), (34, 4), (37, 4), (11, 34), (1, 37), (1, 37), (19, 30), (2, 32)]
    counts = list(allocate(side_by_side_of(shapes, last=1), ER(), 0.25).values())
    assert counts == [120, 136, 148, 274, 37, 37, 298, 64]


@settings(max_examples=300)
@given(layouts(), st.sampled_from([ER(), ERK()]), sparsities)
def test_below_the_cap_density_is_proportional_to_the_propensity(
    layout: Layout, rule: Allocation, sparsity: float
) -> None:
    counts = allocate(layout, rule, sparsity)
    low, high = 0.0, math.inf  # bounds on ε from every layer below its cap
    capped: list[float] = []
    for p in layout.sparsifiable:
        asked = rule.propensity(p.weight.shape) * p.weight.size
        if counts[p.name] < p.weight.size:
            low, high = max(low, (counts[p.name] - 1) / asked), min(high, (counts[p.name] + 1) / asked)
        else:
            capped.append((p.weight.size - 1) / asked)
    assert low <= high * (1 + 1e-9)
    if high < math.inf:
        assert all(least <= high * (1 + 1e-9) for least in capped)


@pytest.mark.parametrize(
    ("rule", "shape", "propensity"),
    [
        (ER(), (10, 20), 30 / 200),
        (ERK(), (10, 20), 30 / 200),
        (ER(), (16, 8, 3, 5), 24 / 128),
        (ERK(), (16, 8, 3, 5), 32 / (16 * 8 * 3 * 5)),
        (Uniform(), (16, 8, 3, 5), 1.0),
        (ERKPlus(), (16, 8, 3, 5), 32 / (16 * 8 * 3 * 5)),
    ],
)
def test_propensities_are_the_published_ones(rule: Allocation, shape: Any, propensity: float) -> None:
    assert rule.propensity(shape) == propensity


def test_linear_layers_ask_the_same_of_er_and_erk() -> None:
    layout = Single().layout(nt_models.mlp(inputs=30, hidden=(20, 10), classes=5))
    assert allocate(layout, ER(), 0.7) == allocate(layout, ERK(), 0.7)


@settings(max_examples=200)
@given(problems(), sparsities)
def test_a_denser_budget_takes_from_no_weight_but_the_one_that_rounding_gave(
    problem: Any, other: float
) -> None:
    """Shares rise with the budget; largest remainders may give the last unit to another weight."""
    layout, rule, sparsity = problem
    try:
        sparse = allocate(layout, rule, max(sparsity, other))
        dense = allocate(layout, rule, min(sparsity, other))
    except AllocationError:
        return
    assert all(dense[name] >= count - 1 for name, count in sparse.items())


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5),
    st.sampled_from([ER(), Uniform()]),
    st.floats(0, 1, exclude_max=True),
    st.randoms(use_true_random=False),
)
def test_the_order_of_layers_changes_only_who_wins_equal_remainders(
    shapes: list[tuple[int, int]], rule: Allocation, sparsity: float, rng: Any
) -> None:
    order = list(range(len(shapes)))
    first = allocate(Single().layout(side_by_side(shapes, order)), rule, sparsity)
    rng.shuffle(order)
    layout = Single().layout(side_by_side(shapes, order))
    second = allocate(layout, rule, sparsity)
    placed = layout.sparsifiable
    sizes = [p.weight.size for p in placed]
    asked = [PROPENSITIES[type(rule)](p.weight.shape) for p in placed]
    shares = exact_shares(asked, sizes, round((1 - sparsity) * sum(sizes)))
    remainders = {p.name: float(share % 1) for p, share in zip(placed, shares, strict=True)}
    changed = [name for name in first if first[name] != second[name]]
    assert all(abs(first[name] - second[name]) == 1 for name in changed)
    if changed:
        found = [remainders[name] for name in changed]
        assert max(found) - min(found) < 1e-6


def side_by_side(shapes: Sequence[tuple[int, int]], order: Sequence[int]) -> BlockGraph:
    """Layers that read the same tensor, so that their blocks may stand in any order."""
    net = GraphBuilder(Features(count=4))
    with net.stem() as b:
        reads = {n: b.linear(b.inp, n) for n in sorted({inputs for _, inputs in shapes})}
        b.out = next(iter(reads.values()))
    made = {}
    for i in order:
        with net.block(f"b{i}") as b:
            made[i] = b.out = b.linear(reads[shapes[i][1]], shapes[i][0])
    with net.classifier() as b:
        outputs = [made[i] for i in sorted(made)]
        b.out = b.linear(b.concat(*outputs) if len(outputs) > 1 else outputs[0], 2)
    return net.build()


@given(layouts(), sparsities)
def test_equal_weights_get_equal_counts_but_for_one(layout: Layout, sparsity: float) -> None:
    counts = allocate(layout, ERK(), sparsity)
    by_shape: dict[Any, list[int]] = {}
    for p in layout.sparsifiable:
        by_shape.setdefault(p.weight.shape, []).append(counts[p.name])
    for found in by_shape.values():
        assert max(found) - min(found) <= 1
        assert found == sorted(found, reverse=True)  # the earlier wins the tie


def test_totals_are_exact_at_a_billion_weights() -> None:
    layout = Independent(count=7).layout(nt_models.mlp(inputs=99_991, hidden=(10_007, 9_973), classes=3))
    for rule in PLAIN:
        for sparsity in (0.1, 0.123456789, 0.9, 0.999):
            assert sum(allocate(layout, rule, sparsity).values()) == round(
                (1 - sparsity) * size(layout.sparsifiable)
            )


# Forced layers.


def perceptron() -> Layout:
    return Single().layout(nt_models.mlp(inputs=100, hidden=(50, 20), classes=10))


def test_forced_dense_layers_over_budget_is_an_error() -> None:
    layout = perceptron()
    with pytest.raises(AllocationError) as caught:
        allocate(layout, ERK(dense=("*/hidden1/*",)), 0.9)
    assert "sparsity 0.9 leaves 620 of 6200 connections, but the allocation needs between 5000" in str(
        caught.value
    )
    assert_feasible_range(layout, ERK(dense=("*/hidden1/*",)), caught.value)


def test_a_dense_layer_inside_the_budget_makes_the_rest_sparser() -> None:
    counts = allocate(perceptron(), Uniform(dense=("@last",)), 0.5)
    assert counts["head1/classifier/linear1.weight"] == 200
    assert sum(counts.values()) == 3100


def test_a_dense_layer_outside_the_budget_leaves_the_rest_at_the_sparsity() -> None:
    counts = allocate(perceptron(), Uniform(dense=("@last",), dense_budget="outside"), 0.5)
    assert counts["head1/classifier/linear1.weight"] == 200
    assert sum(counts.values()) == 200 + 3000


def test_everything_dense_inside_the_budget_allows_no_sparsity_and_outside_any() -> None:
    with pytest.raises(AllocationError, match=r"choose a sparsity from 0 to 0$"):
        allocate(perceptron(), ERK(dense=("*",)), 0.5)
    assert sum(allocate(perceptron(), ERK(dense=("*",), dense_budget="outside"), 0.5).values()) == 6200


def test_groups_mean_kernels_by_their_place() -> None:
    graph = nt_models.wide_resnet(depth=10, width=1, classes=5)
    split, apart = MultiHead(split=1, heads=2).layout(graph), Independent(count=2).layout(graph)
    last = {f"head{m}/classifier/linear1.weight" for m in (1, 2)}
    assert dense_names(["@first"], split) == {"backbone/stem/conv1.weight"}
    assert dense_names(["@first"], apart) == {f"head{m}/stem/conv1.weight" for m in (1, 2)}
    assert dense_names(["@last"], split) == dense_names(["@last"], apart) == last
    assert dense_names(["@attention"], split) == frozenset()
    assert dense_names(["@first", "*shortcut*"], split) == {
        "backbone/stem/conv1.weight",
        *(f"head{m}/stage{s}.1/shortcut.weight" for m in (1, 2) for s in (2, 3)),
    }


def test_the_attention_group_is_the_projections_of_queries_keys_values_and_output() -> None:
    layout = MultiHead(split=1, heads=2).layout(language_model())
    linears = [f"linear{i}.weight" for i in range(1, 5)]
    parts = ("backbone/block1", "head1/block2", "head2/block2")
    assert dense_names(["@attention"], layout) == {f"{part}/{own}" for part in parts for own in linears}
    counts = allocate(layout, ER(dense=("@attention",)), 0.1)
    sizes = {p.name: p.weight.size for p in layout.sparsifiable}
    assert sum(counts.values()) == round(0.9 * sum(sizes.values()))
    assert {n for n in counts if counts[n] == sizes[n]} >= dense_names(["@attention"], layout)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            ERK(dense=("head1/hidden1/linear.weight",)),
            "allocation.dense: 'head1/hidden1/linear.weight' matches no weight; did you mean",
        ),
        (ERK(dense=("*/stem/*",)), "allocation.dense: '*/stem/*' matches no weight"),
        (ERK(dense=("@frist",)), "allocation.dense: no group '@frist'; did you mean '@first'?"),
        (
            Explicit(densities={"*/hidden1/*": 0.5, "*/hiden2/*": 0.1}),
            "allocation.densities: '*/hiden2/*' matches no weight",
        ),
        (
            Explicit(densities={"*linear1.bias": 0.5}),
            "allocation.densities: '*linear1.bias' matches no weight",
        ),
    ],
)
def test_published_bug_of_patterns_that_match_nothing_silently_is_an_error(
    rule: Allocation, message: str
) -> None:
    with pytest.raises(AllocationError) as caught:
        allocate(perceptron(), rule, 0.5)
    assert message in str(caught.value)


def test_explicit_densities_hold_and_the_rest_shares_what_is_left() -> None:
    rule = Explicit(densities={"*/hidden1/*": 0.1, "*/hidden*": 0.9})
    counts = allocate(perceptron(), rule, 1 - 1500 / 6200)
    assert list(counts.values()) == [500, 900, 100]


@pytest.mark.parametrize("share", [1 / 3, 1 / 7, 0.123456789, 1 - 1e-9, 1e-9])
def test_the_stated_range_is_feasible_where_six_digits_would_not_be(share: float) -> None:
    layout = Single().layout(nt_models.mlp(inputs=99_991, hidden=(10_007,), classes=9_973))
    for rule in (Explicit(densities={"*": share}), Explicit(densities={"*hidden1*": share})):
        with pytest.raises(AllocationError) as caught:
            allocate(layout, rule, 0.5 if "*" in rule.densities else math.nextafter(1, 0))
        assert_feasible_range(layout, rule, caught.value)


def test_explicit_densities_of_everything_allow_one_sparsity_only() -> None:
    layout, rule = perceptron(), Explicit(densities={"*": 1 / 3})
    with pytest.raises(AllocationError) as caught:
        allocate(layout, rule, 0.5)
    assert_feasible_range(layout, rule, caught.value)


def test_erk_plus_gives_the_last_layer_its_own_density_and_erk_to_the_rest() -> None:
    layout = MultiHead(split=1, heads=2).layout(nt_models.mlp(inputs=300, hidden=(200, 100), classes=10))
    counts = allocate(layout, ERKPlus(last_density=0.5), 0.8)
    last = [p.name for p in layout.sparsifiable if p.block.kind == "classifier"]
    assert [counts[name] for name in last] == [500, 500]
    assert sum(counts.values()) == round(0.2 * size(layout.sparsifiable))
    first, second, third = (counts[p.name] for p in layout.sparsifiable if p.name not in last)
    assert abs(second - third) <= 1
    assert first / second == pytest.approx((300 + 200) / (200 + 100), rel=1e-3)


def test_uniform_plus_keeps_the_first_layer_dense_and_a_fifth_of_the_last() -> None:
    layout = Single().layout(nt_models.mlp(inputs=10, hidden=(100, 100), classes=10))
    counts = list(allocate(layout, UniformPlus(), 0.85).values())
    assert counts == [1000, 600, 200]
    assert list(allocate(layout, UniformPlus(), 0.5).values()) == [1000, 4545, 455]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan, "half"])
def test_a_sparsity_outside_its_range_is_a_spec_error(sparsity: Any) -> None:
    with pytest.raises(SpecError, match=r"static\.sparsity"):
        Static(sparsity=sparsity)


# Published figures.


def flops(layout: Layout, counts: Mapping[str, int]) -> int:
    return sum(2 * counts[p.name] * p.positions for p in layout.sparsifiable)


def everything(layout: Layout) -> dict[str, int]:
    return {p.name: p.weight.size for p in layout.sparsifiable}


@pytest.mark.parametrize(
    ("structure", "sparsity", "figure"),
    [
        (Single(), 0.8, 0.3374),
        (Single(), 0.9, 0.1663),
        (MultiHead(split=4, heads=3), 0.8, 0.683),
        (MultiHead(split=4, heads=5), 0.9, 0.502),
    ],
    ids=str,
)
def test_erk_costs_of_wide_resnet_28_10_are_the_published_ones(
    structure: Any, sparsity: float, figure: float
) -> None:
    graph = nt_models.wide_resnet(depth=28, width=10, classes=100)
    layout, single = structure.layout(graph), Single().layout(graph)
    ratio = flops(layout, allocate(layout, ERK(), sparsity)) / flops(single, everything(single))
    assert abs(ratio - figure) < (5e-5 if figure < 0.4 else 5e-4)


@pytest.mark.parametrize(("heads", "sparsity", "printed"), [(3, 0.8, 0.47), (5, 0.9, 0.37)])
def test_published_flops_of_neurotrails_are_those_of_a_uniform_density(
    heads: int, sparsity: float, printed: float
) -> None:
    graph = nt_models.wide_resnet(depth=28, width=10, classes=100)
    layout, single = MultiHead(split=4, heads=heads).layout(graph), Single().layout(graph)
    uniform = flops(layout, allocate(layout, Uniform(), sparsity)) / flops(single, everything(single))
    assert round(uniform, 2) == printed
    erk = flops(layout, allocate(layout, ERK(), sparsity)) / flops(single, everything(single))
    assert erk > 1.3 * uniform


# One mask drawn over the whole network.


@given(st.integers(0, 30), st.integers(1, 30), st.data())
def test_hypergeometric_counts_have_their_distribution(good: int, bad: int, data: st.DataObject) -> None:
    draws = data.draw(st.integers(0, good + bad))
    probabilities = scipy.stats.hypergeom(good + bad, good, draws)
    for uniform in (0.02, 0.31, 0.5, 0.77, 0.98):
        count = hypergeometric(uniform, good, bad, draws)
        assert probabilities.cdf(count - 1) <= uniform + 1e-9
        assert probabilities.cdf(count) >= uniform - 1e-9


def test_hypergeometric_counts_of_billions_are_exact_in_mean_and_spread() -> None:
    good, bad, draws = 3 * 10**9, 7 * 10**9, 2 * 10**9
    mean, spread = draws * 0.3, math.sqrt(draws * 0.3 * 0.7 * 0.8)
    found = [hypergeometric(u, good, bad, draws) for u in (0.5, 0.158655, 0.841345)]
    np.testing.assert_allclose(np.array(found) - mean, [0, -spread, spread], atol=2e-3 * spread)


def test_random_global_counts_are_those_of_one_mask_over_all_positions() -> None:
    layout = Single().layout(nt_models.mlp(inputs=6, hidden=(4,), classes=3))
    sizes = np.array([p.weight.size for p in layout.sparsifiable])
    runs = 600
    counts = np.array([list(allocate(layout, RandomGlobal(seed=s), 0.5).values()) for s in range(runs)])
    total = sizes.sum()
    kept = round(total / 2)
    assert (counts.sum(axis=1) == kept).all()
    share = sizes / total
    variance = kept * share * (1 - share) * (total - kept) / (total - 1)
    np.testing.assert_allclose(counts.mean(axis=0), kept * share, atol=4.5 * math.sqrt(variance.max() / runs))
    np.testing.assert_allclose(counts.var(axis=0), variance, rtol=0.3)
    again = [list(allocate(layout, RandomGlobal(seed=s), 0.5).values()) for s in range(3)]
    np.testing.assert_array_equal(again, counts[:3])


def test_random_global_counts_of_a_billion_weights_are_drawn_without_the_weights() -> None:
    layout = Independent(count=20).layout(nt_models.wide_resnet(depth=28, width=12, classes=100))
    assert sum(p.weight.size for p in layout.sparsifiable) > 10**9
    allocate(layout, RandomGlobal(), 0.9)  # caches are filled once
    _, calls = calls_in(lambda: allocate(layout, RandomGlobal(), 0.9))
    assert calls < 200 * len(layout.sparsifiable)
    counts, peak = peak_bytes_in(lambda: allocate(layout, RandomGlobal(), 0.9))
    assert peak < 10 * 2**20
    assert sum(counts.values()) == round(0.1 * sum(p.weight.size for p in layout.sparsifiable))
