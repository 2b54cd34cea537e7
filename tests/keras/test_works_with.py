"""Every row of "What works with what" for Keras, as the page says."""

import re
from functools import partial

import keras
import numpy as np
import pytest
from works_with import rows

import nt_keras
import nt_models
from nt_core import Dynamic, EnsembleSpec, MultiHead, NeuroTrailsError, Static
from nt_core.policies import GROWS
from nt_keras.engines import engine
from nt_keras.topology.sparse import find_sparse

optimizers, callbacks = keras.optimizers, keras.callbacks
GRAPH = nt_models.mlp(inputs=6, hidden=(8,), classes=3)
DYNAMIC = Dynamic(sparsity=0.6, interval=2, drop_fraction=0.5)
GENERATOR = np.random.default_rng(0)
X, Y = GENERATOR.normal(size=(24, 6)).astype(np.float32), GENERATOR.integers(0, 3, 24)
KERNEL = "backbone/hidden1/linear1.weight"


def made(optimizer=None, *, topology=DYNAMIC, wrapped=True, around=lambda optimizer: optimizer, **options):
    """Make a model and compile it; eagerly, because tracing would take nearly all the time."""
    spec = EnsembleSpec(graph=GRAPH, structure=MultiHead(split=1, heads=2), topology=topology)
    model = nt_keras.compile(spec)
    optimizer = optimizers.Adam(1e-2) if optimizer is None else optimizer
    optimizer = around(nt_keras.sparse(optimizer, model) if wrapped else optimizer)
    metrics = [nt_keras.EnsembleAccuracy(), nt_keras.Disagreement()]
    options = {"run_eagerly": engine.ENGINE == "tensorflow"} | options
    model.compile(optimizer, nt_keras.ensemble_loss(), metrics=metrics, **options)
    return model


def fit(model, *given, total=100, epochs=2, counted=True, **options):
    options = {"batch_size": 8, "shuffle": False, "verbose": 0} | options
    model.fit(X, Y, epochs=epochs, callbacks=[*given, nt_keras.TopologyUpdate(total)], **options)
    expect_sparse(model, counted)
    return model


def expect_sparse(model, counted=True):
    optimizer, counts = find_sparse(model.optimizer), {n: int(model.mask(n).sum()) for n in model.masked}
    assert sum(counts.values()) == sum(model.spec.counts.values())
    assert counts == dict(model.spec.counts) or not counted
    for name in model.masked:
        kernel = model.variable(name)
        inactive = ~engine.to_numpy(kernel.mask)
        slots = optimizer.slots(kernel) if optimizer.knows(kernel) else ()
        for each in (kernel, *slots):
            assert (engine.to_numpy(each)[inactive] == 0).all(), each.path


def arrays(model):
    return {variable.path: engine.to_numpy(variable).copy() for variable in model.weights}


def expect_same(first, second, **tolerances):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], err_msg=name, **{"rtol": 0} | tolerances)


class Own(optimizers.SGD):
    def build(self, variables):
        super().build(variables)
        self.drift = self.add_optimizer_variables(variables, "drift", initializer="ones")

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate)
        self.assign_add(variable, 0.01 * self.drift[self._get_variable_index(variable)])


OPTIMIZERS = {
    "`SGD`": partial(optimizers.SGD, 0.1, momentum=0.9, nesterov=True),
    "`Adam`": partial(optimizers.Adam, 1e-2, amsgrad=True),
    "`AdamW`": partial(optimizers.AdamW, 1e-2),
    "`Nadam`": partial(optimizers.Nadam, 1e-2),
    "`RMSprop`": partial(optimizers.RMSprop, 1e-2, momentum=0.9, centered=True),
    "`Adagrad`": partial(optimizers.Adagrad, 1e-2),
    "`Adadelta`": partial(optimizers.Adadelta, 1.0),
    "`Adamax`": partial(optimizers.Adamax, 1e-2),
    "`Lamb`": partial(optimizers.Lamb, 1e-2),
    "`Lion`": partial(optimizers.Lion, 1e-3),
    "`Adafactor`": partial(optimizers.Adafactor, 1e-2, epsilon_1=1e-16),
    "`Ftrl`": partial(optimizers.Ftrl, 0.1, l2_regularization_strength=1e-3),
    "`Muon`": partial(optimizers.Muon, 1e-2, exclude_layers=["bias"]),
    "`ScheduleFreeAdamW`": partial(optimizers.ScheduleFreeAdamW, 1e-2),
    "of your own": partial(Own, 0.1),
}


