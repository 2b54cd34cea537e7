from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import nt_models
from nt_core.errors import TopologyError
from nt_core.graph import Weight
from nt_core.masks import Mask, Moment
from nt_core.policies import AtRandom, Gradient, Layer, Magnitude, Momentum, SignedMagnitude, Swap, swap
from nt_core.random import Random
from nt_core.reference import value_and_gradients
from nt_core.spec import PRESETS, EnsembleSpec
from nt_core.structure import MultiHead
from nt_core.testing.data import random_input
from nt_core.topology import (
    DeclaredTopology,
    DropFraction,
    Dynamic,
    GradualPruning,
    Semantics,
    draw,
    initial_masks,
    initial_values,
    share_of,
    update,
)
from nt_core.topology.schedules import SCHEDULES
from tests.core.brute_force import asked, expected_global_drop, expected_global_swap, expected_swap
from tests.core.strategies import GROWS, PRUNES, frozen, layer_lists

RETURN = Semantics(regrow="return")
MLP = nt_models.mlp(inputs=6, hidden=(8,), classes=3)

dynamics = st.builds(
    Dynamic,
    sparsity=st.just(0.5),
    prune=st.sampled_from(PRUNES),
    grow=st.sampled_from(GROWS),
    drop_fraction=st.builds(
        DropFraction,
        start=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.29, 0.5, 1.0])),
        schedule=st.sampled_from(list(SCHEDULES)),
        until=st.sampled_from([0.75, 1.0]),
    ),
    semantics=st.sampled_from([Semantics(), RETURN]),
)


def run(
    topology: DeclaredTopology,
    layers: Sequence[Layer],
    *,
    step: int = 0,
    total: int = 100,
    targets: Mapping[str, int] | None = None,
    **more: Any,
) -> Mapping[str, Swap]:
    moment = Moment(step=step, random=Random(5))
    return update(topology, layers, moment, total_steps=total, targets=targets or {}, **more)


def assert_same(found: Swap, expected: Swap) -> None:
    np.testing.assert_array_equal(found.pruned, expected.pruned)
    np.testing.assert_array_equal(found.grown, expected.grown)
    assert found.returned == expected.returned


def active(layers: Sequence[Layer]) -> int:
    return sum(int(layer.active.sum()) for layer in layers)


# How many.


@settings(max_examples=500)
@given(st.integers(0, 100), st.integers(0, 2), st.integers(0, 10**12))
def test_a_decimal_fraction_takes_its_share_in_spite_of_rounding(digits: int, zeros: int, count: int) -> None:
    text = Decimal(digits) / 10 ** (2 + zeros)
    assert share_of(count, float(text)) == math.floor(Fraction(text) * count)


@pytest.mark.parametrize(
    ("count", "fraction", "share"),
    [(100, 0.29, 29), (10**8, 0.29, 29 * 10**6), (10, 0.7 * 0.1, 0), (3, 1 / 3, 1), (7, 1.0, 7), (7, 0.0, 0)],
)
def test_float_traps_take_the_share_that_is_meant(count: int, fraction: float, share: int) -> None:
    assert share_of(count, fraction) == share


@settings(max_examples=200)
@given(st.integers(0, 100), st.integers(0, 2), st.integers(0, 10**12))
def test_a_share_is_rounded_as_declared(digits: int, zeros: int, count: int) -> None:
    fraction = Decimal(digits) / 10 ** (2 + zeros)
    exact = Fraction(str(fraction)) * count
    assert share_of(count, float(fraction), "ceil") == math.ceil(exact)
    assert share_of(count, float(fraction), "nearest") == math.floor(exact + Fraction(1, 2))


