"""What users of Keras expect of a model works with sparse ensembles, and mistakes are told."""

import os
import subprocess
import sys
import warnings
from functools import partial

import keras
import numpy as np
import pytest

import nt_keras
import nt_models
from nt_core import (
    DataError,
    Dynamic,
    EnsembleSpec,
    GradualPruning,
    GraphError,
    MultiHead,
    Semantics,
    Single,
    Static,
    TopologyError,
)
from nt_core.graph import Features, GraphBuilder
from nt_core.policies import AtRandom, Magnitude, swap
from nt_keras.engines import engine
from nt_keras.topology.sparse import find_sparse

ENGINE = keras.backend.backend()
TENSORFLOW = pytest.mark.skipif(ENGINE != "tensorflow", reason="TensorFlow's own")
GRAPH = nt_models.mlp(inputs=6, hidden=(8,), classes=3)
DYNAMIC = Dynamic(sparsity=0.6, interval=2, drop_fraction=0.5)
REPLACED = DYNAMIC.replace(semantics=Semantics(optimizer_step="replaced"))
GENERATOR = np.random.default_rng(0)
X, Y = GENERATOR.normal(size=(24, 6)).astype(np.float32), GENERATOR.integers(0, 3, 24)
optimizers, callbacks = keras.optimizers, keras.callbacks


def spec_of(topology=DYNAMIC, structure=None):
    return EnsembleSpec(graph=GRAPH, structure=structure or MultiHead(split=1, heads=2), topology=topology)


def made(topology=DYNAMIC, optimizer=None, *, dtype=None, **options):
    model = nt_keras.compile(spec_of(topology), dtype=dtype)
    compiled(model, optimizer or optimizers.Adam(1e-2), **options)
    return model


def compiled(model, optimizer, **options):
    model.compile(
        optimizer=nt_keras.sparse(optimizer, model),
        loss=nt_keras.ensemble_loss(),
        **{"metrics": [nt_keras.EnsembleAccuracy(), nt_keras.Disagreement()], **options},
    )


def fit(model, x=X, y=Y, *, epochs=2, total=100, given=(), **options):
    """Train for three steps an epoch."""
    options = {"batch_size": 8, "shuffle": False, "verbose": 0} | options
    update = nt_keras.TopologyUpdate(total)
    return model.fit(x, y, epochs=epochs, callbacks=[*given, update], **options)


def weights_of(model):
    return {variable.path: engine.to_numpy(variable) for variable in model.weights}


def masks_of(model):
    return {name: model.mask(name) for name in model.masked}


def assert_same(first, second, **tolerances):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], **{"rtol": 0, "atol": 0} | tolerances)


def assert_exactly_sparse(model):
    optimizer = find_sparse(model.optimizer)
    assert {name: int(mask.sum()) for name, mask in masks_of(model).items()} == dict(model.spec.counts)
    for name in model.masked:
        kernel = model.variable(name)
        active = engine.to_numpy(kernel.mask)
        np.testing.assert_array_equal(engine.to_numpy(optimizer.beside(kernel).mask), active)
        for each in (kernel, *optimizer.slots(kernel)):
            assert (engine.to_numpy(each)[~active] == 0).all(), each.path


