from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import nt_models
from nt_core.errors import AllocationError, GraphError, SpecError
from nt_core.spec import PRESETS, EnsembleSpec, FittedAverage
from nt_core.spec.ensemble import OneRun
from nt_core.structure import Independent, MultiHead, Single
from nt_core.testing.strategies import block_graphs, structures
from nt_core.topology import ERK, Dense, Dynamic, Explicit, GradualPruning, Static
from tests.core.strategies import plans, topologies

GRAPHS = {
    "mlp": nt_models.mlp(inputs=12, hidden=(10, 8, 6), classes=5),
    "wide_resnet": nt_models.wide_resnet(depth=10, width=1, classes=5, size=8),
}


@st.composite
def specs(draw: st.DrawFn) -> EnsembleSpec:
    graph = draw(block_graphs())
    return EnsembleSpec(
        graph=graph,
        structure=draw(structures(graph)),
        topology=draw(topologies(allocation=st.just(ERK()))),
        plan=draw(plans()),
        aggregation=draw(st.sampled_from(["mean_prob", "mean_logit", FittedAverage(held_out=0.25)])),
        loss=draw(st.sampled_from(["mean", "sum", None])),
    )


@settings(max_examples=150)
@given(specs())
def test_specs_survive_json_and_yaml_exactly(spec: EnsembleSpec) -> None:
    data = spec.to_dict()
    texts = (json.loads(json.dumps(data)), yaml.safe_load(yaml.safe_dump(data)))
    for again in (EnsembleSpec.from_dict(data), *(EnsembleSpec.from_dict(text) for text in texts)):
        assert again == spec
        assert again.to_dict() == data
        assert again.digest() == spec.digest()
        assert again.counts == spec.counts


@settings(max_examples=100)
@given(specs(), specs())
def test_digests_agree_exactly_where_specs_do(a: EnsembleSpec, b: EnsembleSpec) -> None:
    assert (a.digest() == b.digest()) == (a == b)


def test_a_graphs_origin_plays_no_part_in_the_digest() -> None:
    graph = GRAPHS["mlp"]
    spec = EnsembleSpec(graph=graph)
    assert spec.digest() == EnsembleSpec(graph=graph.with_origin({"name": "other"})).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"structure": Independent(count=2)},
        {"structure": MultiHead(split="hidden1", heads=2)},
        {"topology": Static(sparsity=0.5)},
        {"topology": Dynamic(sparsity=0.5)},
        {"plan": OneRun(steps=3)},
        {"aggregation": "mean_logit"},
        {"aggregation": "fitted"},
        {"aggregation": {"kind": "fitted", "temperature": False}},
        {"loss": "sum"},
        {"graph": nt_models.mlp(inputs=12, hidden=(10, 8, 7), classes=5)},
    ],
    ids=str,
)
def test_every_choice_changes_the_digest(change: dict[str, Any]) -> None:
    spec = EnsembleSpec(graph=GRAPHS["mlp"])
    changed = spec.replace(**change)
    assert changed.digest() != spec.digest()
    assert changed.replace(**{name: getattr(spec, name) for name in change}) == spec


def test_specs_are_immutable() -> None:
    spec = EnsembleSpec(graph=GRAPHS["mlp"])
    with pytest.raises(ValidationError, match="frozen"):
        spec.aggregation = "mean_logit"  # type: ignore[misc]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_a_spec_of_every_model(preset: str, graph: str) -> None:
    spec = PRESETS[preset](GRAPHS[graph])
    assert spec.graph is GRAPHS[graph]
    assert EnsembleSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    divided = {spec.layout.source(p.name): p.weight.size for p in spec.layout.sparsifiable}
    sizes = sum(divided.values())
    sparsity = getattr(spec.topology, "sparsity", 0.0)
    assert sum(spec.counts.values()) == round((1 - sparsity) * sizes)
    assert PRESETS[preset].__doc__