@pytest.mark.parametrize("scope", ["layer", "global", "momentum"])
def test_every_scope_rounds_as_declared(scope: Any) -> None:
    """Half of five connections in each of two weights is 2 or 3; of all ten it is 5."""
    arrays = {"weights": np.arange(8.0), "gradients": np.ones(8), "momentum": np.ones(8)}
    layers = [Layer(name=name, active=np.arange(8) >= 3, **arrays) for name in "ab"]
    for rounding, each in {"floor": 2, "ceil": 3, "nearest": 3}.items():
        topology = Dynamic(sparsity=0.5, grow=Momentum(), scope=scope, semantics=Semantics(rounding=rounding))
        goes = sum(len(swap.pruned) for swap in run(topology, layers, fraction=0.5).values())
        assert goes == (5 if scope == "global" else 2 * each)
        assert topology.exchanged(5, 8) == topology.chosen(5, 8) == each


@given(st.integers(0, 10**9), st.floats(0, 1))
def test_a_share_is_the_floor_of_the_product(count: int, fraction: float) -> None:
    share, product = share_of(count, fraction), Fraction(fraction) * count
    assert 0 <= share <= count
    assert share - product < 1e-9 + 1e-13 * count
    assert product - share < 1


@settings(max_examples=150)
@given(dynamics, layer_lists(), st.integers(0, 100))
def test_each_weight_replaces_the_share_that_the_schedule_says(
    topology: Dynamic, layers: list[Layer], step: int
) -> None:
    drop = topology.drop_fraction
    fraction = SCHEDULES[drop.schedule](drop.start, step, round(100 * drop.until))
    regrow = topology.semantics == RETURN
    found = run(topology, [frozen(layer) for layer in layers], step=step)
    assert list(found) == [layer.name for layer in layers]
    for layer in layers:
        count = int(layer.active.sum())
        one = found[layer.name]
        assert len(one.pruned) == len(one.grown)
        moment = Moment(step=step, random=Random(5))
        goes = asked(topology.prune, [layer], share_of(count, fraction), moment)
        possible = goes if regrow else min(goes, layer.active.size - count)
        assert len(one.pruned) + one.returned == possible
        assert_same(one, expected_swap(topology.prune, topology.grow, layer, goes, regrow, moment))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_decayed_drop_fraction_is_used(schedule: Any) -> None:
    """Published code computes the decayed rate and goes on with the first one."""
    topology = Dynamic(sparsity=0.5, drop_fraction=DropFraction(start=0.5, schedule=schedule))
    weights = np.where(np.arange(2000) < 1000, 1.0, 0.0)
    layer = Layer(name="w", weights=weights, gradients=np.ones(2000), active=weights != 0)
    counts = [len(run(topology, [layer], step=step)["w"].pruned) for step in range(0, 101, 10)]
    assert counts[0] == 500
    assert counts[5] == 250
    assert counts[-1] == 0
    assert counts == sorted(set(counts), reverse=True)


@given(layer_lists())
def test_rigl_changes_nothing_after_three_quarters(layers: list[Layer]) -> None:
    topology = Dynamic(sparsity=0.5, drop_fraction=DropFraction(start=1.0, schedule="constant", until=0.75))
    for step in (75, 76, 100):
        found = run(topology, layers, step=step)
        assert all(not len(s.pruned) and not len(s.grown) and not s.returned for s in found.values())


@given(dynamics, layer_lists(fewest=2), st.randoms(use_true_random=False))
def test_what_changes_in_a_weight_does_not_depend_on_the_others(
    topology: Dynamic, layers: list[Layer], random: Any
) -> None:
    together = run(topology, layers, step=10)
    shuffled = random.sample(layers, len(layers))
    for found in (run(topology, shuffled, step=10), *(run(topology, [layer], step=10) for layer in layers)):
        for name, one in found.items():
            assert_same(one, together[name])


# Globally.


