from __future__ import annotations

import inspect
import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nt_core import policies
from nt_core.errors import SpecError, TopologyError
from nt_core.masks import Moment
from nt_core.policies import (
    AnyGrow,
    AnyPrune,
    AtRandom,
    Criterion,
    Gradient,
    Layer,
    Magnitude,
    MagnitudeAndGradient,
    SignedMagnitude,
    SoftMagnitude,
    drop_positions,
    expect_finite,
    share_by_sign,
    swap,
)
from nt_core.random import Random
from tests.core.brute_force import expected_swap, first, scored
from tests.core.strategies import GROWS, PRUNES, frozen, layers

MOMENT = Moment(step=300, random=Random(7))
moments = st.builds(Moment, step=st.integers(0, 10**6), random=st.builds(Random, st.integers(0, 2**40)))


def layer_of(weights: Any, gradients: Any = None, active: Any = None, name: str = "w") -> Layer:
    weights = np.asarray(weights, np.float64)
    active = weights != 0 if active is None else np.asarray(active, np.bool_)
    gradients = None if gradients is None else np.asarray(gradients, np.float64)
    return Layer(name=name, weights=weights, gradients=gradients, active=active)


@st.composite
def updates(draw: st.DrawFn) -> tuple[Layer, int, Moment]:
    layer = frozen(draw(layers()))
    return layer, draw(st.integers(0, int(layer.active.sum()))), draw(moments)


# What holds for every policy.


@settings(max_examples=15)
@pytest.mark.parametrize("regrow", [False, True], ids=["out", "return"])
@pytest.mark.parametrize("grow", GROWS, ids=lambda c: c.kind)
@pytest.mark.parametrize("prune", PRUNES, ids=str)
@given(update=updates())
def test_a_swap_keeps_the_count_prunes_the_smallest_and_grows_the_largest(
    prune: Criterion, grow: Criterion, regrow: bool, update: tuple[Layer, int, Moment]
) -> None:
    layer, count, moment = update
    found = swap(prune, grow, regrow=regrow)(layer, count, moment)
    for positions in (found.pruned, found.grown):
        assert positions.dtype == np.int64
        assert (np.diff(positions) > 0).all()
    assert layer.active[found.pruned].all()
    assert not layer.active[found.grown].any()
    assert len(found.pruned) == len(found.grown)
    inactive = int((~layer.active).sum())
    assert len(found.pruned) + found.returned == (count if regrow else min(count, inactive))
    assert regrow or found.returned == 0
    expected = expected_swap(prune, grow, layer, count, regrow, moment)
    np.testing.assert_array_equal(found.pruned, expected.pruned)
    np.testing.assert_array_equal(found.grown, expected.grown)
    assert found.returned == expected.returned


def test_every_criterion_a_spec_can_name_is_tested_here() -> None:
    kinds = [set(get_args(get_args(named)[0])) for named in (AnyPrune, AnyGrow)]
    assert kinds == [{type(c) for c in PRUNES}, {type(c) for c in GROWS}]


@settings(max_examples=40)
@pytest.mark.parametrize("criterion", [*PRUNES, Gradient()], ids=str)
@given(layer=layers(), moment=moments, data=st.data())
def test_scores_do_not_depend_on_how_a_layer_is_cut_into_slices(
    criterion: Criterion, layer: Layer, moment: Moment, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, layer.active.size - 1))
    stop = data.draw(st.integers(start, layer.active.size))
    step = data.draw(st.integers(1, 5))
    whole = scored(criterion, layer, moment, "prune")
    draws = moment.draws(layer.name, "prune", from_start=criterion.from_start)
    part = criterion(layer, slice(start, stop, step), draws)
    np.testing.assert_array_equal(part, whole[start:stop:step])


@settings(max_examples=40)
@pytest.mark.parametrize("prune", PRUNES, ids=str)
@given(update=updates(), names=st.permutations(["a", "b", "c"]))
def test_a_swap_depends_on_name_step_and_seed_and_on_nothing_else(
    prune: Criterion, update: tuple[Layer, int, Moment], names: list[str]
) -> None:
    layer, count, moment = update
    policy = swap(prune, AtRandom())
    fresh = Moment(step=moment.step, random=Random(moment.random.seed))
    swaps = {name: policy(named(layer, name), count, moment) for name in names}
    for name in sorted(names):
        again = swap(prune, AtRandom())(named(layer, name), count, fresh)
        np.testing.assert_array_equal(again.pruned, swaps[name].pruned)
        np.testing.assert_array_equal(again.grown, swaps[name].grown)


