"""What a resumed training is asked for is what its state says, field by field."""

import keras
import numpy as np
import pytest

import nt_keras
import nt_models
from nt_core import Dynamic, EnsembleSpec, GradualPruning, MultiHead, Semantics, TopologyError
from nt_core.policies import AtRandom, Magnitude, swap
from nt_keras.topology.sparse import find_sparse

GRAPH = nt_models.mlp(inputs=6, hidden=(8,), classes=3)
DYNAMIC = Dynamic(sparsity=0.6, interval=2)
X, Y = np.ones((8, 6), np.float32), np.arange(8) % 3


def made(topology=DYNAMIC, **options):
    model = nt_keras.compile(
        EnsembleSpec(graph=GRAPH, structure=MultiHead(split=1, heads=2), topology=topology)
    )
    eager = keras.backend.backend() == "tensorflow"
    model.compile(nt_keras.sparse("adam", model, **options), nt_keras.ensemble_loss(), run_eagerly=eager)
    model.build_optimizer()
    return model


def half(steps=3, **asked):
    """Train the first steps of ten."""
    model = made()
    topology = nt_keras.Topology(model, **{"total_steps": 10, "seed": 1} | asked)
    for _ in range(steps):
        model.train_on_batch(X, Y)
        topology.step()
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "half.keras"
    half().save(path)
    return path


SAME = {"total_steps": 10, "seed": 1}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"total_steps": 11}, r"topology\.total_steps: expected 10, .* found 11"),
        ({"seed": 2}, r"topology\.seed: expected 1, .* found 2"),
        ({"escapes": {5: 0.5}}, r"topology\.escapes: expected \[\], .* found \[\[5, 0\.5\]\]"),
        (
            {"policy": swap(prune=Magnitude(), grow=AtRandom())},
            r"topology\.policy: expected False, .* found True",
        ),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_another_argument_is_an_error(saved, asked, message):
    model = keras.models.load_model(saved)
    with pytest.raises(TopologyError, match=message):
        nt_keras.Topology(model, **SAME | asked)
    assert nt_keras.Topology(model, **SAME).steps == 3


def test_another_topology_is_an_error(saved):
    model = keras.models.load_model(saved)
    model.spec = model.spec.replace(topology=DYNAMIC.replace(interval=3))
    with pytest.raises(TopologyError, match=r"topology\.topology\.interval: expected 2, .* found 3"):
        nt_keras.Topology(model, **SAME)


@pytest.mark.parametrize(
    ("topology", "options", "field"),
    [
        (DYNAMIC.replace(interval=3), {}, "topology.interval"),
        (DYNAMIC.replace(grow="random"), {"keep_gradients": True}, "topology.grow"),
        (DYNAMIC.replace(semantics=Semantics(optimizer_step="replaced")), {}, "replaces_step"),
        (GradualPruning(sparsity=0.5), {"keep_gradients": True}, "topology.kind"),
        (DYNAMIC, {"keep_gradients": False}, "keep_gradients"),
    ],
)
def test_weights_of_another_optimizer_are_an_error(topology, options, field, tmp_path):
    half().save_weights(tmp_path / "half.weights.h5")
    model = made(topology, **options)
    with pytest.raises(TopologyError, match=rf"optimizer\.{field}.*: expected .* found"):
        model.load_weights(tmp_path / "half.weights.h5")


def test_a_training_that_has_ended_binds_none_after_it():
    model = half(steps=10)
    assert nt_keras.Topology(model, total_steps=20, seed=2).total_steps == 20
    assert dict(find_sparse(model.optimizer).asked)["seed"] == 2


def test_a_file_that_does_not_say_loads_as_before():
    model, store = half(), {}
    optimizer = find_sparse(model.optimizer)
    optimizer.save_own_variables(store)
    del store["asked"]
    other = made(DYNAMIC.replace(interval=3))
    find_sparse(other.optimizer).load_own_variables(store)
    assert not find_sparse(other.optimizer).asked