class Note(callbacks.Callback):
    """Notes weights and whatever else after each batch or epoch."""

    def __init__(self, *, batches=False):
        super().__init__()
        self.batches, self.weights, self.logs = batches, [], []

    def on_train_batch_end(self, batch, logs=None):
        if self.batches:
            self.weights.append(weights_of(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append(dict(logs))
        if not self.batches:
            self.weights.append(weights_of(self.model))


def test_fit_evaluate_predict_and_train_on_batch():
    model = made()
    before = masks_of(model)
    history = fit(model, epochs=4, validation_data=(X, Y)).history
    assert set(history) == {
        *("accuracy", "disagreement", "loss", "density"),
        *("val_accuracy", "val_disagreement", "val_loss"),
    }
    assert history["density"] == pytest.approx([model.density] * 4)
    assert_exactly_sparse(model)
    assert any((before[name] != mask).any() for name, mask in masks_of(model).items())
    logs = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-5)
    logits = model.predict(X, verbose=0)
    assert logits.shape == (24, 2, 3)
    odds = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert logs["accuracy"] == pytest.approx((odds.mean(1).argmax(-1) == Y).mean())
    assert logs["disagreement"] == pytest.approx((logits[:, 0].argmax(-1) != logits[:, 1].argmax(-1)).mean())
    assert isinstance(model.train_on_batch(X, Y, return_dict=True)["loss"], float)
    assert_exactly_sparse(model)


MODES = {
    "tensorflow": [{"jit_compile": False}, {"jit_compile": True}, {"run_eagerly": True}],
    "jax": [{"jit_compile": True}, {"run_eagerly": True}],
    "torch": [{"jit_compile": False}, {"run_eagerly": True}],
}[ENGINE]


@pytest.mark.parametrize("topology", [DYNAMIC, REPLACED], ids=["taken", "replaced"])
@pytest.mark.parametrize(
    "optimizer",
    [
        partial(optimizers.SGD, 0.1, momentum=0.9, gradient_accumulation_steps=2),
        partial(optimizers.Ftrl, 0.1, l2_regularization_strength=1e-3, global_clipnorm=0.1),
    ],
    ids=["accumulated", "masked again"],
)
def test_compiled_or_not_gives_the_same(topology, optimizer):
    results = []
    for mode in MODES:
        model = made(topology, optimizer(), **mode)
        fit(model)
        assert_exactly_sparse(model)
        results.append((weights_of(model), masks_of(model)))
    for weights, masks in results[1:]:
        assert_same(masks, results[0][1])
        assert_same(weights, results[0][0], atol=1e-5)


def counted(model):
    """Count how often the training step is traced."""
    traces, step = [], model.train_step

    def train_step(*args):
        traces.append(1)
        return step(*args)

    model.train_step = train_step
    return traces


@pytest.mark.skipif(ENGINE == "torch", reason="runs eagerly")
@pytest.mark.parametrize("topology", [DYNAMIC.replace(interval=1), REPLACED.replace(interval=1)])
@pytest.mark.parametrize("mode", [mode for mode in MODES if "jit_compile" in mode], ids=str)
def test_nothing_is_traced_again_after_the_first_epoch(topology, mode):
    model = nt_keras.compile(spec_of(topology))
    compiled(model, optimizers.Adam(optimizers.schedules.CosineDecay(1e-2, 100), global_clipnorm=1.0), **mode)
    traces, updates = counted(model), []
    options = {"batch_size": 8, "verbose": 0, "validation_data": (X, Y)}
    model.fit(X, Y, callbacks=[nt_keras.TopologyUpdate(100, report=updates.append)], **options)
    first = len(traces)
    assert first <= 2  # TensorFlow traces a training step once more if variables are made in it
    for _ in range(2):
        update = nt_keras.TopologyUpdate(100, report=updates.append)
        model.fit(X, Y, epochs=2, callbacks=[update], **options)
    assert len(traces) == first
    assert [update.step for update in updates] == list(range(1, 16))


def tensorflow_step(model):
    import tensorflow as tf

    loss_of = nt_keras.ensemble_loss()

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    return step


def jax_step(model):
    import jax

    model.build_optimizer()
    groups = (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables)
    loss_of = nt_keras.ensemble_loss()

    def loss(weights, others, x, y):
        logits, others = model.stateless_call(weights, others, x, training=True)
        return loss_of(y, logits), others

    @jax.jit
    def compute(weights, others, state, x, y):
        gradients, others = jax.grad(loss, has_aux=True)(weights, others, x, y)
        weights, state = model.optimizer.stateless_apply(state, gradients, weights)
        return weights, others, state

    def step(x, y):
        for group, values in zip(groups, compute(*([v.value for v in g] for g in groups), x, y), strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)

    return step


def torch_step(model):
    import torch

    loss_of = nt_keras.ensemble_loss()

    def step(x, y):
        model.zero_grad()
        loss_of(y, model(x, training=True)).backward()
        gradients = [variable.value.grad for variable in model.trainable_variables]
        with torch.no_grad():
            model.optimizer.apply(gradients, model.trainable_variables)

    return step


@pytest.mark.parametrize(
    "topology", [Static(sparsity=0.6), DYNAMIC, REPLACED], ids=["static", "taken", "replaced"]
)
def test_a_training_step_of_ones_own_does_the_same(topology):
    """Also if the optimiser makes its variables in it."""
    make = {"tensorflow": tensorflow_step, "jax": jax_step, "torch": torch_step}[ENGINE]
    model, other = (made(topology, optimizers.Adagrad(0.1)) for _ in range(2))
    step, tracker = make(model), None
    for number in range(6):
        part = slice(number % 3 * 8, number % 3 * 8 + 8)
        step(X[part], Y[part])
        if tracker is None:
            tracker = nt_keras.Topology(model, total_steps=100)
        else:
            tracker.step()
    fit(other)
    assert_exactly_sparse(model)
    assert_same(masks_of(model), masks_of(other))
    assert_same(weights_of(model), weights_of(other), atol=1e-6)


@pytest.mark.parametrize("kind", ["arrays", "generator", "dataset", "tf.data"])
def test_data_of_any_kind_gives_the_same(kind):
    if kind == "tf.data" and ENGINE != "tensorflow":
        pytest.skip("TensorFlow's own")

    class Dataset(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, number):
            return X[number * 8 : number * 8 + 8], Y[number * 8 : number * 8 + 8]

    def generate():
        while True:
            yield from (Dataset()[number] for number in range(3))

    def tf_data():
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)

    data = {"arrays": lambda: X, "generator": generate, "dataset": Dataset, "tf.data": tf_data}[kind]()
    options = {} if kind == "arrays" else {"y": None, "batch_size": None}
    if kind == "generator":
        options["steps_per_epoch"] = 3
    model, other = made(), made()
    fit(model)
    fit(other, data, **options)
    assert_same(weights_of(model), weights_of(other), atol=1e-6)
    assert_exactly_sparse(other)


