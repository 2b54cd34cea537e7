from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nt_models
from nt_core.errors import SpecError
from nt_core.masks import NUMPY, Moment, Scores
from nt_core.policies import AtRandom, Gradient, Layer, Magnitude, MagnitudeAndGradient, Swap
from nt_core.random import Random, Stream
from nt_core.spec import PRESETS
from nt_core.structure import Layout, MultiHead, PlacedWeight
from nt_core.topology import (
    ERK,
    Dense,
    DropFraction,
    Dynamic,
    GradualPruning,
    Semantics,
    SparseTopology,
    Static,
    Uniform,
    allocate,
    initial_masks,
    update,
)
from nt_core.topology.schedules import SCHEDULES

fractions = st.one_of(st.floats(1e-9, 1), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.75, 1.0]))
drops = st.builds(DropFraction, start=fractions, schedule=st.sampled_from(list(SCHEDULES)), until=fractions)
totals = st.integers(1, 3000)
intervals = st.integers(1, 500)


@given(drops, totals)
def test_the_drop_fraction_starts_at_its_start_never_rises_and_ends_at_its_end(
    drop: DropFraction, total: int
) -> None:
    end = drop.end_step(total)
    assert 0 <= end <= total
    fractions = [drop.at(step, total) for step in range(0, total + 2, max(1, total // 50))]
    assert all(0 <= b <= a <= drop.start for a, b in itertools.pairwise(fractions))
    assert drop.at(0, total) == (drop.start if end else 0.0)
    assert drop.at(end, total) == drop.at(total, total) == 0.0
    if drop.start and end > 1:
        assert drop.at(end - 1, total) > 0


@given(drops, totals, intervals)
def test_updates_fall_on_multiples_of_the_interval_before_the_end_step(
    drop: DropFraction, total: int, interval: int
) -> None:
    topology = Dynamic(sparsity=0.5, drop_fraction=drop, interval=interval)
    due = [step for step in range(1, total + 1) if topology.due(step, total)]
    assert due == (list(range(interval, drop.end_step(total), interval)) if drop.start else [])


@pytest.mark.parametrize(
    ("preset", "last"), [("rigl", 700), ("rigl_paper", 700), ("neurotrails", 900), ("neurotrails_lm", 950)]
)
def test_rigl_stops_at_three_quarters_and_neurotrails_at_the_end(preset: str, last: int) -> None:
    topology = PRESETS[preset](nt_models.mlp(inputs=9, hidden=(8, 7, 6), classes=3)).topology
    assert isinstance(topology, Dynamic)
    due = [step for step in range(1, 1001) if topology.due(step, 1000)]
    assert due == list(range(topology.interval, last + 1, topology.interval))


@given(drops, st.floats(0, 1), totals)
def test_a_floor_is_where_a_falling_schedule_ends(drop: DropFraction, share: float, total: int) -> None:
    if drop.schedule == "constant":
        return
    lifted = drop.replace(floor=share * drop.start)
    end = lifted.end_step(total)
    fractions = [lifted.at(step, total) for step in range(0, end + 1, max(1, end // 50))]
    assert all(lifted.floor <= b <= a * (1 + 1e-15) for a, b in itertools.pairwise([drop.start, *fractions]))
    assert lifted.at(end, total) == lifted.floor
    assert lifted.at(end + 1, total) == 0.0
    assert drop.at(1, total) <= lifted.at(1, total) + 1e-15


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"start": 0.3, "floor": 0.4}, "floor: expected at most start=0.3, found 0.4"),
        ({"schedule": "constant", "floor": 0.1}, "floor: a constant fraction never falls to 0.1"),
    ],
)
def test_a_floor_that_cannot_be_reached_is_an_error(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        DropFraction(**fields)


def test_cosine_and_linear_have_the_published_values() -> None:
    cosine = DropFraction(start=0.5)
    for step in (0, 1, 250, 333, 999):
        assert cosine.at(step, 1000) == pytest.approx(0.25 * (1 + math.cos(math.pi * step / 1000)), rel=1e-15)
    assert DropFraction(start=0.4, schedule="linear", until=0.5).at(125, 500) == pytest.approx(0.2)
    assert DropFraction(start=0.3, schedule="constant", until=0.5).at(249, 500) == 0.3
    assert DropFraction(start=0.3, schedule="constant", until=0.5).at(250, 500) == 0.0


@given(fractions, fractions, intervals, totals)
def test_gradual_pruning_is_due_between_begin_and_end_and_always_at_the_end(
    begin: float, end: float, interval: int, total: int
) -> None:
    begin, end = sorted((begin, end))
    topology = GradualPruning(sparsity=0.5, begin=begin, end=end, interval=interval)
    first, last = topology.window(total)
    assert 0 <= first <= last <= total
    due = [step for step in range(1, total + 1) if topology.due(step, total)]
    assert due == [*(s for s in range(first + interval, last, interval)), last]


@given(fractions, intervals, totals)
def test_pruning_in_one_shot_happens_once(when: float, interval: int, total: int) -> None:
    topology = GradualPruning(sparsity=0.5, begin=when, end=when, interval=interval)
    due = [step for step in range(1, total + 1) if topology.due(step, total)]
    assert due == [max(1, round(when * total))]


@given(st.data(), drops, fractions, fractions, intervals, st.integers(1, 300))
def test_the_next_update_is_the_first_that_is_due(
    data: st.DataObject, drop: DropFraction, one: float, other: float, interval: int, total: int
) -> None:
    begin, end = sorted((one, other))
    for topology in (
        Dynamic(sparsity=0.5, drop_fraction=drop, interval=interval),
        GradualPruning(sparsity=0.5, begin=begin, end=end, interval=interval),
        Static(sparsity=0.5),
    ):
        step = data.draw(st.integers(0, total + 2))
        later = (later for later in range(step + 1, total + 1) if topology.due(later, total))
        assert topology.next_due(step, total) == next(later, None)


def test_pruning_cannot_end_before_it_begins() -> None:
    with pytest.raises(SpecError, match=re.escape("topology.begin: expected at most end=0.5, found 0.9")):
        GradualPruning(sparsity=0.5, begin=0.9, end=0.5)


def test_final_counts_are_the_allocations() -> None:
    layout = MultiHead(split=1, heads=2).layout(nt_models.mlp(inputs=9, hidden=(8, 7), classes=3))
    assert Dense().final_counts(layout) == {p.name: p.weight.size for p in layout.sparsifiable}
    for topology in (
        Static(sparsity=0.7, allocation=Uniform()),
        Dynamic(sparsity=0.7, allocation=Uniform()),
        GradualPruning(sparsity=0.7, allocation=Uniform()),
    ):
        assert topology.final_counts(layout) == allocate(layout, Uniform(), 0.7)
        assert topology.final_counts(layout) != allocate(layout, ERK(), 0.7)


def test_criteria_are_those_a_topology_reads() -> None:
    assert Dynamic(sparsity=0.5, grow=AtRandom()).criteria == (Magnitude(), AtRandom())
    pruning = GradualPruning(sparsity=0.5, prune=MagnitudeAndGradient())
    assert pruning.criteria == (MagnitudeAndGradient(),)


def test_a_number_stands_for_a_cosine_to_the_end_and_a_name_for_a_kind() -> None:
    topology = Dynamic(sparsity=0.5, drop_fraction=0.3, allocation="uniform", prune="random", grow="gradient")  # type: ignore[arg-type]
    assert topology == Dynamic(
        sparsity=0.5,
        drop_fraction=DropFraction(start=0.3, schedule="cosine", until=1.0),
        allocation=Uniform(),
        prune=AtRandom(),
        grow=Gradient(),
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dynamic(), "dynamic.sparsity: missing"),
        (lambda: Dynamic(sparsity=1.0), "dynamic.sparsity: input should be less than 1; found 1.0"),
        (lambda: Dynamic(sparsity=0.5, interval=0), "dynamic.interval: input should be greater"),
        (lambda: Dynamic(sparsity=0.5, scope="all"), "dynamic.scope: input should be 'layer', 'global'"),
        (
            lambda: Dynamic(sparsity=0.5, scope="momentum"),
            "'momentum' needs grow 'momentum', found 'gradient'",
        ),
        (lambda: GradualPruning(sparsity=0.5, prune="sign_flip"), "'sign_flip' itself decides how many"),
        (
            lambda: Dynamic(sparsity=0.5, prune="magnitud"),
            "prune.kind: no kind 'magnitud'; did you mean 'magnitude'",
        ),
        (lambda: Dynamic(sparsity=0.5, grow="magnitude"), "grow.kind: no kind 'magnitude'"),
        (lambda: Dynamic(sparsity=0.5, drop_fraction=2), "drop_fraction.start: input should be less than or"),
        (
            lambda: Dynamic(sparsity=0.5, drop_fraction={"strt": 1}),
            "drop_fraction.strt: unknown key; did you mean",
        ),
        (
            lambda: Dynamic(sparsity=0.5, semantics={"regrow": "in"}),
            "semantics.regrow: input should be 'out'",
        ),
        (
            lambda: DropFraction(schedule="cosin"),
            "dropfraction.schedule: input should be 'constant'",
        ),
        (lambda: Static(sparsity=0.5, prune=Magnitude()), "static.prune: unknown key"),
        (lambda: Dense(sparsity=0.5), "dense.sparsity: unknown key"),
        (
            lambda: GradualPruning(sparsity=0.5, end=1.1),
            "gradualpruning.end: input should be less than",
        ),
    ],
)
def test_a_topology_is_checked_at_birth(make: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert message in str(caught.value)


def test_semantics_of_the_published_families_have_names() -> None:
    graph = nt_models.mlp(inputs=9, hidden=(8, 7, 6), classes=3)
    original = PRESETS["rigl_paper"](graph).topology
    assert original.semantics == Semantics(optimizer_step="replaced", regrow="return", grown_value="zero")
    for family in ("set", "rigl", "neurotrails", "neurotrails_lm"):
        assert PRESETS[family](graph).topology.semantics == Semantics(
            optimizer_step="taken", regrow="out", grown_value="zero"
        )


# A kind of topology is one class.


class Checkerboard(SparseTopology):
    """Half of each weight, every other position, from the start; after step 3 the other half."""

    kind: Literal["checkerboard"] = "checkerboard"
    updates: ClassVar[bool] = True

    def counts(self, layout: Layout) -> Mapping[str, int]:
        return {placed.name: placed.weight.size // 2 for placed in layout.sparsifiable}

    def initial_scores(self, placed: PlacedWeight, stream: Stream) -> Scores:
        return lambda where: np.arange(placed.weight.size)[where] % 2

    def due(self, step: int, total_steps: int) -> bool:
        return step == 3

    def swaps(self, layers: Sequence[Layer], moment: Moment, **_: Any) -> Mapping[str, Swap]:
        return {
            layer.name: Swap(pruned=np.flatnonzero(layer.active), grown=np.flatnonzero(~layer.active))
            for layer in layers
        }


def test_a_new_kind_of_topology_is_one_class() -> None:
    topology = Checkerboard(sparsity=0.5)
    layout = MultiHead(split=1, heads=2).layout(nt_models.mlp(inputs=6, hidden=(4, 4), classes=2))
    masks = dict(initial_masks(topology, layout, seed=0))
    assert {name: mask.count for name, mask in masks.items()} == topology.final_counts(layout)
    assert all((mask.flat() % 2 == 1).all() for mask in masks.values())
    layers = [
        Layer(
            name=name,
            weights=np.where(mask.dense(), 1.0, 0.0).reshape(-1),
            gradients=None,
            active=mask.dense().reshape(-1),
            momentum=None,
            shape=mask.shape,
        )
        for name, mask in masks.items()
    ]
    assert [step for step in range(1, 6) if topology.due(step, 5)] == [3]
    assert not topology.reads_gradient()
    targets = topology.final_counts(layout)
    swaps = update(topology, layers, Moment(3, Random(0), NUMPY), total_steps=5, targets=targets)
    for name, mask in masks.items():
        np.testing.assert_array_equal(swaps[name].pruned, mask.flat())
        assert (swaps[name].grown % 2 == 0).all()
        assert len(swaps[name].grown) == mask.count
