"""Members made one after another, with a backend that only counts."""

from __future__ import annotations

import numpy as np
import pytest

import nt_models
from nt_core import Dynamic, EnsembleSpec, ExploreRefine, Independent, OneRun, initial_masks, initial_values
from nt_core.checkpoint import Checkpoint, Verbs, load_checkpoint, save_checkpoint, train_members
from nt_core.checkpoint.members import join, member
from nt_core.training import Trained

GRAPH = nt_models.mlp(inputs=5, hidden=(7,), classes=3)
DST = EnsembleSpec(
    graph=GRAPH, structure=Independent(count=3), topology=Dynamic(sparsity=0.8), plan=OneRun(at_once=1)
)
EDST = EnsembleSpec(graph=GRAPH, topology=Dynamic(sparsity=0.8), plan=ExploreRefine(steps=45))


def start(spec: EnsembleSpec) -> Checkpoint:
    masks = dict(initial_masks(spec.topology, spec.layout, 0))
    values = dict(initial_values(spec.layout, 0))
    values |= {name: values[name] * mask.dense() for name, mask in masks.items()}
    return Checkpoint(spec=spec, values=values, masks=masks)


def verbs(trained: list[tuple[int, ...]]) -> Verbs[Checkpoint]:
    """Train nothing: a model is its checkpoint."""

    def train(spec, leave, report):
        model = start(spec)
        trained.append(getattr(spec.structure, "numbers", (1,)))
        report({"event": "step"})
        timeline = spec.timeline(1) if spec.plan.kind == "explore_refine" else None
        for step in () if timeline is None else timeline.escapes:
            leave(model, timeline.member_after(step))
            for value in model.values.values():
                value *= 2
        return Trained(model=model, steps=4, examples=40, seconds=2.0, metrics=None)

    def same(model):
        return model

    return Verbs(train=train, checkpoint=same, restore=same, evaluate=lambda _: None, kept=lambda _: None)


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_members_one_after_another_are_the_whole_to_the_bit(at_once):
    spec = DST.replace(structure=Independent(count=4), plan=OneRun(at_once=at_once))
    found = train_members(spec, verbs([]), {})
    whole = start(spec)
    assert list(found.model.values) == list(whole.values)
    for name, value in whole.values.items():
        np.testing.assert_array_equal(found.model.values[name], value)
    assert dict(found.model.masks) == whole.masks
    assert (found.steps, found.examples) == (4, 40)
    assert found.seconds == 2.0 * 4 / at_once


def test_finished_members_are_not_trained_again():
    trained, members, events = [], {}, []
    members[2] = member(start(DST), 2, DST, {"steps": 4, "examples": 40, "seconds": 5.0})
    found = train_members(DST, verbs(trained), members, events.append)
    assert trained == [(1,), (3,)]
    assert found.seconds == 9.0
    assert sorted(members) == [1, 2, 3]
    assert [event["trained"] for event in events] == [(1,), (1,), (3,), (3,)]


def test_edst_saves_each_member_before_it_escapes():
    """A member that shared memory with the network would change while the next one is made."""
    members = {7: start(DST)}
    found = train_members(EDST, verbs([]), members)
    assert sorted(members) == [1, 2, 3]
    assert found.model.spec.structure == Independent(count=3)
    name = "hidden1/linear1.weight"
    first = start(EDST).values[f"head1/{name}"]
    for number in (1, 2, 3):
        np.testing.assert_array_equal(found.model.values[f"head{number}/{name}"], first * 2 ** (number - 1))
    assert (found.steps, found.examples) == (4, 40)


def test_a_member_is_a_whole_checkpoint(tmp_path):
    members = {}
    train_members(DST, verbs([]), members)
    save_checkpoint(tmp_path, members[2])
    loaded = load_checkpoint(tmp_path)
    assert loaded.spec.structure == Independent(count=3, only=(2,))
    assert {name.partition("/")[0] for name in loaded.values} == {"head2"}
    assert {name: mask.count for name, mask in loaded.masks.items()} == loaded.spec.counts
    assert join(DST, members | {2: loaded}).masks == join(DST, members).masks