def test_sample_weights_and_class_weights_weigh():
    part, plain = made(optimizer=optimizers.SGD(0.1)), made(optimizer=optimizers.SGD(0.1))
    weights = np.repeat(np.array([2.0, 0.0], np.float32), 4)
    fit(part, X[:8], Y[:8], epochs=3, sample_weight=weights)
    fit(plain, X[:4], Y[:4], epochs=3)
    assert_same(weights_of(part), weights_of(plain), atol=1e-5)
    by_class, by_sample = made(), made()
    fit(by_class, class_weight={0: 1.0, 1: 3.0, 2: 0.5})
    fit(by_sample, sample_weight=np.array([1.0, 3.0, 0.5], np.float32)[Y])
    assert_same(weights_of(by_class), weights_of(by_sample), atol=1e-6)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16", "mixed_float16"])
@pytest.mark.parametrize("is_global", [False, True], ids=["argument", "global"])
def test_half_precision(dtype, is_global):
    if is_global:
        keras.config.set_dtype_policy(dtype)
    try:
        model = made(dtype=None if is_global else dtype)
    finally:
        keras.config.set_dtype_policy("float32")
    kernel = model.variable(model.masked[0])
    assert kernel.dtype == ("bfloat16" if dtype == "bfloat16" else "float32")
    assert isinstance(model.optimizer, optimizers.LossScaleOptimizer) == (dtype == "mixed_float16")
    updates = []
    model.fit(
        X, Y, batch_size=8, epochs=3, verbose=0, callbacks=[nt_keras.TopologyUpdate(9, report=updates.append)]
    )
    assert [update.step for update in updates] == [2, 4, 6, 8]
    assert_exactly_sparse(model)
    assert model.predict(X, verbose=0).dtype == np.float32


def test_a_training_with_an_automatic_loss_scale_goes_on_where_it_was(tmp_path):
    whole, half = made(dtype="mixed_float16"), made(dtype="mixed_float16")
    fit(whole, epochs=4)
    fit(half)
    half.save(tmp_path / "half.keras")
    half = keras.models.load_model(tmp_path / "half.keras")
    fit(half)
    assert_same(weights_of(whole), weights_of(half))


