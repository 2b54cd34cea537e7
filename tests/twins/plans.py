"""Plans: EDST, and members one at a time."""

import numpy as np
import pytest
from small import GRAPH

from nt_core import Dynamic, EnsembleSpec, ExploreRefine, Independent, OneRun, SpecError, TopologyError
from nt_core.checkpoint import load_checkpoint, save_checkpoint
from nt_core.testing import Blobs
from nt_core.training import SGD, LearningRate, Training

TOPOLOGY = Dynamic(sparsity=0.8, interval=2)
EDST = EnsembleSpec(graph=GRAPH, topology=TOPOLOGY, plan=ExploreRefine(steps=45, escape=0.5))
RECIPE = Training(batch_size=30, optimizer=SGD(lr=0.05))


def train(backend, spec, training=RECIPE, **options):
    return backend.train(spec, training, Blobs(), test=Blobs(60, shuffle=False), seed=1, **options)


@pytest.fixture(scope="module")
def edst(backend):
    records, members = [], {}
    return train(backend, EDST, report=records.append, members=members), records, members


def test_edst_makes_members_of_one_network(backend, edst, tmp_path):
    trained, records, members = edst
    assert (trained.steps, trained.examples) == (45, 1350)
    assert trained.model.spec == EDST.result
    assert len(trained.metrics.disagreement_matrix) == 3
    assert [r["trained"] for r in records if r["event"] == "member"] == [(1,), (2,), (3,)]
    saved = backend.checkpoint(trained.model)
    for number in (1, 2, 3):
        own = {name: mask for name, mask in saved.masks.items() if name.startswith(f"head{number}/")}
        assert own == members[number].masks
        assert sum(mask.count for mask in own.values()) == sum(EDST.counts.values())
    save_checkpoint(tmp_path, saved)
    assert load_checkpoint(tmp_path).spec == EDST.result
    x = Blobs(20).inputs
    logits = backend.predict(backend.load(tmp_path), x)
    np.testing.assert_array_equal(logits, backend.predict(trained.model, x))
    save_checkpoint(tmp_path, members[2])
    np.testing.assert_array_equal(backend.predict(backend.load(tmp_path), x)[0], logits[1])


def test_an_escape_replaces_the_share_it_is_told(edst):
    """Of each weight; the topology's own updates go on before and after."""
    _, records, members = edst
    updates = {r["step"]: r["pruned"] for r in records if r["event"] == "update"}
    assert updates[25] == updates[35] == sum(count // 2 for count in EDST.counts.values())
    assert {*range(2, 45, 2)} <= set(updates)
    for before, after in ((1, 2), (2, 3)):
        masks = [members[number].masks for number in (before, after)]
        assert list(masks[0].values()) != list(masks[1].values())


def test_the_learning_rate_goes_back_up_after_each_member(edst):
    _, records, _ = edst
    rates = {r["step"]: r["lr"] / 0.05 for r in records if r["event"] == "epoch"}
    expected = {step: EDST.timeline(3).factor(LearningRate(), step - 1) for step in rates}
    assert rates == pytest.approx(expected)
    assert [expected[step] for step in (15, 18, 24, 27)] == [1.0, 0.1, 0.01, 0.1]


def expect_apart_as_together(backend, at_once, *, atol, rel):
    """Train some members at a time; values may differ by ``atol``, losses by ``rel`` of themselves."""
    together = EnsembleSpec(
        graph=GRAPH, structure=Independent(count=4), topology=TOPOLOGY, plan=OneRun(epochs=4)
    )
    apart = together.replace(plan=OneRun(epochs=4, at_once=at_once))
    first, second = (train(backend, spec) for spec in (together, apart))
    a, b = backend.checkpoint(first.model), backend.checkpoint(second.model)
    assert a.masks == b.masks
    for name, value in a.values.items():
        np.testing.assert_allclose(b.values[name], value, rtol=0, atol=atol, err_msg=name)
    assert second.metrics.nll == pytest.approx(first.metrics.nll, rel=rel, abs=0)
    assert (second.steps, second.examples) == (first.steps, first.examples)


@pytest.mark.parametrize("schedule", [{"schedule": "steps"}, {"warmup": 0.3, "final": 0.1}])
def test_training_follows_the_learning_rates_schedule(backend, schedule):
    recipe, records = RECIPE.replace(learning_rate=LearningRate(**schedule)), []
    train(backend, EDST.replace(plan=OneRun(epochs=4)), recipe, report=records.append)
    rates = [record["lr"] for record in records if record["event"] == "epoch"]
    expected = [0.05 * LearningRate(**schedule).at(step - 1, 12) for step in (3, 6, 9, 12)]
    assert rates == pytest.approx(expected)


def test_an_escape_of_ones_own_loop_must_be_possible(backend):
    with pytest.raises(TopologyError, match="drop fraction above 0 and at most 1 after step 3"):
        backend.own_loop(backend.compile(EDST), total_steps=9, escapes={3: 1.5})
    with pytest.raises(SpecError, match="too few"):
        train(backend, EDST.replace(plan=ExploreRefine(steps=5)))
