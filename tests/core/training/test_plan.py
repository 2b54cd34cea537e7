"""Plans: how long, in which phases, and which choices go together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nt_models
from nt_core import (
    PRESETS,
    Dense,
    Dynamic,
    EnsembleSpec,
    ExploreRefine,
    GradualPruning,
    Independent,
    MultiHead,
    OneRun,
    RunSpec,
    Single,
    SpecError,
    Static,
)
from nt_core.cost import cost
from nt_core.training import LearningRate, Phase, Timeline

GRAPH = nt_models.mlp(inputs=6, hidden=(16, 16), classes=3)
CONSTANT = LearningRate(schedule="constant")


def edst(plan=None, **changes):
    choices = {"topology": Dynamic(sparsity=0.8), "plan": plan or ExploreRefine()}
    return EnsembleSpec(graph=GRAPH, **choices | changes)


def test_edst_is_the_papers_recipe():
    """FreeTickets: 150 epochs at the base rate, then 100 for each member: half at 0.1, half at 0.01 of it."""
    timeline = edst().timeline(steps_per_epoch=10)
    assert [phase.steps for phase in timeline.phases] == [1500, 1000, 1000, 1000]
    assert timeline.escapes == {2500: 0.8, 3500: 0.8}
    steps = (0, 1499, 1500, 1999, 2000, 2499, 2500, 4499)
    assert [timeline.factor(LearningRate(), step) for step in steps] == [
        1,
        1,
        0.1,
        0.1,
        0.01,
        0.01,
        0.1,
        0.01,
    ]
    seven = ExploreRefine(members=7).timeline(steps_per_epoch=1)
    assert (seven.total_steps, len(seven.escapes)) == (850, 6)


@given(
    total=st.integers(40, 5000),
    members=st.integers(2, 5),
    explore=st.floats(0.5, 3),
    escape=st.floats(0.01, 1),
)
def test_phases_add_up_and_every_refinement_but_the_last_ends_in_an_escape(total, members, explore, escape):
    plan = ExploreRefine(steps=total, explore=explore, refine=1, members=members, escape=escape)
    timeline = plan.timeline(steps_per_epoch=7)
    assert timeline.total_steps == total
    assert len(timeline.phases) == members + 1
    assert list(timeline.escapes.values()) == [escape] * (members - 1)
    assert all(0 < step < total for step in timeline.escapes)


def test_one_run_follows_the_recipes_schedule():
    timeline = EnsembleSpec(graph=GRAPH, plan=OneRun(steps=10)).timeline(steps_per_epoch=3)
    recipe = LearningRate(warmup=0.2)
    assert [timeline.factor(recipe, step) for step in range(10)] == [
        recipe.at(step, 10) for step in range(10)
    ]


def test_warm_up_holds_in_phases_too():
    timeline = Timeline(phases=(Phase(steps=4, factors=(1.0,)), Phase(steps=4, factors=(0.1,))))
    factors = [timeline.factor(LearningRate(warmup=0.25), step) for step in range(5)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 1, 0.1])


def test_the_papers_step_decay():
    """×0.1 at 25, 50 and 75 %."""
    steps = LearningRate(schedule="steps")
    assert [steps.at(step, 8) for step in range(8)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


def test_the_papers_cosine_with_warm_up():
    """10 % linear warm-up, then down to 10 %."""
    cosine = LearningRate(warmup=0.1, final=0.1)
    assert cosine.at(0, 100) == pytest.approx(1 / 11)
    assert [cosine.at(step, 100) for step in (10, 55, 100)] == pytest.approx([1.0, 0.55, 0.1])


@pytest.mark.parametrize(
    ("sparsity", "extend", "steps"),
    [
        (0.8, "auto", 500),
        (0.9, "auto", 1000),
        (0.7, "auto", 333),
        (0.0, "auto", 100),
        (0.8, 5, 500),
        (0.8, 2.5, 250),
    ],
)
def test_sparse_training_is_prolonged_exactly(sparsity, extend, steps):
    """In floating point 1/(1 − 0.8) is a little more than 5."""
    plan = OneRun(steps=100, extend=extend)
    spec = EnsembleSpec(graph=GRAPH, topology=Static(sparsity=sparsity), plan=plan)
    assert spec.timeline(steps_per_epoch=1).total_steps == steps


@pytest.mark.parametrize("topology", [Dense(), GradualPruning(sparsity=0.9)], ids=lambda each: each.kind)
def test_what_starts_dense_is_not_prolonged(topology):
    spec = EnsembleSpec(graph=GRAPH, topology=topology, plan=OneRun(epochs=3, extend="auto"))
    assert spec.timeline(steps_per_epoch=10).total_steps == 30
    with pytest.raises(SpecError, match=r"plan.extend: expected at most 1/\(1 − sparsity\) = 1, found 1.5"):
        spec.replace(plan=OneRun(epochs=3, extend=1.5))


def test_no_training_is_prolonged_beyond_the_limit():
    with pytest.raises(SpecError, match=r"plan.extend: .* = 5, found 5.1 .* lower it, or write auto"):
        edst(OneRun(steps=100, extend=5.1))
    with pytest.raises(SpecError, match="extend"):
        OneRun(extend=0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: edst(topology=Dense()), "topology: expected dynamic .* found dense"),
        (lambda: edst(topology=Static(sparsity=0.5)), "topology: expected dynamic .* found static"),
        (lambda: edst(structure=Independent(count=3)), "structure: expected single .* found independent"),
        (
            lambda: edst(structure=MultiHead(split=1, heads=3)),
            "structure: expected single .* found multi_head",
        ),
        (lambda: ExploreRefine(escape=0), "escape: .*greater than 0"),
        (lambda: ExploreRefine(escape=1.5), "escape: .*less than or equal to 1"),
        (lambda: ExploreRefine(members=1), "members: .*greater than or equal to 2"),
        (lambda: ExploreRefine(epochs=1, steps=1), "expected epochs or steps, found both"),
        (lambda: edst(ExploreRefine(steps=7)).timeline(1), "plan: 7 steps are too few for .* 3 refinements"),
        (lambda: turns(3, 2), "plan.at_once: expected a divisor of the 3 members, found 2; choose 1 to 3"),
        (lambda: turns(3, 6), "plan.at_once: expected a divisor of the 3 members, found 6; choose 1 to 3"),
        (lambda: edst(OneRun(at_once=1)), "plan.at_once: expected structure independent, found single"),
        (
            lambda: turns(3, 1, GradualPruning(sparsity=0.5)),
            "plan.at_once: expected topology.scope layer, found global",
        ),
        (lambda: Independent(count=3, only=(1, 4)), r"structure.only: .* from 1 to 3, found \(1, 4\)"),
        (lambda: Independent(count=3, only=(2, 1)), r"structure.only: expected ascending"),
        (lambda: Independent(count=3, only=()), r"structure.only: "),
        (lambda: OneRun(epochs=1).replace(epochs=None).total_steps(5), "neither epochs nor steps are given"),
    ],
)
def test_what_does_not_go_together_is_an_error(make, message):
    with pytest.raises(SpecError, match=message):
        make()


def turns(members, at_once, topology=None):
    topology = topology or Dynamic(sparsity=0.8)
    return EnsembleSpec(
        graph=GRAPH, structure=Independent(count=members), topology=topology, plan=OneRun(at_once=at_once)
    )


def test_groups_together_are_the_whole():
    """Largest remainders give some member a connection more: a member alone keeps the whole's count."""
    spec = turns(4, 2)
    first, second = spec.turns
    assert [first.structure.numbers, second.structure.numbers] == [(1, 2), (3, 4)]
    assert dict(first.counts) | dict(second.counts) == dict(spec.counts)
    assert [p.name for turn in spec.turns for p in turn.layout.weights] == [
        p.name for p in spec.layout.weights
    ]
    alone = EnsembleSpec(graph=GRAPH, structure=Independent(count=4), topology=Static(sparsity=0.831))
    assert len({sum(turn.counts.values()) for turn in alone.replace(plan=OneRun(at_once=1)).turns}) > 1


def test_a_plan_without_a_kind_is_one_run():
    run = RunSpec(graph={"name": "mlp"}, plan={"epochs": 3})
    assert run.plan == OneRun(epochs=3)
    assert EnsembleSpec.from_dict(edst().to_dict()) == edst()


def test_edst_costs_one_network_to_train_and_m_to_use():
    spec = PRESETS["edst"](GRAPH)
    one = cost(spec.replace(plan=OneRun()))
    three = cost(spec)
    assert spec.result.structure == Independent(count=3)
    assert three.flops_training_step == pytest.approx(one.flops_training_step, rel=0.01)
    assert three.flops_inference == pytest.approx(3 * one.flops_inference, rel=0.01)
    assert three.weights_total == 3 * one.weights_total
    dense = spec.replace(topology=Dense(), plan=OneRun(), structure=Single())
    assert dense.result == dense