@settings(max_examples=250)
@given(dynamics, layer_lists(most=12), st.integers(0, 100))
def test_global_swaps_are_those_of_all_weights_laid_end_to_end(
    topology: Dynamic, layers: list[Layer], step: int
) -> None:
    topology = topology.replace(scope="global")
    found = run(topology, [frozen(layer) for layer in layers], step=step)
    count = share_of(active(layers), topology.drop_fraction.at(step, 100))
    regrow = topology.semantics == RETURN
    moment = Moment(step=step, random=Random(5))
    count = asked(topology.prune, layers, count, moment)
    expected = expected_global_swap(topology.prune, topology.grow, layers, count, regrow, moment)
    for layer, one in zip(layers, expected, strict=True):
        assert_same(found[layer.name], one)
        assert layer.active[found[layer.name].pruned].all()
        assert not layer.active[found[layer.name].grown].any()
    pruned, grown = (sum(len(getattr(s, part)) for s in found.values()) for part in ("pruned", "grown"))
    assert pruned == grown


def test_global_ties_go_to_the_earlier_weight_then_to_the_lowest_position() -> None:
    layers = [
        Layer(name=name, weights=np.ones(4), gradients=np.ones(4), active=np.arange(4) < 2)
        for name in ("z", "a")
    ]
    found = run(Dynamic(sparsity=0.5, scope="global", drop_fraction=DropFraction(start=0.75)), layers)
    assert [found[name].pruned.tolist() for name in "za"] == [[0, 1], [0]]
    assert [found[name].grown.tolist() for name in "za"] == [[2, 3], [2]]


def test_set_globally_takes_its_share_of_each_sign_over_all_weights() -> None:
    every, nothing = np.ones(4, np.bool_), np.zeros(9, np.bool_)
    layers = [
        Layer(name="positive", weights=np.array([4.0, 0.1, 3.0, 0.2]), gradients=None, active=every),
        Layer(name="negative", weights=np.array([-4.0, -5.0, -3.0, -6.0]), gradients=None, active=every),
        Layer(name="free", weights=np.zeros(9), gradients=None, active=nothing),
    ]
    topology = Dynamic(
        sparsity=0.5,
        scope="global",
        prune=SignedMagnitude(),
        grow=AtRandom(),
        drop_fraction=DropFraction(start=0.5),
    )
    found = run(topology, layers)
    assert [found[layer.name].pruned.tolist() for layer in layers] == [[1, 3], [0, 2], []]


# Gradual pruning.


@st.composite
def prunings(draw: st.DrawFn) -> tuple[GradualPruning, list[Layer], dict[str, int], int]:
    begin, end = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    topology = GradualPruning(
        sparsity=0.5,
        prune=draw(st.sampled_from([prune for prune in PRUNES if not prune.only_below_zero])),
        begin=begin,
        end=draw(st.sampled_from([begin, end])),
        interval=draw(st.integers(1, 12)),
        scope=draw(st.sampled_from(["layer", "global"])),
    )
    layers = [full(layer) for layer in draw(layer_lists(most=15))]
    targets = {layer.name: draw(st.integers(0, layer.active.size)) for layer in layers}
    return topology, layers, targets, draw(st.integers(1, 60))


def full(layer: Layer) -> Layer:
    return Layer(
        name=layer.name,
        weights=layer.weights + 1,
        gradients=layer.gradients,
        active=np.ones_like(layer.active),
    )


def pruned(layer: Layer, change: Swap) -> Layer:
    flags = layer.active.copy()
    flags[change.pruned] = False
    weights = np.where(flags, layer.weights, 0).astype(layer.weights.dtype)
    return frozen(Layer(name=layer.name, weights=weights, gradients=layer.gradients, active=flags))