def test_learning_rates_change_by_schedule_and_by_callbacks():
    note = Note()
    rates = callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))
    model = made(optimizer=optimizers.SGD(1.0))
    fit(model, epochs=3, given=[rates, note])
    assert float(model.optimizer.learning_rate) == pytest.approx(0.1 / 3)
    assert [logs["learning_rate"] for logs in note.logs] == pytest.approx([0.1, 0.05, 0.1 / 3])
    plateau = callbacks.ReduceLROnPlateau(monitor="density", mode="min", factor=0.5, patience=1)
    fit(model, epochs=3, given=[plateau])
    assert float(model.optimizer.learning_rate) < 0.1 / 3
    schedule = optimizers.schedules.PiecewiseConstantDecay([2], [0.1, 0.0])
    model = made(Static(sparsity=0.5), optimizers.SGD(schedule))
    note = Note(batches=True)
    fit(model, given=[note])
    assert_same(note.weights[3], note.weights[5])
    assert not np.array_equal(*(next(iter(note.weights[n].values())) for n in (0, 1)))


class Score(callbacks.Callback):
    """Gives epochs a score."""

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = [0, 2, 1, 0][epoch]


@pytest.mark.parametrize("optimizer", [optimizers.Adam, optimizers.Adagrad])
def test_early_stopping_restores_weights_with_their_masks_and_training_may_go_on(optimizer):
    model, note = made(optimizer=optimizer(1e-2)), Note()
    stopping = callbacks.EarlyStopping(monitor="score", mode="max", patience=2, restore_best_weights=True)
    fit(model, epochs=9, given=[Score(), stopping, note])
    assert len(note.weights) == 4
    assert_same(weights_of(model), note.weights[1])
    assert any(
        not np.array_equal(note.weights[1][path], note.weights[3][path])
        for path in note.weights[1]
        if "mask" in path
    )
    assert_exactly_sparse(model)
    model.train_on_batch(X, Y)
    assert_exactly_sparse(model)
    fit(model)
    assert_exactly_sparse(model)


@pytest.mark.parametrize("weights_only", [False, True])
def test_model_checkpoint_saves_what_the_update_left(weights_only, tmp_path):
    """Whatever the order of callbacks."""
    ending = ".weights.h5" if weights_only else ".keras"
    saving = callbacks.ModelCheckpoint(
        str(tmp_path / ("at{batch}" + ending)), save_weights_only=weights_only, save_freq=1
    )
    model, note = made(), Note(batches=True)
    fit(model, epochs=1, given=[saving, note])
    for number, expected in enumerate(note.weights, start=1):
        if weights_only:
            loaded = made()
            loaded.build_optimizer()  # else Keras warns that it loads no state into it
            loaded.load_weights(tmp_path / f"at{number}{ending}")
        else:
            loaded = keras.models.load_model(tmp_path / f"at{number}{ending}")
        assert_same(weights_of(loaded), expected)
        assert_exactly_sparse(loaded)
    fit(loaded)
    assert_exactly_sparse(loaded)
    if not weights_only:
        fit(model)
        assert_same(weights_of(loaded), weights_of(model))


