"""Losses and gradients that are not finite: training stops before anything changes, or passes them over."""

import math

import numpy as np
import pytest
from small import GRAPH as RECTIFIED
from small import short

import nt_models
from nt_core import DataError, NotFiniteError, OneRun
from nt_core.testing.spoiling import spoilt
from nt_core.training import SGD, LearningRate, Training

GRAPH = nt_models.mlp(inputs=6, hidden=(16, 16), classes=3, norm=True)
STOPPED = (
    r"weight '(backbone|head1)/hidden1/linear1\.weight', step 4: the norm of its gradient is nan "
    r"\(and of \d+ other weights' not finite\), expected a finite number; weights are those after step "
    r"3, the learning rate is 0\.0\d+\. Lower .* skip"
)


def spec_of(preset):
    return short(preset, GRAPH)


def train(backend, spec, data, report=lambda _: None, **recipe):
    training = Training(**{"batch_size": 10, "optimizer": SGD(lr=0.05)} | recipe)
    return backend.train(spec, training, data, device="cpu", report=report)


def train_until_its_steps_are_taken(backend):
    """Each epoch has five batches, one of them spoilt."""
    events = []
    schedule = LearningRate(schedule="cosine")
    spec = spec_of("neurotrails").replace(plan=OneRun(epochs=4))
    trained = train(backend, spec, spoilt(50, [14]), events.append, non_finite="skip", learning_rate=schedule)
    assert (trained.steps, trained.skipped, trained.examples) == (20, 5, 250)
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 21))
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [event["skipped"] for event in epochs] == [1, 2, 3, 4, 5]
    assert epochs[-1]["lr"] == pytest.approx(0.05 * schedule.at(19, 20))
    assert [event["step"] for event in events if event["event"] == "skipped"] == [2, 6, 10, 14, 18]
    assert all(math.isfinite(event["loss"]) for event in epochs)
    return trained


@pytest.mark.parametrize("accumulation", [1, 5])
def test_an_epoch_of_nothing_else_is_an_error(backend, accumulation):
    spec, data = spec_of("neurotrails").replace(plan=OneRun(epochs=2)), spoilt(30, [1, 12, 29])
    events = []
    with pytest.raises(
        NotFiniteError,
        match=r"epoch 1: no batch gave a finite gradient, so no step was taken, expected one; .*after step 0",
    ):
        train(backend, spec, data, events.append, non_finite="skip", accumulation=accumulation)
    assert [event["event"] for event in events] == ["start", "skipped", "skipped", "skipped"]


def test_a_feature_that_is_not_finite_gives_no_finite_logits_and_an_error_at_evaluation(backend):
    model, data = backend.compile(short("neurotrails", RECTIFIED)), spoilt(12, [3])
    logits = backend.predict(model, data.inputs)
    assert np.isnan(logits[:, 3]).all()
    assert np.isfinite(np.delete(logits, 3, axis=1)).all()
    with pytest.raises(DataError, match="logits: nan at member 0, row 3"):
        backend.evaluate(model, data)
