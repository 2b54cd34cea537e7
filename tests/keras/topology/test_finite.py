"""Losses and gradients that are not finite: training stops before anything changes, or passes them over."""

import math
import re

import keras
import numpy as np
import pytest
from finite import *  # noqa: F403
from finite import STOPPED, spec_of, train, train_until_its_steps_are_taken
from keras import ops

import nt_keras
from nt_core import NotFiniteError, OneRun
from nt_core.testing.data import Blobs
from nt_core.testing.spoiling import expect_no_trace, spoilt
from nt_core.training import SGD, Adam, AdamW, LearningRate, Training
from nt_keras.engines import engine
from nt_keras.topology.finite import Guard, innermost


@pytest.mark.parametrize(
    ("preset", "accumulation", "optimizer", "clip_norm", "value", "stops"),
    [
        ("treenet", 1, Adam(lr=0.01), None, np.nan, []),
        ("neurotrails", 1, SGD(lr=0.1), 1.0, np.inf, [2]),
        ("neurotrails", 3, AdamW(lr=0.01), 1.0, np.nan, [2]),
        ("rigl_paper", 3, SGD(lr=0.1), None, 3e38, []),
        ("snfs", 3, SGD(lr=0.1), None, np.nan, [3]),
    ],
)
def test_a_batch_that_is_passed_over_leaves_no_trace(
    preset, accumulation, optimizer, clip_norm, value, stops, tmp_path
):
    recipe = Training(
        batch_size=12,
        accumulation=accumulation,
        optimizer=optimizer,
        clip_norm=clip_norm,
        non_finite="skip",
        learning_rate=LearningRate(warmup=0.3),
    )
    run = (nt_keras.train, nt_keras.checkpoint, spec_of(preset), recipe, tmp_path)
    expect_no_trace(*run, size=100, rows=[3, 30, 37, 90], value=value, stops=stops)


def test_training_goes_on_until_its_steps_are_taken(backend):
    trained = train_until_its_steps_are_taken(backend)
    assert not isinstance(trained.model.optimizer, Guard)
    trained.model.fit(Blobs(20).inputs, Blobs(20).labels, callbacks=[nt_keras.TopologyUpdate(99)], verbose=0)


def stopping(monkeypatch, spec, data, **recipe):
    """Train until it stops; return the model, a copy of its variables at each step's end, and the error."""
    models, copies = [], []

    def compiled(*args, **kwargs):
        models.append(nt_keras.compile(*args, **kwargs))
        return models[-1]

    def report(event):
        if event["event"] == "step":
            content = nt_keras.training.states.content(models[0])
            copies.append({kind: content[kind] for kind in ("model", "optimizer")})

    monkeypatch.setitem(nt_keras.train.__globals__, "compile", compiled)
    with pytest.raises(NotFiniteError) as error:
        train(nt_keras, spec, data, report, **recipe)
    return models[0], copies, str(error.value)


@pytest.mark.parametrize(("preset", "accumulation"), [("single", 1), ("rigl_paper", 1), ("neurotrails", 2)])
def test_a_training_stops_before_the_optimizer_changes_anything(preset, accumulation, monkeypatch):
    spec = spec_of(preset).replace(plan=OneRun(epochs=2))
    model, copies, message = stopping(monkeypatch, spec, spoilt(60, [37]), accumulation=accumulation)
    assert len(copies) == 3
    assert re.fullmatch(STOPPED, message)
    running = {id(model.variable(p.name)) for p in model.spec.layout.weights if p.weight.role == "running"}
    found = [v for v in model.variables if id(v) not in {id(m) for m in model.metrics_variables}]
    for variable, before in zip(found, copies[-1]["model"], strict=True):
        if id(variable) not in running:
            np.testing.assert_array_equal(engine.to_numpy(variable), before)
    own = innermost(model.optimizer).variables
    for variable, before in zip(own, copies[-1]["optimizer"][-len(own) :], strict=True):
        np.testing.assert_array_equal(engine.to_numpy(variable), before)


@pytest.fixture
def _half(monkeypatch):
    """Let trainings on a CPU be in float16, as they are on a GPU."""
    monkeypatch.setitem(nt_keras.train.__globals__, "has_accelerator", lambda: True)


@pytest.mark.usefixtures("_half")
@pytest.mark.parametrize(("non_finite", "accumulation"), [("stop", 1), ("skip", 2)])
def test_a_loss_scale_may_find_its_size(non_finite, accumulation, monkeypatch):
    monkeypatch.setattr(nt_keras.topology.finite, "FIRST_SCALE", 2.0**40)
    spec, events = spec_of("neurotrails").replace(plan=OneRun(epochs=6)), []
    recipe = {"precision": "float16", "non_finite": non_finite, "accumulation": accumulation}
    trained = train(nt_keras, spec, Blobs(60), events.append, **recipe)
    assert (trained.steps, trained.skipped) == (36, 0)
    assert trained.examples > 360
    epochs = [event for event in events if event["event"] == "epoch"]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert isinstance(trained.model.optimizer, keras.optimizers.LossScaleOptimizer)


@pytest.mark.usefixtures("_half")
def test_a_loss_that_is_not_finite_is_none_of_the_scales_business():
    spec, events = spec_of("neurotrails").replace(plan=OneRun(epochs=2)), []
    with pytest.raises(NotFiniteError, match=r"^step 2: the loss is not finite, .* after step 1"):
        train(nt_keras, spec, spoilt(60, [14]), precision="float16")
    trained = train(nt_keras, spec, spoilt(60, [14]), events.append, precision="float16", non_finite="skip")
    assert (trained.steps, trained.skipped) == (12, 3)
    assert sum(event["event"] == "skipped" for event in events) == 3
    assert all(np.isfinite(trained.model.array(placed.name)).all() for placed in spec.layout.weights)


def test_an_infinite_loss_whose_gradient_is_finite_counts():
    guard = Guard(keras.optimizers.SGD(1.0))
    guard.build([keras.Variable([1.0])])
    assert math.isnan(float(guard.scale_loss(ops.convert_to_tensor(math.inf))))
    assert float(guard.scale_loss(ops.convert_to_tensor(2.0))) == 2


def test_the_scale_doubles_after_many_good_steps(monkeypatch):
    monkeypatch.setattr(nt_keras.topology.finite, "GROWTH_STEPS", 2)
    weight = keras.Variable([0.0])
    guard = Guard(keras.optimizers.SGD(1.0, gradient_accumulation_steps=2), scaled=True)
    guard.build([weight])
    scales, weights = [], []
    for value in (1, 1, 1, math.inf, 1, 1, 1, 1):
        guard.apply([ops.convert_to_tensor([value * guard.scale], "float32")], [weight])
        scales.append(guard.scale / 2.0**15)
        weights.append(float(weight.numpy()[0]))
    assert scales == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 1]
    assert weights == [0, -1, -1, -1, -1, -2, -2, -3]
    again = keras.optimizers.deserialize(keras.optimizers.serialize(guard))
    assert (again.scaled, again.accumulation) == (True, 2)