@pytest.mark.parametrize("update_first", [False, True])
def test_backup_and_restore_goes_on_as_if_nothing_had_happened(update_first, tmp_path):
    class Break(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def train(model, *given):
        # Found by Keras in either order; the topology's own is put first.
        both = [callbacks.BackupAndRestore(str(tmp_path)), nt_keras.TopologyUpdate(100)]
        chosen = both[::-1] if update_first else both
        model.fit(X, Y, batch_size=8, epochs=4, verbose=0, shuffle=False, callbacks=[*chosen, *given])

    whole, broken, restored = made(), made(), made()
    fit(whole, epochs=4)
    with pytest.raises(KeyboardInterrupt):
        train(broken, Break())
    train(restored)
    assert_same(weights_of(whole), weights_of(restored))


def test_swapped_in_averages_are_as_sparse():
    class Check(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            assert_exactly_sparse(self.model)

    model = made(optimizer=optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.5))
    fit(model, epochs=3, given=[callbacks.SwapEMAWeights(swap_on_epoch=True), Check()])
    assert_exactly_sparse(model)


@TENSORFLOW
def test_tensorboard_gets_density_and_learning_rate(tmp_path):
    import tensorflow as tf

    fit(made(), given=[callbacks.TensorBoard(str(tmp_path), update_freq=1)])
    files = list((tmp_path / "train").glob("events*"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        events = [event for file in files for event in tf.compat.v1.train.summary_iterator(str(file))]
    tags = {value.tag for event in events for value in event.summary.value}
    assert {"epoch_density", "epoch_learning_rate", "epoch_loss"} <= tags


RESUME = """
import sys
import keras
import numpy as np
import nt_keras

for folder in sys.argv[1:]:
    data = np.load(f"{folder}/data.npz")
    model = keras.models.load_model(f"{folder}/half.keras")
    model.fit(data["x"], data["y"], batch_size=8, epochs=3, shuffle=False, verbose=0,
              callbacks=[nt_keras.TopologyUpdate(100)])
    model.save(f"{folder}/resumed.keras")
"""

TRAININGS = {
    "adam": (DYNAMIC, partial(optimizers.Adam, 1e-2, amsgrad=True)),
    "masked again": (DYNAMIC, partial(optimizers.Ftrl, 0.1, l2_regularization_strength=1e-3)),
    "replaced": (REPLACED, partial(optimizers.SGD, 0.1, momentum=0.9, use_ema=True)),
    "amid an accumulation": (DYNAMIC, partial(optimizers.Adam, 1e-2, gradient_accumulation_steps=2)),
    "amid a kept one": (DYNAMIC.replace(interval=1), partial(optimizers.Adam, gradient_accumulation_steps=4)),
}


def test_a_model_loaded_in_another_process_goes_on_bit_for_bit(tmp_path):
    folders = {}
    for number, (name, (topology, optimizer)) in enumerate(TRAININGS.items()):
        folders[name] = tmp_path / str(number)
        folders[name].mkdir()
        np.savez(folders[name] / "data.npz", x=X, y=Y)
        half = made(topology, optimizer())
        fit(half, epochs=1)
        half.save(folders[name] / "half.keras")
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", RESUME, *map(str, folders.values())]
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    for name, (topology, optimizer) in TRAININGS.items():
        whole, resumed = made(topology, optimizer()), keras.models.load_model(folders[name] / "resumed.keras")
        fit(whole, epochs=1)
        fit(whole, epochs=3)
        assert_same(weights_of(whole), weights_of(resumed))
        both = (model.optimizer.inner_optimizer.variables for model in (whole, resumed))
        for ours, theirs in zip(*both, strict=True):
            np.testing.assert_array_equal(engine.to_numpy(ours), engine.to_numpy(theirs), err_msg=ours.path)
        assert resumed.spec == whole.spec
        assert_exactly_sparse(resumed)


def test_weights_saved_and_loaded(tmp_path):
    model, other = made(), made()
    fit(model)
    fit(other, X[::-1], Y[::-1], epochs=3)
    model.save_weights(tmp_path / "some.weights.h5")
    other.load_weights(tmp_path / "some.weights.h5")
    assert_same(weights_of(model), weights_of(other))
    assert_exactly_sparse(other)
    uncompiled = nt_keras.compile(spec_of())
    uncompiled.load_weights(tmp_path / "some.weights.h5")
    np.testing.assert_array_equal(uncompiled.predict(X, verbose=0), model.predict(X, verbose=0))


def test_a_clone_computes_the_same_with_the_same_weights():
    model = made()
    fit(model)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone.predict(X, verbose=0), model.predict(X, verbose=0))
    other = nt_keras.Ensemble.from_config(model.get_config())
    assert other.spec == model.spec
    other.set_weights(model.get_weights())
    assert_same(masks_of(other), masks_of(model))


@TENSORFLOW
def test_an_exported_model_computes_the_same(tmp_path):
    import tensorflow as tf

    model = made()
    fit(model)
    model.export(str(tmp_path / "served"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(X).numpy(), model.predict(X, verbose=0), atol=1e-6)


def test_the_summary_is_readable():
    lines = []
    made().summary(print_fn=lambda line, **_: lines.append(line))
    text = "\n".join(lines)
    assert "backbone-hidden1" in text
    assert "Trainable params" in text


def test_a_plot_is_drawn(tmp_path):
    pytest.importorskip("pydot")
    keras.utils.plot_model(made(), tmp_path / "model.png")
    assert (tmp_path / "model.png").stat().st_size


def test_layers_unfrozen_later_train_and_move():
    model = nt_keras.compile(spec_of())
    for layer in model.layers:
        layer.trainable = not layer.name.startswith("backbone")
    compiled(model, optimizers.Adam(1e-2))
    masks = masks_of(model)
    fit(model)
    name = model.masked[0]
    np.testing.assert_array_equal(masks[name], model.mask(name))
    for layer in model.layers:
        layer.trainable = True
    compiled(model, optimizers.Adam(1e-2))
    fit(model)
    assert not np.array_equal(masks[name], model.mask(name))
    assert_exactly_sparse(model)


def test_evaluation_needs_no_sparse_optimizer():
    model = nt_keras.compile(spec_of())
    model.compile(loss=nt_keras.ensemble_loss(), metrics=[nt_keras.EnsembleAccuracy()])
    model.evaluate(X, Y, verbose=0)
    model.compile(optimizer=None, loss=nt_keras.ensemble_loss())
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)


def test_a_dense_spec_needs_no_sparse_optimizer_but_bears_one():
    from nt_core import Dense

    plain, wrapped = nt_keras.compile(spec_of(Dense())), made(Dense())
    plain.compile(optimizer=optimizers.Adam(1e-2), loss=nt_keras.ensemble_loss())
    fit(plain)
    fit(wrapped)
    assert_same(weights_of(plain), weights_of(wrapped))
    assert fit(plain).history["density"] == [1.0, 1.0]


def test_the_losss_targets_are_not_rounded():
    """Keras makes floats of them; bfloat16 has no 257."""
    before = keras.config.floatx()
    keras.config.set_floatx("bfloat16")
    try:
        loss = nt_keras.ensemble_loss()
    finally:
        keras.config.set_floatx(before)
    logits = np.zeros((1, 1, 300), np.float32)
    logits[0, 0, 257] = 100.0
    assert float(loss(np.array([257]), logits)) == pytest.approx(0.0)


# Mistakes


@pytest.mark.parametrize("topology", [DYNAMIC, Static(sparsity=0.5)])
@pytest.mark.parametrize("train", [fit, lambda model: model.train_on_batch(X, Y)], ids=["fit", "batch"])
def test_an_optimizer_that_is_not_wrapped_is_an_error(topology, train):
    model = nt_keras.compile(spec_of(topology))
    model.compile(optimizer="adam", loss=nt_keras.ensemble_loss())
    with pytest.raises(TopologyError, match=r"found Adam; compile with optimizer=nt_keras\.sparse"):
        train(model)


def test_wrapping_twice_or_inside_out_or_late_is_an_error():
    model = nt_keras.compile(spec_of())
    wrapped = nt_keras.sparse("adam", model)
    with pytest.raises(TopologyError, match=r"wrapped by nt_keras\.sparse already"):
        nt_keras.sparse(wrapped, model)
    inside_out = nt_keras.sparse(optimizers.LossScaleOptimizer(optimizers.SGD()), model)
    assert isinstance(inside_out, optimizers.LossScaleOptimizer)
    assert find_sparse(inside_out) is inside_out.inner_optimizer
    with pytest.raises(TopologyError, match=r"wrapped by nt_keras\.sparse already"):
        nt_keras.sparse(inside_out, model)
    used = optimizers.SGD()
    used.build(model.trainable_variables)
    with pytest.raises(TopologyError, match="found one that has variables already"):
        nt_keras.sparse(used, model)


@pytest.mark.skipif(not hasattr(optimizers, "MultiOptimizer"), reason="newer than this Keras")
def test_several_optimizers_at_once_are_an_error():
    several = optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD()))
    with pytest.raises(TopologyError, match="expected one for all weights, found MultiOptimizer"):
        nt_keras.sparse(several, nt_keras.compile(spec_of()))