def plain(_):
    fit(made(optimizers.SGD(), wrapped=False))


def scale_outside(_):
    model = made(around=lambda inner: optimizers.LossScaleOptimizer(inner, initial_scale=8.0))
    expect_same(arrays(fit(model)), arrays(fit(made())), atol=1e-6)


def scale_inside(_):
    inner = optimizers.LossScaleOptimizer(optimizers.Adam(1e-2), initial_scale=8.0)
    expect_same(arrays(fit(made(inner))), arrays(fit(made())), atol=1e-6)


def scale_and_average(_):
    averaged = partial(optimizers.Adam, 1e-2, use_ema=True, ema_momentum=0.5)
    expected = arrays(fit(made(averaged())))
    outside = made(averaged(), around=optimizers.LossScaleOptimizer)
    inside = made(optimizers.LossScaleOptimizer(averaged()))
    for model in (outside, inside):
        expect_same(arrays(fit(model)), expected, atol=1e-5)
        assert not any("average" in own.path for own in find_sparse(model.optimizer)._variables)


def several(_):
    made(optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD())))


def twice(_):
    model = made()
    nt_keras.sparse(model.optimizer, model)


def clipping(_):
    for kind in ("clipnorm", "global_clipnorm", "clipvalue"):
        before, after = made(optimizers.SGD(1.0, **{kind: 1e-3})), made(optimizers.SGD(1.0))
        setattr(after.optimizer, kind, 1e-3)
        assert getattr(after.optimizer, kind) == getattr(after.optimizer.inner_optimizer, kind) == 1e-3
        expect_same(arrays(fit(before, epochs=1)), arrays(fit(after, epochs=1)))


def decay(_):
    inner = optimizers.AdamW(1e-2, weight_decay=0.5)
    inner.exclude_from_weight_decay(var_names=["bias"])
    before, after = made(inner), made(optimizers.AdamW(1e-2, weight_decay=0.1))
    after.optimizer.exclude_from_weight_decay(var_names=["bias"])
    after.optimizer.weight_decay = 0.5
    expect_same(arrays(fit(before)), arrays(fit(after)))
    other = arrays(fit(made(optimizers.AdamW(1e-2, weight_decay=0.5))))
    assert any((other[path] != value).any() for path, value in arrays(after).items() if "bias" in path)


def accumulation(_):
    model = made(optimizers.Adam(1e-2, gradient_accumulation_steps=3))
    assert int(fit(model).optimizer.iterations) == 2


def schedules(_):
    fit(made(optimizers.SGD(optimizers.schedules.CosineDecay(0.1, 100))))


def late_setting(_):
    model = fit(made(optimizers.SGD(0.1), topology=Static(sparsity=0.6), run_eagerly=False), epochs=1)
    before = arrays(model)
    model.optimizer.clipvalue = 1e-12
    expect_same(arrays(fit(model, epochs=1)), before, atol=1e-11)


def unknown_setting(_):
    made().optimizer.wieght_decay = 0.1


def averages(_):
    model = fit(made(optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9)), epochs=1)
    kept = find_sparse(model.optimizer).inner_optimizer._model_variables_moving_average
    expect_same(
        {v.path: engine.to_numpy(v) for v in model.trainable_variables},
        {v.path: engine.to_numpy(a) for v, a in zip(model.trainable_variables, kept, strict=True)},
    )


def overwriting(_):
    fit(made(optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2)))


def late_average(_):
    fit(made()).optimizer.use_ema = True


def mean_of_weights(_):
    first, second = fit(made()), fit(made(optimizers.SGD(1.0)), epochs=4)
    pairs = zip(first.get_weights(), second.get_weights(), strict=True)
    first.set_weights([(one * 0.5 + other * 0.5) for one, other in pairs])


def early_stopping(_):
    for monitor in ("val_accuracy", "val_disagreement", "accuracy"):
        stopping = callbacks.EarlyStopping(monitor=monitor, patience=1, restore_best_weights=True)
        fit(made(), stopping, epochs=4, validation_data=(X, Y))