def test_presets_are_the_papers() -> None:
    graph = GRAPHS["mlp"]
    made = {name: preset(graph) for name, preset in PRESETS.items()}
    assert list(made) == [
        "single",
        "full_ensemble",
        "treenet",
        "static",
        "set",
        "rigl",
        "rigl_paper",
        "neurotrails",
        "neurotrails_lm",
        "neurotrails_code",
        "neurotrails_lm_code",
        "batch_ensemble",
        "mimo",
        "fission",
        "gradual_pruning",
        "snip",
        "grasp",
        "dst_ensemble",
        "edst",
        "magnitude_pruning",
        "snfs",
        "mest",
        "deep_r",
        "cht",
        "chts",
    ]
    assert {name for name, spec in made.items() if spec.topology == Dense()} == {
        "single",
        "full_ensemble",
        "treenet",
        "batch_ensemble",
        "mimo",
    }
    for name in ("treenet", "neurotrails", "neurotrails_lm"):
        assert made[name].structure == MultiHead(split=1, heads=3)
    assert made["full_ensemble"].structure == Independent(count=3)
    vision = made["neurotrails"].topology
    assert isinstance(vision, Dynamic)
    assert (vision.interval, vision.drop_fraction.start, vision.drop_fraction.until) == (100, 0.5, 1.0)
    assert vision.allocation == ERK()
    language = made["neurotrails_lm"].topology
    assert isinstance(language, Dynamic)
    assert (language.sparsity, language.interval, language.allocation.dense) == (0.1, 50, ("@attention",))
    assert language.prune.kind == "soft_magnitude"
    sets = made["set"].topology
    assert isinstance(sets, Dynamic)
    assert (sets.prune.kind, sets.grow.kind) == ("signed_magnitude", "random")
    assert sets.drop_fraction.at(99, 100) == 0.3
    assert isinstance(made["gradual_pruning"].topology, GradualPruning)
    for name in ("edst", "dst_ensemble"):
        free_tickets = made[name].topology
        assert isinstance(free_tickets, Dynamic)
        assert (free_tickets.interval, free_tickets.drop_fraction.start) == (1000, 0.5)
        assert free_tickets.allocation == ERK()
    assert made["dst_ensemble"].structure == Independent(count=3)
    at_once = made["magnitude_pruning"].topology
    assert isinstance(at_once, GradualPruning)
    assert [step for step in range(1, 1001) if at_once.due(step, 1000)] == [500]
    kinds = {
        name: (spec.topology.prune.kind, spec.topology.grow.kind, spec.topology.scope)
        for name, spec in made.items()
        if isinstance(spec.topology, Dynamic)
    }
    assert kinds["snfs"] == ("magnitude", "momentum", "momentum")
    assert kinds["mest"] == ("magnitude_and_gradient", "random", "layer")
    assert kinds["deep_r"] == ("sign_flip", "random", "layer")
    assert kinds["cht"] == ("magnitude", "cannistraci_hebb", "layer")
    assert kinds["chts"] == ("soft_magnitude", "cannistraci_hebb", "layer")