def test_a_forgotten_callback_is_a_warning_where_the_topology_changes():
    for topology in (DYNAMIC, GradualPruning(sparsity=0.5)):
        model = made(topology)
        with pytest.warns(UserWarning, match=r"nothing updates it: .*nt_keras\.TopologyUpdate") as found:
            model.fit(X, Y, epochs=2, verbose=0)
        mine = [warning for warning in found if "nothing updates it" in str(warning.message)]
        assert [warning.filename for warning in mine] == [__file__]
    made(Static(sparsity=0.5)).fit(X, Y, verbose=0)


def test_a_topology_in_a_callback_of_ones_own_is_no_mistake():
    model = made()
    topology = nt_keras.Topology(model, total_steps=100)
    step = callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: topology.step())
    model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[step])
    other = made()
    fit(other)
    assert_same(weights_of(model), weights_of(other))
    with pytest.warns(UserWarning, match="nothing updates it"):
        other.fit(X, Y, verbose=0)


def test_two_callbacks_are_an_error():
    with pytest.raises(TopologyError, match=r"expected one nt_keras\.TopologyUpdate, found 2; leave one"):
        fit(made(), given=[nt_keras.TopologyUpdate(10)])


def test_a_list_of_callbacks_of_keras_own_kind_works():
    model = made()
    listed = callbacks.CallbackList(
        [nt_keras.TopologyUpdate(100)], add_history=True, model=model, epochs=1, steps=3
    )
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=listed)
    assert_exactly_sparse(model)