def named(layer: Layer, name: str) -> Layer:
    return replace(layer, name=name)


@pytest.mark.parametrize("prune", [AtRandom(), SoftMagnitude()], ids=str)
def test_random_choices_differ_between_weights_steps_and_seeds(prune: Criterion) -> None:
    rng = np.random.default_rng(0)
    layer = layer_of(rng.normal(size=200) * (np.arange(200) < 100), gradients=rng.normal(size=200))
    found = set()
    for name, step, seed in itertools.product("ab", (1, 2), (3, 4)):
        moment = Moment(step=step, random=Random(seed))
        found.add(tuple(swap(prune, AtRandom())(named(layer, name), 50, moment).pruned.tolist()))
    assert len(found) == 8


def test_pruning_and_growing_at_random_draw_different_numbers() -> None:
    layer = layer_of(np.ones(100))
    draws = [scored(AtRandom(), layer, MOMENT, purpose) for purpose in ("prune", "grow")]
    assert abs(np.corrcoef(*draws)[0, 1]) < 0.3


@settings(max_examples=40)
@pytest.mark.parametrize("prune", PRUNES, ids=str)
@given(layer=layers(), beyond=st.integers(1, 5))
def test_more_than_is_active_cannot_be_pruned(prune: Criterion, layer: Layer, beyond: int) -> None:
    count = int(layer.active.sum())
    for wrong in (count + beyond, -beyond):
        with pytest.raises(TopologyError, match=f"{wrong} positions requested, {count} available"):
            drop_positions(prune, layer, wrong, MOMENT)


@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_ties_go_to_the_lowest_positions(active: int, inactive: int, data: st.DataObject) -> None:
    flags = np.array(data.draw(st.permutations([True] * active + [False] * inactive)))
    layer = layer_of(np.where(flags, -0.25, 0), gradients=np.full(flags.size, 3.0), active=flags)
    k = data.draw(st.integers(0, min(active, inactive)))
    for prune in (Magnitude(), SignedMagnitude(), MagnitudeAndGradient()):
        found = swap(prune, Gradient())(layer, k, MOMENT)
        np.testing.assert_array_equal(found.pruned, np.flatnonzero(flags)[:k])
        np.testing.assert_array_equal(found.grown, np.flatnonzero(~flags)[:k])


@pytest.mark.parametrize("regrow", [False, True])
@pytest.mark.parametrize("prune", PRUNES, ids=str)
@pytest.mark.parametrize("density", [0, 1])
def test_an_empty_or_a_full_weight_stays_as_it_is(prune: Criterion, regrow: bool, density: int) -> None:
    layer = layer_of(np.full(9, 0.5 * density), gradients=np.arange(9), active=np.full(9, bool(density)))
    count = 4 * density
    found = swap(prune, Gradient(), regrow=regrow)(layer, count, MOMENT)
    assert len(found.pruned) == len(found.grown) == 0
    assert found.returned == (count if regrow else 0)  # a full weight takes back all it dropped


def test_the_sign_of_a_gradient_plays_no_part_in_growth() -> None:
    layer = layer_of([1.0, 0, 0, 0], gradients=[9, -3, 2, -2])
    np.testing.assert_array_equal(swap(Magnitude(), Gradient())(layer, 1, MOMENT).grown, [1])


def test_mest_adds_the_gradient_to_the_magnitude() -> None:
    layer = layer_of([1.0, -2.0, 3.0], gradients=[10, 1, -0.5])
    for factor, dropped in ((0.0, 0), (0.2, 1), (1.0, 1), (5.0, 2)):
        criterion = MagnitudeAndGradient(gradient_factor=factor)
        np.testing.assert_array_equal(drop_positions(criterion, layer, 1, MOMENT), [dropped])


# RigL's original code: what is dropped may return.


def test_rigl_what_returns_is_in_neither_list() -> None:
    layer = layer_of(
        [0.1, 0.2, 5.0, 0, 0], gradients=[9.0, 0.0, 0.0, 1.0, 0.5], active=[True, True, True, False, False]
    )
    out = swap(Magnitude(), Gradient())(layer, 2, MOMENT)
    assert (out.pruned.tolist(), out.grown.tolist(), out.returned) == ([0, 1], [3, 4], 0)
    back = swap(Magnitude(), Gradient(), regrow=True)(layer, 2, MOMENT)
    assert (back.pruned.tolist(), back.grown.tolist(), back.returned) == ([1], [3], 1)