@settings(max_examples=120)
@given(prunings())
def test_gradual_pruning_goes_from_dense_to_exactly_its_total_and_never_grows(drawn: Any) -> None:
    topology, layers, targets, total = drawn
    size, goal = active(layers), sum(targets.values())
    first, last = topology.window(total)
    for step in range(1, total + 1):
        if not topology.due(step, total):
            continue
        assert first <= step <= last
        found = run(topology, layers, step=step, total=total, targets=targets)
        assert all(not len(change.grown) and not change.returned for change in found.values())
        moment = Moment(step=step, random=Random(5))
        if topology.scope == "global":
            count = sum(len(change.pruned) for change in found.values())
            for layer, drop in zip(
                layers, expected_global_drop(topology.prune, layers, count, moment), strict=True
            ):
                np.testing.assert_array_equal(found[layer.name].pruned, drop)
        layers = [pruned(layer, found[layer.name]) for layer in layers]
        gone = (size - active(layers)) / max(1, size - goal)
        if step < last:
            share = 1 - (1 - (step - first) / (last - first)) ** 3
            assert abs(gone - share) * (size - goal) <= (0.5 + 1e-9) * (
                1 if topology.scope == "global" else len(layers)
            )
    assert active(layers) == goal
    if topology.scope == "layer":
        assert {layer.name: int(layer.active.sum()) for layer in layers} == targets


def test_pruning_once_more_prunes_nothing() -> None:
    layer = Layer(name="w", weights=np.arange(8.0), gradients=None, active=np.arange(8) >= 5)
    for scope in ("layer", "global"):
        topology = GradualPruning(sparsity=0.5, scope=scope)
        for goal in (3, 4, 8):
            assert not len(run(topology, [layer], step=100, targets={"w": goal})["w"].pruned)


# What cannot be.


@settings(max_examples=150)
@given(
    dynamics,
    st.sampled_from(["layer", "global"]),
    layer_lists(),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.booleans(),
    st.data(),
)
def test_a_number_that_is_not_finite_anywhere_changes_nothing_and_is_named(
    topology: Dynamic, scope: Any, layers: list[Layer], bad: float, in_gradient: bool, data: st.DataObject
) -> None:
    topology = topology.replace(scope=scope)
    victim = data.draw(st.sampled_from(layers))
    array = victim.gradients if in_gradient else victim.weights
    assert array is not None
    position = data.draw(st.integers(0, array.size - 1))
    array[position] = bad
    before = [(layer.weights.copy(), layer.active.copy()) for layer in layers]
    if in_gradient and not (topology.prune.uses_gradient or topology.grow.uses_gradient):
        run(topology, layers, step=40)  # nothing reads it
        return
    with pytest.raises(TopologyError) as caught:
        run(topology, [frozen(layer) for layer in layers], step=40)
    for part in (repr(victim.name), "step 40", f"{bad} at flat position {position}", "left as it was"):
        assert part in str(caught.value)
    for layer, (weights, flags) in zip(layers, before, strict=True):
        np.testing.assert_array_equal(layer.weights, weights)
        np.testing.assert_array_equal(layer.active, flags)


def test_a_policy_of_ones_own_is_used_for_each_weight() -> None:
    seen = []

    def oldest_first(layer: Layer, count: int, moment: Moment) -> Swap:
        seen.append((layer.name, count, moment.step))
        return Swap(pruned=np.flatnonzero(layer.active)[:count], grown=np.flatnonzero(~layer.active)[:count])

    layers = [
        Layer(name=name, weights=np.ones(6), gradients=np.ones(6), active=np.arange(6) % 2 == 0)
        for name in "ab"
    ]
    topology = Dynamic(sparsity=0.5, drop_fraction=DropFraction(start=0.7, schedule="constant"))
    found = run(topology, layers, step=20, policy=oldest_first)
    assert seen == [("a", 2, 20), ("b", 2, 20)]
    assert found["b"].pruned.tolist() == [0, 2]
    assert found["b"].grown.tolist() == [1, 3]


@pytest.mark.parametrize(
    "topology", [Dynamic(sparsity=0.5, scope="global"), GradualPruning(sparsity=0.5)], ids=lambda t: t.kind
)
def test_a_policy_that_could_not_be_used_is_an_error(topology: Any) -> None:
    layer = Layer(name="w", weights=np.ones(2), gradients=np.ones(2), active=np.ones(2, np.bool_))
    with pytest.raises(TopologyError, match="policy: expected a dynamic topology with scope 'layer'"):
        run(topology, [layer], targets={"w": 1}, policy=swap(Magnitude(), Gradient()))