def model_checkpoint(folder):
    for name, only in (("best.keras", False), ("best.weights.h5", True)):
        saving = callbacks.ModelCheckpoint(
            str(folder / name), monitor="val_accuracy", save_best_only=True, save_weights_only=only
        )
        model = fit(made(), saving, epochs=1, validation_data=(X, Y))
        loaded = fit(made(optimizers.SGD(0.5)), epochs=1) if only else None
        if only:
            loaded = made()
            loaded.build_optimizer()
            loaded.load_weights(folder / name)
        else:
            loaded = keras.models.load_model(folder / name)
        expect_same(arrays(loaded), arrays(model))
        expect_sparse(loaded)


def backup(folder):
    class Stop(callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    kept = partial(callbacks.BackupAndRestore, str(folder / "backup"))
    with pytest.raises(KeyboardInterrupt):
        fit(made(), kept(), Stop())
    expect_same(arrays(fit(made(), kept())), arrays(fit(made())))


def swapping(folder):
    for around in (lambda inner: inner, optimizers.LossScaleOptimizer):
        model = made(optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.5), around=around)
        saving = callbacks.ModelCheckpoint(str(folder / "average.keras"))
        fit(model, callbacks.SwapEMAWeights(swap_on_epoch=True), saving, validation_data=(X, Y))
        saved = keras.models.load_model(folder / "average.keras")
        expect_sparse(saved)
        expect_same(arrays(saved), arrays(model), atol=1e-6)


def rates(_):
    model = made()
    plateau = callbacks.ReduceLROnPlateau(monitor="density", mode="min", factor=0.5, patience=1)
    fit(model, callbacks.LearningRateScheduler(lambda epoch: 0.1), plateau)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)


def terminate(_):
    spoilt, model = X.copy(), made(topology=Static(sparsity=0.6))
    spoilt[0] = np.nan
    model.fit(
        spoilt, Y, batch_size=8, epochs=3, verbose=0, callbacks=[callbacks.TerminateOnNaN()], shuffle=False
    )
    assert int(model.optimizer.iterations) == 1


def assigning(_):
    class Assign(callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kernel = self.model.variable(KERNEL)
            kernel.assign(np.ones(kernel.shape, np.float32))
            expect_sparse(self.model)

        def on_epoch_end(self, epoch, logs=None):
            layer = next(layer for layer in self.model.layers if layer.name == "head1-classifier-linear1")
            layer.set_weights(
                [np.ones_like(value) for value in layer.get_weights()[:-1]] + [layer.get_weights()[-1]]
            )
            expect_sparse(self.model)

    model = fit(made(), Assign())
    assert (model.array(KERNEL)[model.mask(KERNEL)] == 1).all()


def second_update(_):
    fit(made(), nt_keras.TopologyUpdate(100))


def expect_frozen(model, compiled):
    frozen = [variable for variable in model.weights if variable.path.startswith("backbone")]
    before = [engine.to_numpy(variable).copy() for variable in frozen]
    for layer in model.layers:
        layer.trainable = not layer.name.startswith("backbone")
    if not compiled:
        model.compile(nt_keras.sparse("adam", model), nt_keras.ensemble_loss(), run_eagerly=model.run_eagerly)
    others = {name: model.mask(name) for name in model.masked if not name.startswith("backbone")}
    fit(model, counted=model.spec.topology.scope == "layer")
    for variable, value in zip(frozen, before, strict=True):
        np.testing.assert_array_equal(engine.to_numpy(variable), value)
    assert any((model.mask(name) != mask).any() for name, mask in others.items())


def freeze_before(_):
    for grow in GROWS:
        expect_frozen(made(topology=DYNAMIC.replace(grow=grow)), compiled=False)
    expect_frozen(made(topology=DYNAMIC.replace(scope="global")), compiled=False)


def freeze_after(_):
    expect_frozen(fit(made(run_eagerly=False)), compiled=True)


def freeze_averaged(_):
    expect_frozen(fit(made(optimizers.Adam(use_ema=True))), compiled=True)


def saving(folder):
    model = fit(made())
    model.save(folder / "all.keras")
    model.save_weights(folder / "all.weights.h5")
    expect_same(arrays(keras.models.load_model(folder / "all.keras")), arrays(model))
    other = fit(made(optimizers.Adam(0.1)))
    other.load_weights(folder / "all.weights.h5")
    expect_same(arrays(other), arrays(model))
    expect_sparse(other)


def legacy(folder):
    fit(made()).save(folder / "all.h5")


def another_total(folder):
    fit(made()).save(folder / "half.keras")
    fit(keras.models.load_model(folder / "half.keras"), total=101)


def outer(part, optimizer):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, part(2 * inputs))
    model.compile(optimizer, nt_keras.ensemble_loss(), run_eagerly=engine.ENGINE == "tensorflow")
    return model