@given(update=updates())
def test_rigl_that_may_return_ends_with_the_best_of_all_candidates(update: tuple[Layer, int, Moment]) -> None:
    layer, count, moment = update
    found = swap(Magnitude(), Gradient(), regrow=True)(layer, count, moment)
    after = layer.active.copy()
    after[found.pruned], after[found.grown] = False, True
    kept = layer.active.copy()
    kept[first(abs(layer.weights), layer.active, count)] = False
    grown = first(-abs(layer.gradients), ~kept, count)
    kept[grown] = True
    np.testing.assert_array_equal(after, kept)


# SET.


def test_set_prunes_negatives_closest_to_zero_not_the_most_negative() -> None:
    weights = np.array([-5.0, -0.1, -3.0, -0.2, 4.0, 0.3, 2.0, 0.4])
    dropped = drop_positions(SignedMagnitude(), layer_of(weights), 4, MOMENT)
    np.testing.assert_array_equal(weights[dropped], [-0.1, -0.2, 0.3, 0.4])


@settings(max_examples=200)
@given(layers(most=60), st.data())
def test_set_removes_exactly_the_fraction(layer: Layer, data: st.DataObject) -> None:
    """The widely copied version removes about half of all weights whatever the rate."""
    active = int(layer.active.sum())
    count = data.draw(st.integers(0, active))
    dropped = drop_positions(SignedMagnitude(), layer, count, MOMENT)
    assert len(dropped) == count
    positive = layer.active & (layer.weights >= 0)
    for sign in (positive, layer.active & (layer.weights < 0)):
        gone = np.intersect1d(dropped, np.flatnonzero(sign))
        assert abs(len(gone) * active - count * int(sign.sum())) <= active / 2
        kept = np.setdiff1d(np.flatnonzero(sign), gone)
        if gone.size and kept.size:
            assert abs(layer.weights[gone]).max() <= abs(layer.weights[kept]).min()


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.data())
def test_signs_give_up_their_share_rounded_half_up(positive: int, negative: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, positive + negative))
    share = share_by_sign(count, positive, negative)
    assert 0 <= share <= positive
    assert 0 <= count - share <= negative
    if positive + negative:
        twice = 2 * (share * (positive + negative) - count * positive)  # within ±(positive + negative)
        assert -(positive + negative) < twice <= positive + negative


# Soft magnitude.


def inclusion(probabilities: NDArray[Any], keep: int) -> Counter[tuple[int, ...]]:
    """The probability of each set of kept positions when they are drawn one by one."""
    found: Counter[tuple[int, ...]] = Counter()
    for order in itertools.permutations(range(len(probabilities)), keep):
        left, chance = 1.0, 1.0
        for i in order:
            chance *= probabilities[i] / left
            left -= probabilities[i]
        found[tuple(sorted(order))] += chance  # type: ignore[assignment]
    return found


@pytest.mark.parametrize(("temperature", "keep"), [(1.0, 1), (1.0, 2), (3.0, 2), (0.5, 3)])
def test_soft_magnitude_keeps_by_sampling_without_replacement(temperature: float, keep: int) -> None:
    weights = np.array([0.4, -0.8, 1.0, -1.3])
    layer, draws = layer_of(weights), 4000
    criterion = SoftMagnitude(temperature=temperature)
    seen: Counter[tuple[int, ...]] = Counter()
    for step in range(draws):
        dropped = drop_positions(criterion, layer, 4 - keep, Moment(step=step, random=Random(1)))
        seen[tuple(sorted(set(range(4)) - set(dropped.tolist())))] += 1
    powers = abs(weights) ** temperature
    for kept, chance in inclusion(powers / powers.sum(), keep).items():
        assert abs(seen[kept] / draws - chance) < 4.5 * math.sqrt(chance * (1 - chance) / draws)


@given(moments, st.integers(1, 20), st.integers(1, 20), st.data())
def test_soft_magnitude_never_keeps_a_zero_before_another(
    moment: Moment, zeros: int, others: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations([0.0] * zeros + [1e-30] * others))
    layer = layer_of(order, active=np.ones(zeros + others, np.bool_))
    dropped = drop_positions(SoftMagnitude(), layer, zeros, moment)
    np.testing.assert_array_equal(dropped, np.flatnonzero(layer.weights == 0))
    some = drop_positions(SoftMagnitude(), layer, data.draw(st.integers(0, zeros)), moment)
    assert np.isin(some, dropped).all()