def test_a_third_of_the_counted_blocks_is_shared_unless_told_otherwise() -> None:
    for depth, split in ((10, 1), (16, 2), (28, 4)):
        graph = nt_models.wide_resnet(depth=depth, width=1)
        assert PRESETS["neurotrails"](graph).structure == MultiHead(split=split, heads=3)
    assert PRESETS["treenet"](graph, split=0, heads=2).structure == MultiHead(split=0, heads=2)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"structure": MultiHead(split=9, heads=2)}, GraphError, "structure.split: expected at most the 3"),
        ({"structure": MultiHead(split="hiden1", heads=2)}, GraphError, "did you mean 'hidden1'?"),
        (
            {"topology": Static(sparsity=0.9, allocation=ERK(dense=("*",)))},
            AllocationError,
            "choose a sparsity",
        ),
        (
            {"topology": Static(sparsity=0.5, allocation=Explicit(densities={"x": 0.5}))},
            AllocationError,
            "'x' matches no weight",
        ),
        (
            {"aggregation": "mean"},
            SpecError,
            "aggregation: input should be 'mean_prob', 'mean_logit' or 'fitted'; found 'mean'",
        ),
        ({"aggregation": {"kind": "mean"}}, SpecError, "aggregation.kind: input should be 'fitted'"),
        ({"aggregation": {"held_out": 1.0}}, SpecError, "aggregation.held_out: input should be less than 1"),
        ({"aggregation": {"held_out": 0}}, SpecError, "aggregation.held_out: input should be greater than 0"),
        ({"aggregation": {"heldout": 0.1}}, SpecError, "aggregation.heldout: unknown key"),
        ({"loss": "max"}, SpecError, "loss: input should be 'mean' or 'sum'; found 'max'"),
        ({"agregation": "mean_prob"}, SpecError, "agregation: unknown key; did you mean 'aggregation'?"),
        ({"graph": 3}, SpecError, "graph: "),
        (
            {"structure": {"kind": "multi_head", "split": 1, "heads": 2, "head": 3}},
            SpecError,
            "structure.head: unknown key",
        ),
        ({"topology": {"kind": "dynamic"}}, SpecError, "topology.sparsity: missing"),
        ({"plan": {"epochs": 0}}, SpecError, "plan.epochs: input should be greater than 0"),
    ],
)
def test_choices_that_do_not_go_together_get_one_error(change: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind) as caught:
        EnsembleSpec(**{"graph": GRAPHS["mlp"], **change})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_mistakes_get_a_line_each() -> None:
    with pytest.raises(SpecError) as caught:
        EnsembleSpec.from_dict(
            {
                "graph": GRAPHS["mlp"].to_dict(),
                "loss": "max",
                "topology": {"kind": "dynamic", "sparsity": 2, "drop_fraction": {"strt": 1, "until": -1}},
            }
        )
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "topology.sparsity",
        "topology.drop_fraction.until",
        "topology.drop_fraction.strt",
        "loss",
    ]
    assert [path for path, _ in caught.value.mistakes] == [line.split(":")[0] for line in lines]


# Plans.


@given(st.integers(1, 10**5), st.integers(0, 3), st.integers(1, 10**6))
def test_epochs_are_rounded_up_to_steps_in_spite_of_rounding(
    digits: int, places: int, per_epoch: int
) -> None:
    epochs = Fraction(digits, 10**places)
    assert OneRun(epochs=float(epochs)).total_steps(per_epoch) == math.ceil(epochs * per_epoch)


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "steps"), [(1.1, 10, 11), (0.1, 30, 3), (2.5, 5, 13), (1e-9, 5, 1)]
)
def test_float_traps_take_the_steps_that_are_meant(epochs: float, per_epoch: int, steps: int) -> None:
    assert OneRun(epochs=epochs).total_steps(per_epoch) == steps


def test_a_plan_says_epochs_or_steps() -> None:
    assert OneRun(steps=7).total_steps(100) == 7
    with pytest.raises(SpecError, match=r"plan: neither epochs nor steps are given; say how long"):
        OneRun().total_steps(100)
    with pytest.raises(SpecError, match=r"expected epochs or steps, found both \(epochs=2, steps=3\)"):
        OneRun(epochs=2, steps=3)


def test_members_and_loss_follow_the_structure_unless_told_otherwise() -> None:
    graph = GRAPHS["mlp"]
    for structure, members, loss in (
        (Single(), 1, "mean"),
        (Independent(count=4), 4, "sum"),
        (MultiHead(split=1, heads=5), 5, "mean"),
    ):
        spec = EnsembleSpec(graph=graph, structure=structure)
        assert (spec.members, spec.loss_reduction) == (members, loss)
        assert spec.replace(loss="sum").loss_reduction == "sum"