def test_wrong_images_are_an_error():
    graph = nt_models.wide_resnet(depth=10, width=1, classes=10, size=8, channels=3)
    model = nt_keras.compile(EnsembleSpec(graph=graph, topology=Static(sparsity=0.5)))
    compiled(model, optimizers.SGD())
    images, labels = np.zeros((4, 3, 8, 8), np.float32), np.arange(4)
    message = r"expected shape \(batch, 8, 8, 3\).*found \(.*, 3, 8, 8\).*\(batch, height, width, channels\)"
    for attempt in (
        lambda: model(images),
        lambda: model.predict(images, verbose=0),
        lambda: model.fit(images, labels, verbose=0),
        lambda: model.evaluate(images, labels, verbose=0),
        lambda: model.train_on_batch(images, labels),
    ):
        with pytest.raises(DataError, match=message):
            attempt()


@pytest.mark.parametrize("targets", [np.eye(3)[Y], np.stack([Y, Y], 1)], ids=["one hot", "two"])
def test_targets_of_a_wrong_shape_are_an_error(targets):
    for attempt in (fit, lambda model, *data: model.evaluate(*data, verbose=0)):
        with pytest.raises(DataError, match=r"expected class numbers of shape \('batch',\), found"):
            attempt(made(), X, targets)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_class_number_that_is_none_is_an_error(wrong):
    model, targets = made(), Y.copy()
    targets[7] = wrong
    message = f"expected class numbers from 0 to 2, found {wrong}"
    for attempt in (
        lambda: fit(model, X, targets),
        lambda: fit(model, validation_data=(X, targets)),
        lambda: model.train_on_batch(X, targets),
        lambda: model.evaluate(X, targets, verbose=0),
    ):
        with pytest.raises(DataError, match=message):
            attempt()


@pytest.mark.skipif(ENGINE != "jax", reason="the other engines raise errors of their own")
def test_a_class_number_that_is_none_makes_the_loss_nan_on_the_device():
    assert np.isnan(float(nt_keras.ensemble_loss()(np.array([0, 3]), np.zeros((2, 1, 3), np.float32))))