# A whole training in NumPy.

Arrays = dict[str, NDArray[Any]]
STEPS = 20


class Run:
    """SGD with momentum on one batch, masks applied after each step, an update every third."""

    def __init__(self, spec: EnsembleSpec, seed: int) -> None:
        self.spec, self.random = spec, Random(seed)
        self.targets = spec.topology.final_counts(spec.layout)
        self.values: Arrays = dict(initial_values(spec.layout, seed))
        self.masks: dict[str, Mask] = dict(initial_masks(spec.topology, spec.layout, seed))
        self.momentum = {name: np.zeros_like(value) for name, value in self.values.items()}
        self.x = random_input(spec.graph, 16, seed, np.float32)
        self.labels = np.arange(16) % spec.graph.output_shape[0]
        self.losses: list[float] = []
        self.apply_masks()

    def apply_masks(self) -> None:
        for name, mask in self.masks.items():
            self.values[name] *= mask.dense()
            self.momentum[name] *= mask.dense()

    def steps(self) -> Iterator[tuple[int, Mapping[str, Swap]]]:
        for step in range(1, STEPS + 1):
            gradients = self.gradients()
            for name, gradient in gradients.items():
                self.momentum[name] = 0.9 * self.momentum[name] + gradient
                self.values[name] = self.values[name] - 0.05 * self.momentum[name]
            self.apply_masks()
            topology = self.spec.topology
            if topology.due(step, STEPS):
                yield step, self.update(topology, step, gradients)
                self.apply_masks()

    def gradients(self) -> Arrays:
        result = value_and_gradients(self.spec.layout, self.values, self.x, np.zeros(self.shape, np.float32))
        p = np.exp(result.logits - result.logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        rows = np.arange(16)
        self.losses.append(float(-np.log(p[:, rows, self.labels]).mean()))
        p[:, rows, self.labels] -= 1
        return value_and_gradients(
            self.spec.layout, self.values, self.x, (p / 16 / len(p)).astype(np.float32)
        ).gradients

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.members, 16, *self.spec.graph.output_shape

    def update(self, topology: DeclaredTopology, step: int, gradients: Arrays) -> Mapping[str, Swap]:
        layers = [
            Layer(
                name=name,
                weights=self.values[name].reshape(-1),
                gradients=gradients[name].reshape(-1),
                active=mask.dense().reshape(-1),
            )
            for name, mask in self.masks.items()
        ]
        moment = Moment(step=step, random=self.random)
        found = update(topology, layers, moment, total_steps=STEPS, targets=self.targets)
        for name, change in found.items():
            self.masks[name] = self.masks[name].swap(change.pruned, change.grown)
        return found


def fast(preset: str) -> EnsembleSpec:
    spec = PRESETS[preset](nt_models.mlp(inputs=12, hidden=(10, 8, 6), classes=5))
    topology = spec.topology
    if isinstance(topology, Dynamic | GradualPruning):
        topology = topology.replace(interval=3)
    if isinstance(topology, Dynamic):
        topology = topology.replace(sparsity=0.6)
    return spec.replace(topology=topology)


@pytest.mark.parametrize("preset", ["set", "rigl", "rigl_paper", "neurotrails", "neurotrails_lm"])
def test_a_whole_dynamic_training_keeps_every_invariant(preset: str) -> None:
    run = Run(fast(preset), seed=3)
    counts = {name: mask.count for name, mask in run.masks.items()}
    assert counts == run.targets
    before, changed = dict(run.masks), 0
    for _, found in run.steps():
        for name, change in found.items():
            old, new = set(before[name].flat().tolist()), set(run.masks[name].flat().tolist())
            assert set(change.pruned.tolist()) == old - new
            assert set(change.grown.tolist()) == new - old
            assert run.masks[name].count == counts[name]
            assert (run.values[name].reshape(-1)[change.grown] == 0).all()
            changed += len(change.grown)
        before = dict(run.masks)
        for name, mask in run.masks.items():
            for array in (run.values[name], run.momentum[name]):
                assert mask.count >= np.count_nonzero(array)
                assert mask.count or not array.any()
    assert changed > 0
    assert run.losses[-1] < run.losses[0]
    for name, mask in run.masks.items():
        assert not run.values[name][~mask.dense()].any()
        assert not run.momentum[name][~mask.dense()].any()


def test_a_whole_gradual_pruning_ends_at_its_total() -> None:
    run = Run(fast("gradual_pruning"), seed=3)
    totals = [sum(mask.size for mask in run.masks.values())]
    assert totals == [sum(mask.count for mask in run.masks.values())]
    for _ in run.steps():
        totals.append(sum(mask.count for mask in run.masks.values()))  # noqa: PERF401
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] == sum(run.targets.values())
    assert len(totals) > 3