@pytest.mark.parametrize("temperature", [1e-9, 1.0, 3.0, 1e9])
def test_soft_magnitude_prunes_zeros_by_chance_and_before_all_others(temperature: float) -> None:
    """Two of six weights that were grown and have not moved go: each pair as often as any other."""
    layer = layer_of([0.0, 5e-324, 0.0, 0.0, 1e-30, 0.0, 2.0, 0.0, 0.0], active=np.ones(9, np.bool_))
    draws, criterion = 3000, SoftMagnitude(temperature=temperature)
    seen = Counter(
        tuple(drop_positions(criterion, layer, 2, Moment(step=step, random=Random(1))).tolist())
        for step in range(draws)
    )
    assert set(seen) == set(itertools.combinations(np.flatnonzero(layer.weights == 0).tolist(), 2))
    chance = 1 / len(seen)
    assert all(abs(n / draws - chance) < 4.5 * math.sqrt(chance / draws) for n in seen.values())
    found = drop_positions(criterion, layer, 6, MOMENT)
    np.testing.assert_array_equal(found, np.flatnonzero(layer.weights == 0))


def test_published_soft_magnitude_fails_beyond_16_million_entries_and_this_does_not() -> None:
    assert "multinomial" not in inspect.getsource(SoftMagnitude.__call__)
    size = 2**24 + 3
    whole = np.broadcast_to(np.float32(0.5), size)  # one element, however long
    layer = Layer(name="w", weights=whole, gradients=None, active=np.broadcast_to(np.True_, size))
    scores = SoftMagnitude()(layer, slice(2**24 - 2, size, 1), MOMENT.draws("w", "prune"))
    assert scores.shape == (5,)
    assert len(set(scores)) == 5


def test_a_low_temperature_forgets_and_a_high_one_obeys_the_magnitude() -> None:
    weights = np.linspace(0.01, 1, 400)
    layer = layer_of(weights)
    smallest = np.arange(200)
    agree = [
        np.isin(drop_positions(SoftMagnitude(temperature=t), layer, 200, MOMENT), smallest).mean()
        for t in (0.01, 3.0, 1000.0)
    ]
    assert agree[0] < 0.6 < agree[1] < 0.99 < agree[2]


# Numbers that are not.


@settings(max_examples=150)
@given(layers(), st.sampled_from([np.nan, np.inf, -np.inf]), st.booleans(), st.data())
def test_what_is_not_finite_is_named_with_weight_step_and_position(
    layer: Layer, bad: float, in_gradient: bool, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, layer.active.size - 1))
    assert layer.gradients is not None
    array = layer.gradients if in_gradient else layer.weights
    array[position] = bad
    with pytest.raises(TopologyError) as caught:
        expect_finite(frozen(layer), MOMENT, gradients=True)
    what = "gradient" if in_gradient else "value"
    start = f"weight 'head1/a/fc.weight', step 300: {what} {bad} at flat position {position}, expected"
    assert str(caught.value).startswith(start)
    if in_gradient:
        expect_finite(layer, MOMENT, gradients=False)  # nothing reads it


@pytest.mark.parametrize("position", [0, 2**16 - 1, 2**16, 2**17, 199_999])
def test_what_is_not_finite_is_found_in_any_chunk(position: int) -> None:
    gradients = np.zeros(200_000, np.float32)
    gradients[position] = np.nan
    layer = Layer(name="w", weights=np.zeros_like(gradients), gradients=gradients, active=gradients == 1)
    with pytest.raises(TopologyError, match=f"gradient nan at flat position {position},"):
        expect_finite(layer, MOMENT, gradients=True)


def test_the_largest_finite_numbers_are_finite() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        big = np.full(3, np.finfo(dtype).max)
        expect_finite(
            Layer(name="w", weights=big, gradients=-big, active=np.ones(3, np.bool_)), MOMENT, gradients=True
        )


# Declarations.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftMagnitude(temperature=0), "temperature: input should be greater than 0"),
        (lambda: SoftMagnitude(temperature=math.inf), "temperature: input should be a finite number"),
        (
            lambda: MagnitudeAndGradient(gradient_factor=-1),
            "gradient_factor: input should be greater",
        ),
        (lambda: Magnitude(temperature=3), "magnitude.temperature: unknown key"),
    ],
)
def test_a_criterion_is_checked_at_birth(make: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert message in str(caught.value)


def test_criteria_say_whether_they_read_the_gradient() -> None:
    for criterion in (*PRUNES, *GROWS):
        layer = layer_of([1.0, -2.0])
        if criterion.uses_gradient or criterion.kind == "momentum":
            with pytest.raises(AssertionError):
                scored(criterion, layer, MOMENT, "prune")
        else:
            assert scored(criterion, layer, MOMENT, "prune").shape == (2,)


def test_no_policy_draws_from_a_global_generator() -> None:
    source = inspect.getsource(policies)
    assert "np.random" not in source
    assert "default_rng" not in source
