"""Losses and gradients that are not finite: training stops before anything changes, or passes them over."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from finite import *  # noqa: F403
from finite import STOPPED, spec_of, train, train_until_its_steps_are_taken
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import nt_torch
from nt_core import NotFiniteError, OneRun
from nt_core.finite import gradient_not_finite
from nt_core.testing.data import Blobs
from nt_core.testing.spoiling import expect_no_trace, spoilt
from nt_core.training import SGD, Adam, AdamW, LearningRate, Training
from nt_torch.training import steps

PRESETS_HERE = ["treenet", "neurotrails", "rigl_paper", "snfs", "deep_r", "gradual_pruning"]


@pytest.mark.parametrize("preset", PRESETS_HERE)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_batch_that_is_passed_over_leaves_no_trace(preset, accumulation, tmp_path):
    recipe = Training(
        batch_size=12, accumulation=accumulation, non_finite="skip", learning_rate=LearningRate(warmup=0.3)
    )
    run = (nt_torch.train, nt_torch.checkpoint, spec_of(preset), recipe, tmp_path)
    expect_no_trace(*run, size=100, rows=[3, 30, 37, 99])


@given(data=st.data())
@settings(max_examples=10)
def test_any_batches_and_recipe(data, tmp_path_factory):
    size, accumulation = data.draw(st.integers(13, 80)), data.draw(st.sampled_from([1, 2, 3]))
    batch_size = data.draw(st.integers(1, 4)) * 6
    optimizer = data.draw(st.sampled_from([SGD(lr=0.1), Adam(lr=0.01), AdamW(lr=0.01)]))
    rows = data.draw(st.sets(st.integers(0, size - 1), max_size=5))
    assume(len({row // batch_size for row in rows}) < -(-size // batch_size))
    assume(size % (batch_size // accumulation) != 1)  # of one example there is no variance
    recipe = Training(
        batch_size=batch_size,
        accumulation=accumulation,
        optimizer=optimizer,
        clip_norm=data.draw(st.sampled_from([None, 1.0])),
        precision=data.draw(st.sampled_from(["float32", "bfloat16"])),
        non_finite="skip",
    )
    spec = spec_of(data.draw(st.sampled_from(["neurotrails", "rigl_paper", "snfs", "treenet"])))
    value = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 3e38]))
    run = (nt_torch.train, nt_torch.checkpoint, spec, recipe, tmp_path_factory.mktemp("run"))
    expect_no_trace(*run, size=size, rows=rows, value=value, stops=[1] if len(rows) % 2 else [])


def test_training_goes_on_until_its_steps_are_taken(backend):
    train_until_its_steps_are_taken(backend)
    events = []
    trained = train(backend, spec_of("neurotrails").replace(plan=OneRun(epochs=4)), Blobs(50), events.append)
    assert (trained.skipped, "skipped" in events[-1]) == (0, False)


def guarded(monkeypatch, spec, data, **recipe):
    """Train until it stops; return its model, optimiser and the error."""
    runs = []
    make = nt_torch.train.__globals__["Topology"]

    class Seen(make):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            runs.append((self, []))

        def step(self):
            changed = super().step()
            runs[-1][1][:] = [copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))]
            return changed

    monkeypatch.setitem(nt_torch.train.__globals__, "Topology", Seen)
    with pytest.raises(NotFiniteError) as error:
        train(nt_torch, spec, data, **recipe)
    return *runs[-1], str(error.value)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("preset", ["single", "neurotrails", "rigl_paper"])
def test_a_training_stops_before_the_optimizer_changes_anything(preset, clip_norm, monkeypatch):
    spec = spec_of(preset).replace(plan=OneRun(epochs=2))
    topology, (last,), message = guarded(monkeypatch, spec, spoilt(60, [37]), clip_norm=clip_norm)
    assert topology.steps == 3
    assert re.fullmatch(STOPPED, message)
    for name, tensor in last[0].items():
        if "running" not in name and "batches" not in name:
            assert torch.equal(topology.model.state_dict()[name], tensor)
    for key, state in last[1]["state"].items():
        for name, value in state.items():
            assert value is None or torch.equal(topology.optimizer.state_dict()["state"][key][name], value)


def test_a_norm_that_overflows_is_an_error_of_its_own():
    message = str(gradient_not_finite(1, 0.1, {"backbone/a.weight": 2.5e38, "head1/b.weight": 2.6e38}))
    assert "the norm of all gradients overflows, that of its own is 2.6e+38, expected" in message


def scaled(monkeypatch, scale, **settings):
    """Let trainings on a CPU have a loss scale, as those in float16 have on a GPU."""
    make = nt_torch.train.__globals__["make_accelerator"]

    def made(*args):
        accelerator = make(*args)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, **settings)
        return accelerator

    monkeypatch.setitem(nt_torch.train.__globals__, "make_accelerator", made)


@pytest.mark.parametrize(
    "optimizer", [SGD(lr=0.05), Adam()], ids=lambda each: each.kind
)  # one of them is fused
@pytest.mark.parametrize("non_finite", ["stop", "skip"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_scale_may_find_its_size(non_finite, optimizer, accumulation, monkeypatch):
    scaled(monkeypatch, 2.0**127)
    spec, events = spec_of("neurotrails").replace(plan=OneRun(epochs=4)), []
    recipe = {"optimizer": optimizer, "non_finite": non_finite, "accumulation": accumulation}
    trained = train(nt_torch, spec, Blobs(60), events.append, **recipe)
    assert (trained.steps, trained.skipped) == (24, 0)
    assert trained.examples > 240
    assert all(math.isfinite(event["loss"]) for event in events if event["event"] == "epoch")


@pytest.mark.parametrize("optimizer", [SGD(lr=0.05), Adam()], ids=lambda each: each.kind)
def test_a_loss_that_is_not_finite_is_none_of_the_scales_business(optimizer, monkeypatch):
    scaled(monkeypatch, 2.0**4)
    spec, events = spec_of("neurotrails").replace(plan=OneRun(epochs=2)), []
    with pytest.raises(
        NotFiniteError, match=r"^step 2: the loss is not finite, expected a finite number; .* after step 1"
    ):
        train(nt_torch, spec, spoilt(60, [14]), optimizer=optimizer)
    trained = train(nt_torch, spec, spoilt(60, [14]), events.append, optimizer=optimizer, non_finite="skip")
    assert (trained.steps, trained.skipped) == (12, 3)
    assert sum(event["event"] == "skipped" for event in events) == 3
    running = [name for name in trained.model.state_dict() if "running" in name]
    assert running
    assert all(trained.model.state_dict()[name].isfinite().all() for name in running)


def test_a_loss_scale_that_finds_no_size_is_an_error(monkeypatch):
    """Gradients that are not finite whatever the loss is multiplied by."""

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * math.inf

    loss = steps.ensemble_loss
    broken = lambda logits, *args, **kwargs: loss(Broken.apply(logits), *args, **kwargs)  # noqa: E731
    monkeypatch.setattr(steps, "ensemble_loss", broken)
    scaled(monkeypatch, 2.0**4)
    with pytest.raises(NotFiniteError, match=r"epoch 1: no batch gave a finite gradient"):
        train(nt_torch, spec_of("single").replace(plan=OneRun(epochs=9)), Blobs(60))


def test_an_infinite_loss_whose_gradient_is_finite_counts(monkeypatch):
    loss, calls = steps.ensemble_loss, []

    def infinite(*args, **kwargs):
        calls.append(None)
        return loss(*args, **kwargs) + (math.inf if len(calls) == 3 else 0)

    monkeypatch.setattr(steps, "ensemble_loss", infinite)
    spec = spec_of("neurotrails").replace(plan=OneRun(epochs=1))
    assert train(nt_torch, spec, Blobs(60), non_finite="skip").skipped == 1
    calls.clear()
    with pytest.raises(NotFiniteError, match="step 3: the norm of its gradient is nan"):
        train(nt_torch, spec, Blobs(60))
