from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_topologies import Banded, OwnSpec, Rewired

import nt_models
from nt_core.cost import cost, scale, update_messages
from nt_core.errors import SpecError, TopologyError
from nt_core.masks import NUMPY, Moment
from nt_core.policies import Layer
from nt_core.random import Random
from nt_core.structure import Fission, Independent, MultiHead, Single
from nt_core.testing import check_update
from nt_core.topology import (
    ER,
    TOPOLOGIES,
    DeclaredTopology,
    DropFraction,
    Dynamic,
    Static,
    allocate,
    expect_escapes,
    expect_shardable,
    initial_masks,
    update,
)
from nt_core.training import ExploreRefine, OneRun
from tests.core.strategies import layer_lists

GRAPH = nt_models.mlp(inputs=6, hidden=(8, 7), classes=3)
OWN = [Banded(sparsity=0.6), Rewired(sparsity=0.6)]
STRUCTURES = [Single(), Independent(count=2), MultiHead(split=1, heads=3)]


def test_no_spec_file_knows_them() -> None:
    assert not {topology.kind for topology in OWN} & set(TOPOLOGIES)


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.kind)
@pytest.mark.parametrize("topology", OWN, ids=lambda t: t.kind)
def test_counts_masks_and_costs_come_of_the_one_class(topology: Any, structure: Any) -> None:
    spec = OwnSpec(graph=GRAPH, structure=structure, topology=topology)
    alike = OwnSpec.__base__(graph=GRAPH, structure=structure, topology=Static(sparsity=0.6, allocation=ER()))
    assert OwnSpec.from_dict(spec.to_dict()) == spec
    assert spec.counts == alike.counts == allocate(spec.layout, ER(), 0.6)
    masks = dict(initial_masks(topology, spec.layout, 3))
    assert {name: mask.count for name, mask in masks.items()} == spec.counts
    assert spec.longest == alike.longest
    assert topology.summary == f"{topology.kind} at sparsity 0.6"
    assert cost(spec).flops_training_step == cost(alike).flops_training_step
    device = scale(spec, ranks=2, wrap="fsdp2", states=1).device
    assert device.masks == scale(alike, ranks=2, wrap="fsdp2", states=1).device.masks
    assert (device.update > 0) == topology.updates
    assert (update_messages(spec, ranks=2, sharded=True).reduced > 0) == topology.updates


@given(st.integers(0, 99))
def test_masks_follow_the_rule_of_the_topology_whatever_the_seed(seed: int) -> None:
    layout = Single().layout(GRAPH)
    for _, mask in initial_masks(Banded(sparsity=0.6), layout, seed):
        rows, columns = mask.shape
        far = {(i, j): abs(i * columns - j * rows) for i in range(rows) for j in range(columns)}
        kept = {divmod(position, columns) for position in mask.flat().tolist()}
        assert max(far[place] for place in kept) <= min(far[place] for place in far.keys() - kept)


def test_what_it_keeps_is_divided_if_it_says_so() -> None:
    spec = OwnSpec(graph=GRAPH, structure=Fission(count=2), topology=Banded(sparsity=0.6))
    whole = dict(initial_masks(spec.topology, Single().layout(GRAPH), 3))
    pieces: dict[str, list[int]] = {name: [] for name in whole}
    for name, mask in initial_masks(spec.topology, spec.layout, 3):
        assert mask.count == spec.counts[name]
        pieces[spec.layout.source(name)] += mask.flat().tolist()
    assert {name: sorted(found) for name, found in pieces.items()} == {
        name: mask.flat().tolist() for name, mask in whole.items()
    }
    with pytest.raises(SpecError, match="'rewired' does not go with structure 'fission'"):
        OwnSpec(graph=GRAPH, structure=Fission(count=2), topology=Rewired(sparsity=0.6))


@given(layers=layer_lists(), step=st.integers(1, 50))
def test_an_update_does_what_the_class_says(layers: list[Layer], step: int) -> None:
    moment, targets = Moment(step, Random(5)), {layer.name: 0 for layer in layers}
    same = Dynamic(sparsity=0.6, grow="random", drop_fraction=DropFraction(start=0.25, schedule="constant"))  # type: ignore[arg-type]
    found, wanted, none = (
        update(topology, layers, moment, total_steps=100, targets=targets)
        for topology in (Rewired(sparsity=0.6), same, Banded(sparsity=0.6))
    )
    assert list(found) == list(wanted) == list(none) == [layer.name for layer in layers]
    for name, change in found.items():
        np.testing.assert_array_equal(change.pruned, wanted[name].pruned)
        np.testing.assert_array_equal(change.grown, wanted[name].grown)
        assert not len(none[name].pruned)
        assert not len(none[name].grown)
    check_update(NUMPY, Rewired(sparsity=0.6), layers, put=lambda array: array, get=lambda array: array)


def test_plans_and_checks_ask_the_class() -> None:
    banded, rewired = OWN
    assert [step for step in range(1, 8) if rewired.due(step, 7)] == [2, 4, 6]
    assert not any(banded.due(step, 7) for step in range(8))
    assert banded.next_due(0, 7) is None
    assert not rewired.reads_gradient()
    assert expect_escapes({4: 0.5}, rewired) == {4: 0.5}
    with pytest.raises(TopologyError, match="expected a dynamic topology, found banded"):
        expect_escapes({4: 0.5}, banded)
    for topology in OWN:
        expect_shardable(topology)
        OwnSpec(graph=GRAPH, structure=Independent(count=2), topology=topology, plan=OneRun(at_once=1))
    OwnSpec(graph=GRAPH, topology=rewired, plan=ExploreRefine(members=2))
    with pytest.raises(SpecError, match="expected dynamic for the plan explore_refine"):
        OwnSpec(graph=GRAPH, topology=banded, plan=ExploreRefine(members=2))


def test_a_policy_of_ones_own_needs_a_topology_that_takes_it() -> None:
    layer = Layer(name="w", weights=np.ones(2), gradients=np.ones(2), active=np.ones(2, np.bool_))
    with pytest.raises(TopologyError, match="found rewired with scope 'layer'"):
        update(OWN[1], [layer], Moment(1, Random(0)), total_steps=9, targets={}, policy=lambda *_: None)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=list(TOPOLOGIES))
def test_every_kind_says_itself_what_differs(topology: type[DeclaredTopology]) -> None:
    """What is asked of one of them is asked of all: no answer is missing, none is of another kind."""
    made = topology(**{"sparsity": 0.5} if "sparsity" in topology.model_fields else {})  # type: ignore[call-arg]
    layout = Single().layout(GRAPH)
    sizes = {placed.name: placed.weight.size for placed in layout.sparsifiable}
    assert made.final_counts(layout).keys() == made.initial_counts(layout).keys() == sizes.keys()
    assert all(made.final_counts(layout)[name] <= made.initial_counts(layout)[name] for name in sizes)
    assert bool(made.criteria) == made.updates == any(made.due(step, 1000) for step in range(1, 1001))
    assert made.grows <= made.updates <= made.masked
    assert (dict(initial_masks(made, layout, 0)).keys() == sizes.keys()) == made.masked
    assert made.sparsity_from_start in (0, 0.5)