def test_the_same_seed_trains_to_the_same_bits_and_another_to_others() -> None:
    runs = [Run(fast("neurotrails_lm"), seed) for seed in (3, 3, 4)]
    for one in runs:
        for _ in one.steps():
            pass
    first, again, other = runs
    assert first.masks == again.masks
    assert first.losses == again.losses
    assert all((first.values[name] == again.values[name]).all() for name in first.values)
    assert first.masks != other.masks


def test_an_update_resumes_without_state() -> None:
    """Nothing but the step, the seed, weights and masks decides an update."""
    run = Run(fast("neurotrails"), seed=9)
    steps = run.steps()
    for _ in range(3):
        next(steps)
    values, masks = {n: v.copy() for n, v in run.values.items()}, dict(run.masks)
    gradients = run.gradients()
    assert isinstance(run.spec.topology, Dynamic)
    found = run.update(run.spec.topology, 12, gradients)
    resumed = Run(fast("neurotrails"), seed=9)
    resumed.values, resumed.masks = values, masks
    again = resumed.update(run.spec.topology, 12, gradients)
    for name, one in found.items():
        assert_same(again[name], one)


def test_heads_explore_apart() -> None:
    spec = fast("neurotrails")
    assert isinstance(spec.structure, MultiHead)
    run = Run(spec, seed=1)
    for _ in run.steps():
        pass
    heads = [run.masks[f"head{m}/hidden3/linear1.weight"] for m in (1, 2, 3)]
    assert len({mask.digest() for mask in heads}) == 3


# SNFS.


snfs = st.builds(
    Dynamic,
    sparsity=st.just(0.5),
    prune=st.sampled_from(PRUNES),
    grow=st.just(Momentum()),
    scope=st.just("momentum"),
    drop_fraction=st.builds(DropFraction, start=st.sampled_from([0.0, 0.3, 1.0])),
    semantics=st.sampled_from([Semantics(), RETURN]),
)


@settings(max_examples=150)
@given(snfs, layer_lists())
def test_snfs_redistribution_keeps_the_total_within_what_each_weight_has_room_for(
    topology: Dynamic, layers: list[Layer]
) -> None:
    found = run(topology, [frozen(layer) for layer in layers])
    moment = Moment(step=0, random=Random(5))
    goes = [
        asked(topology.prune, [w], share_of(active([w]), topology.drop_fraction.start), moment)
        for w in layers
    ]
    free = sum(int((~layer.active).sum()) for layer in layers)
    regrow = topology.semantics == RETURN
    total = sum(goes) if regrow else min(sum(goes), free)
    assert sum(len(one.pruned) + one.returned for one in found.values()) == total
    assert sum(len(one.pruned) for one in found.values()) == sum(len(one.grown) for one in found.values())
    for layer, most in zip(layers, goes, strict=True):
        one = found[layer.name]
        assert len(one.pruned) + one.returned <= most
        assert layer.active[one.pruned].all()
        assert not layer.active[one.grown].any()
        assert len(np.unique(one.grown)) == len(one.grown)


