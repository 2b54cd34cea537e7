"""Training on several devices by ``tf.distribute`` changes topologies as one device does.

TensorFlow divides a CPU into devices before it does anything else, so this file is run again as a script, in
a process of its own, and leaves what it found in files.
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import keras
import numpy as np
import pytest

import nt_keras
import nt_models
from nt_core import Dynamic, EnsembleSpec, MultiHead, Semantics, TopologyError
from nt_keras.engines import engine
from nt_keras.topology.sparse import find_sparse

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow's own", allow_module_level=True)

optimizers = keras.optimizers
pytestmark = pytest.mark.xdist_group("two devices")
GRAPH = nt_models.mlp(inputs=6, hidden=(8,), classes=3)
GENERATOR = np.random.default_rng(0)
X, Y = GENERATOR.normal(size=(24, 6)), GENERATOR.integers(0, 3, 24)

TRAININGS = {
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-2, global_clipnorm=1.0),
    "adagrad": lambda: optimizers.Adagrad(0.1),
    "masked again": lambda: optimizers.Ftrl(0.1, l2_regularization_strength=1e-3),
}  # Keras itself does not accumulate gradients on several devices
RULES = [("momentum", "taken"), ("momentum", "replaced"), ("adagrad", "taken"), ("masked again", "replaced")]


def spec_of(step):
    topology = Dynamic(sparsity=0.6, interval=2, drop_fraction=0.5, semantics=Semantics(optimizer_step=step))
    return EnsembleSpec(graph=GRAPH, structure=MultiHead(split=1, heads=2), topology=topology)


def made(optimizer, step="taken", dtype="float64", **options):
    model = nt_keras.compile(spec_of(step), dtype=dtype)
    model.compile(
        optimizer=nt_keras.sparse(optimizer(), model),
        loss=nt_keras.ensemble_loss(),
        jit_compile=False,
        **options,
    )
    return model


class Watch(keras.callbacks.Callback):
    """Checks, after each call, that replicas have the same masks, weights and variables, exactly sparse."""

    def on_train_batch_end(self, batch, logs=None):
        optimizer = find_sparse(self.model.optimizer)
        for name in self.model.masked:
            kernel = self.model.variable(name)
            first, second = engine.replicas(kernel.mask)
            np.testing.assert_array_equal(first, second)
            for each in (kernel, *optimizer.slots(kernel)):
                values = engine.replicas(each)
                assert len(values) == 2
                assert all((value[~first] == 0).all() for value in values), each.path
            np.testing.assert_array_equal(*engine.replicas(kernel))


def trained(model, *given):
    updates = []
    update = nt_keras.TopologyUpdate(100, report=updates.append)
    model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[update, *given])
    found = {name: model.array(name) for name in (placed.name for placed in model.spec.layout.weights)}
    found |= {f"{name} mask": model.mask(name) for name in model.masked}
    return found | {"steps": np.array([update.step for update in updates])}


def alike(folder, strategy):
    """Train on two devices and on one."""
    for number, (name, step) in enumerate(RULES):
        with strategy.scope():
            model = made(TRAININGS[name], step)
        np.savez(folder / f"two{number}.npz", **trained(model, Watch()))
        np.savez(folder / f"one{number}.npz", **trained(made(TRAININGS[name], step)))


def scaled(_, strategy):
    """Train with a loss scale that Keras puts around the optimiser."""
    with strategy.scope():
        model = made(lambda: optimizers.Adam(1e-2), dtype="mixed_float16")
    assert isinstance(model.optimizer, optimizers.LossScaleOptimizer)
    assert trained(model, Watch())["steps"].tolist() == [2, 4, 6]


def own_loop(_, strategy):
    """Train in a loop of one's own."""
    with strategy.scope():
        model = made(lambda: optimizers.SGD(0.1))
    topology = nt_keras.Topology(model, total_steps=100)
    for _ in range(3):
        model.train_on_batch(X[:8], Y[:8])
        topology.step()
    assert topology.steps == 3


def saved(folder, strategy):
    """Save from two devices, load on one."""
    with strategy.scope():
        model = made(lambda: optimizers.SGD(0.1, momentum=0.9))
    trained(model)
    model.save(folder / "two.keras")
    loaded = keras.models.load_model(folder / "two.keras")
    np.testing.assert_allclose(loaded.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-12)


def apart(_, strategy):
    """Make model and optimiser under different strategies."""
    with strategy.scope():
        model = nt_keras.compile(spec_of("taken"))
    optimizer = nt_keras.sparse(optimizers.SGD(0.1), model)
    with strategy.scope():
        model.compile(optimizer=optimizer, loss=nt_keras.ensemble_loss(), jit_compile=False)
    yield lambda: trained(model)
    model = nt_keras.compile(spec_of("taken"))
    with strategy.scope():
        optimizer = nt_keras.sparse(optimizers.SGD(0.1), model)
    model.compile(optimizer=optimizer, loss=nt_keras.ensemble_loss(), jit_compile=False)
    yield lambda: trained(model)


def corrupted(_, strategy):
    """Give one replica another mask."""
    with strategy.scope():
        model = made(lambda: optimizers.SGD(0.1))
    mask = model.variable(model.masked[1]).mask.value.values[1]
    mask.assign(~mask.numpy())
    yield lambda: trained(model)


def errors(make):
    """Return the messages of what must go wrong."""

    def run(folder, strategy):
        found = []
        for attempt in make(folder, strategy):
            with pytest.raises(TopologyError) as caught:
                attempt()
            found.append(str(caught.value))
        return found

    return run


TASKS = {
    "alike": alike,
    "scaled": scaled,
    "own loop": own_loop,
    "saved": saved,
    "apart": errors(apart),
    "corrupted": errors(corrupted),
}


def main(folder):
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    found = {}
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for name, task in TASKS.items():
        try:
            found[name] = task(Path(folder), strategy)
        except Exception:
            found[name] = traceback.format_exc()
    (Path(folder) / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two devices")
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("task", ["alike", "scaled", "own loop", "saved"])
def test_two_devices_train_and_stay_exactly_sparse_and_the_same(found, task):
    assert found[task] is None, found[task]


@pytest.mark.parametrize("rule", RULES, ids="-".join)
def test_two_devices_choose_the_same_topology_as_one(folder, rule):
    number = RULES.index(rule)
    one, two = (dict(np.load(folder / f"{devices}{number}.npz")) for devices in ("one", "two"))
    assert one["steps"].tolist() == [2, 4, 6]
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=0, atol=1e-9, err_msg=name)


def test_a_model_and_an_optimizer_of_different_strategies_are_an_error(found):
    assert isinstance(found["apart"], list), found["apart"]
    assert len(found["apart"]) == 2
    for message in found["apart"]:
        assert (
            "were not made under the same distribution strategy; make the model and the optimiser" in message
        )


def test_replicas_with_different_masks_are_an_error(found):
    (message,) = found["corrupted"]
    assert "replica 1 has another mask than replica 0" in message


if __name__ == "__main__":
    main(sys.argv[1])