def nested(_):
    part = made()
    model = outer(part, nt_keras.sparse(optimizers.SGD(0.1, momentum=0.9), part))
    before = part.array(KERNEL).copy()
    model.fit(X, Y, verbose=0)
    assert (part.array(KERNEL) != before).any()
    part.optimizer = model.optimizer
    expect_sparse(part)


def nested_plain(_):
    outer(made(), "sgd").fit(X, Y, verbose=0)


def clone(_):
    model = fit(made())
    copy = keras.models.clone_model(model)
    with pytest.raises(NeuroTrailsError, match=r"nt_keras\.compile"):
        copy.fit(X, Y, verbose=0)
    for use in (partial(nt_keras.sparse, "sgd"), nt_keras.checkpoint, partial(nt_keras.predict, inputs=X)):
        with pytest.raises(NeuroTrailsError, match=r"nt_keras\.compile"):
            use(copy)
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(copy.predict(X, verbose=0), model.predict(X, verbose=0))


def modes(_):
    expect_same(arrays(fit(made(run_eagerly=True))), arrays(fit(made(run_eagerly=False))), atol=1e-5)


def several_steps(_):
    if engine.ENGINE == "torch":
        pytest.skip("Keras refuses it there")
    fit(made(steps_per_execution=2, run_eagerly=False))


ROWS = {
    **{("optimiser", name): lambda _, make=make: fit(made(make())) for name, make in OPTIMIZERS.items()},
    ("optimiser", "without `sparse`"): plain,
    ("wrapper", "`LossScaleOptimizer(sparse(…))`"): scale_outside,
    ("wrapper", "`sparse(LossScaleOptimizer(…))`"): scale_inside,
    ("wrapper", "`LossScaleOptimizer` and `use_ema`"): scale_and_average,
    ("wrapper", "`MultiOptimizer`"): several,
    ("wrapper", "`sparse` twice"): twice,
    ("setting", "`clipnorm`, `global_clipnorm`, `clipvalue`"): clipping,
    ("setting", "`weight_decay`, `exclude_from_weight_decay`"): decay,
    ("setting", "`gradient_accumulation_steps`"): accumulation,
    ("setting", "learning-rate schedules"): schedules,
    ("setting", "set after the first step"): late_setting,
    ("setting", "a name that the optimiser does not have"): unknown_setting,
    ("average", "`use_ema`"): averages,
    ("average", "`ema_overwrite_frequency`"): overwriting,
    ("average", "`use_ema` set after the first step"): late_average,
    ("average", "mean of several `get_weights()`"): mean_of_weights,
    ("callback", "`EarlyStopping`"): early_stopping,
    ("callback", "`ModelCheckpoint`"): model_checkpoint,
    ("callback", "`BackupAndRestore`"): backup,
    ("callback", "`SwapEMAWeights`"): swapping,
    ("callback", "`ReduceLROnPlateau`, `LearningRateScheduler`"): rates,
    ("callback", "`TerminateOnNaN`"): terminate,
    ("callback", "one that assigns kernels"): assigning,
    ("callback", "a second `update`"): second_update,
    ("freezing", "`trainable = False` before `compile`"): freeze_before,
    ("freezing", "`trainable = False` after `compile`"): freeze_after,
    ("freezing", "after the first step, with `use_ema`"): freeze_averaged,
    ("saving", "`.keras` and `.weights.h5`"): saving,
    ("saving", "`.h5`"): legacy,
    ("saving", "another `total_steps`, seed, policy, topology after loading"): another_total,
    ("model", "a part of another, `sparse(…, part)`"): nested,
    ("model", "a part of another, without `sparse`"): nested_plain,
    ("model", "`clone_model`"): clone,
    ("model", "`run_eagerly`, `jit_compile`"): modes,
    ("model", "`steps_per_execution` above 1"): several_steps,
}


def test_the_table_has_a_row_for_each_test_and_a_test_for_each_row():
    assert set(rows("Keras")) == set(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: re.sub(r"[^\w.]+", "-", " ".join(row)))
def test_a_row(row, tmp_path):
    if rows("Keras")[row] == "works":
        ROWS[row](tmp_path)
        return
    with pytest.raises(NeuroTrailsError):
        ROWS[row](tmp_path)