def test_snfs_divides_growth_by_the_mean_momentum_of_connections() -> None:
    rng = np.random.default_rng(0)

    def layer(name: str, momentum: float, room: int) -> Layer:
        flags = np.arange(100 + room) < 100
        smoothed = np.where(flags, momentum, 50.0) * rng.choice([-1, 1], flags.size)  # the idle play no part
        return Layer(name=name, weights=flags * 1.0, gradients=None, active=flags, momentum=smoothed)

    topology = Dynamic(sparsity=0.5, grow=Momentum(), scope="momentum", drop_fraction=DropFraction(start=0.4))
    found = run(topology, [layer("a", 1.0, 200), layer("b", 3.0, 200), layer("c", 0.0, 200)])
    assert {name: len(one.pruned) for name, one in found.items()} == {"a": 40, "b": 40, "c": 40}
    assert {name: len(one.grown) for name, one in found.items()} == {"a": 30, "b": 90, "c": 0}
    found = run(topology, [layer("a", 1.0, 200), layer("b", 3.0, 50), layer("c", 1.0, 200)])
    assert {name: len(one.grown) for name, one in found.items()} == {"a": 35, "b": 50, "c": 35}
    found = run(topology, [layer("a", 0.0, 200), layer("b", 0.0, 5)])  # nothing to go by
    assert {name: len(one.grown) for name, one in found.items()} == {"a": 75, "b": 5}


def test_snfs_momentum_that_is_not_finite_is_named() -> None:
    flags = np.array([True, False])
    layer = Layer(name="w", weights=flags * 1.0, gradients=None, active=flags, momentum=np.array([0, np.inf]))
    with pytest.raises(TopologyError, match="weight 'w', step 0: momentum inf at flat position 1"):
        run(Dynamic(sparsity=0.5, grow=Momentum()), [layer])


# Deep R.


def signs(name: str, size: int, seed: int = 5) -> NDArray[Any]:
    """The signs of the values that a weight starts from."""
    weight = Weight(name="weight", shape=(size, 1), role="kernel", init=("normal", 1.0))
    return np.sign(draw(weight, Random(seed).at(weight=name, purpose="initial"), slice(0, size, 1)))


@given(st.integers(1, 60), st.integers(0, 99), st.integers(1, 10**6))
def test_deep_r_drops_those_that_left_the_sign_of_their_initial_value_and_no_others(
    size: int, seed: int, step: int
) -> None:
    rng = np.random.default_rng(seed)
    flags = rng.random(size) < 0.4
    weights = np.where(flags, rng.choice([-1.0, 0.0, 1.0], size), 0)
    layer = Layer(name="w", weights=weights, gradients=None, active=flags)
    found = run(PRESETS["deep_r"](MLP).topology, [layer], step=step, total=10**7)["w"]
    flipped = np.flatnonzero(weights * signs("w", size) < 0)
    kept = min(len(flipped), int((~flags).sum()))
    np.testing.assert_array_equal(found.pruned, flipped[: len(found.pruned)])
    assert len(found.pruned) == len(found.grown) == kept


def test_deep_r_drops_nothing_at_the_start_and_never_what_has_just_grown() -> None:
    flags = np.arange(50) < 25
    for values in (signs("w", 50), np.zeros(50)):
        layer = Layer(name="w", weights=values * flags, gradients=None, active=flags)
        assert not len(run(PRESETS["deep_r"](MLP).topology, [layer])["w"].pruned)


def test_deep_r_takes_at_most_the_drop_fraction_the_furthest_first() -> None:
    away = -signs("w", 8) * np.array([1, 2, 3, 4, 0, 0, 0, 0])
    layer = Layer(name="w", weights=away, gradients=None, active=np.arange(8) < 4)
    topology = PRESETS["deep_r"](MLP).topology
    assert isinstance(topology, Dynamic)
    half = topology.replace(drop_fraction=DropFraction(start=0.5))
    np.testing.assert_array_equal(run(half, [layer])["w"].pruned, [2, 3])