@pytest.mark.skipif(ENGINE == "torch", reason="Keras refuses it there")
def test_several_steps_in_one_execution_are_an_error_where_the_topology_changes():
    with pytest.raises(TopologyError, match="steps_per_execution: expected 1, found 3"):
        fit(made(steps_per_execution=3))
    model = made(Static(sparsity=0.6), steps_per_execution=3)
    fit(model)
    assert_exactly_sparse(model)


def test_a_missed_update_is_an_error():
    model = made()
    topology = nt_keras.Topology(model, total_steps=100)
    for _ in range(3):
        model.train_on_batch(X, Y)
    assert topology.step() is None
    with pytest.raises(TopologyError, match="update after step 2 was missed, 3 steps are taken"):
        topology.step()


@pytest.mark.parametrize("total", [0, -5])
def test_no_steps_at_all_are_an_error(total):
    with pytest.raises(TopologyError, match=f"total_steps: expected at least 1, found {total}"):
        fit(made(), total=total)


def test_fewer_steps_than_were_taken_are_an_error():
    model = made()
    fit(model, total=6)
    with pytest.raises(TopologyError, match="at least the 6 steps that the optimiser has taken, found 5"):
        fit(model, total=5)
    fit(model, total=6)


def test_an_optimizer_wrapped_for_another_model_is_an_error():
    static, replaced = nt_keras.compile(spec_of(Static(sparsity=0.5))), nt_keras.compile(spec_of(REPLACED))
    for theirs, message in (
        (static, "wrap a new one .*keep_gradients=True"),
        (replaced, "replaces_step=False"),
    ):
        model = nt_keras.compile(spec_of())
        model.compile(optimizer=nt_keras.sparse("adam", theirs), loss=nt_keras.ensemble_loss())
        with pytest.raises(TopologyError, match=message):
            fit(model)
    model, other = made(), nt_keras.compile(spec_of())
    fit(model)
    other.compile(optimizer=model.optimizer, loss=nt_keras.ensemble_loss())
    with pytest.raises(TopologyError, match=r"made for other weights, 'backbone-hidden1-linear1/kernel'"):
        fit(other)


def test_a_model_that_was_not_compiled_from_a_spec_is_an_error():
    inner = made()
    inputs = keras.Input((6,))
    outer = keras.Model(inputs, inner(2 * inputs))
    outer.compile(optimizer=nt_keras.sparse("adam", inner), loss=nt_keras.ensemble_loss())
    with pytest.raises(
        TopologyError, match=r"model: expected what nt_keras\.compile returned, found Functional"
    ):
        fit(outer)


def test_a_policy_without_the_gradients_it_may_read_is_an_error():
    model = made(DYNAMIC.replace(grow="random"))
    policy = swap(prune=Magnitude(), grow=AtRandom())
    with pytest.raises(TopologyError, match=r"policy given, may read dense gradients.*keep_gradients=True"):
        nt_keras.Topology(model, total_steps=10, policy=policy)


def test_a_gradient_that_is_not_finite_stops_fit_and_leaves_the_masks():
    model = made()
    masks = masks_of(model)
    weights = np.ones(24, np.float32)
    weights[12] = np.nan
    with pytest.raises(TopologyError, match=r"weight '[^']+', step 2: .*expected a finite number"):
        fit(model, sample_weight=weights)
    assert_same(masks, masks_of(model))


def test_names_that_keras_cannot_tell_apart_are_an_error():
    net = GraphBuilder(Features(count=2))
    for name in ("a.b", "a_b"):
        with net.block(name) as b:
            b.out = b.linear(b.inp, 2)
    with net.classifier() as b:
        b.out = b.linear(b.inp, 2)
    with pytest.raises(GraphError, match=r"op 'head1/a_b/linear1': Keras names it .*taken; rename"):
        nt_keras.compile(EnsembleSpec(graph=net.build(), structure=Single()))


def test_a_mask_without_a_place_is_an_error():
    from nt_core import Dense
    from nt_core.masks import Mask

    model = nt_keras.compile(spec_of(Dense()))
    name = "backbone/hidden1/linear1.weight"
    with pytest.raises(TopologyError, match="no variable for its mask"):
        model.set_mask(name, Mask.from_dense(np.ones((8, 6), bool)))
