"""Trainings that are stopped and gone on with come to the same end, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nt_keras
import nt_models
from nt_core import PRESETS, CheckpointError, OneRun
from nt_core.states import States
from nt_core.testing.data import Blobs
from nt_core.testing.resumption import expect_same_outcome, train_in_pieces
from nt_core.training import SGD, AdamW, LearningRate, Training

GRAPH = nt_models.mlp(inputs=6, hidden=(16, 16), classes=3)


def short(preset):
    spec = PRESETS[preset](GRAPH)
    if not hasattr(spec.topology, "interval"):
        return spec
    sparsity = spec.topology.sparsity if spec.topology.sparsity <= 0.8 else 0.6
    return spec.replace(topology=spec.topology.replace(interval=2, sparsity=sparsity))


def both(spec, recipe, folder, stops, **data):
    """Train in pieces and at one go."""
    run = (nt_keras.train, nt_keras.checkpoint, spec, recipe)
    found = train_in_pieces(*run, folder / "pieces", stops=stops, **data)
    assert found.starts == 1 + len(stops)
    expect_same_outcome(found, train_in_pieces(*run, folder / "whole", **data))
    return found


@pytest.mark.parametrize(
    ("preset", "accumulation"),
    [*((preset, 1) for preset in PRESETS), *((preset, 3) for preset in ("neurotrails", "edst", "snfs"))],
)
def test_every_preset_goes_on_where_it_stopped(preset, accumulation, tmp_path):
    spec = short(preset)
    spec = spec.replace(plan=spec.plan.replace(epochs=2, steps=None))
    optimizer = SGD(lr=0.1) if accumulation == 1 else AdamW()
    schedule = LearningRate(warmup=0.3)
    recipe = Training(batch_size=18, accumulation=accumulation, optimizer=optimizer, learning_rate=schedule)
    both(spec, recipe, tmp_path, stops=(6,))  # starting takes most of the time


def test_members_one_after_another_go_on_in_the_middle_of_the_second(tmp_path):
    spec = PRESETS["dst_ensemble"](GRAPH).replace(plan=OneRun(epochs=2, at_once=1))
    found = both(spec, Training(batch_size=18), tmp_path, stops=(13,))
    assert [event["trained"] for event in found.history if event["event"] == "member"] == [(1,), (2,), (3,)]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_sums_of_an_epoch_do_not_enter_the_next(policy, tmp_path):
    spec = short("snfs").replace(plan=OneRun(epochs=2))
    found = both(spec, Training(batch_size=30, non_finite=policy), tmp_path, stops=(3,))
    assert [event["step"] for event in found.history if event["event"] == "epoch"] == [3, 6]


class Images(Blobs):
    def epoch(self, number, batch_size, first=0):
        for inputs, labels in super().epoch(number, batch_size, first):
            yield np.resize(inputs, (len(inputs), 1, 8, 8)), labels


def test_batch_statistics_and_memory_formats_are_kept(tmp_path):
    graph = nt_models.wide_resnet(depth=10, width=1, classes=3, size=8, channels=1)
    spec = PRESETS["neurotrails"](graph).replace(plan=OneRun(epochs=2))
    images = {"data": Images(), "test": Images(30, shuffle=False)}
    both(spec, Training(batch_size=30), tmp_path, stops=(2, 3), **images)


def test_dropout_draws_the_same_numbers(tmp_path):
    graph = nt_models.wide_resnet(depth=10, width=1, classes=3, size=8, channels=1, dropout=0.5)
    spec = PRESETS["neurotrails"](graph).replace(plan=OneRun(epochs=3))
    images = {"data": Images(), "test": Images(30, shuffle=False)}
    both(spec, Training(batch_size=30), tmp_path, stops=(4,), **images)


@given(
    batch_size=st.integers(1, 6).map(lambda n: n * 6),
    accumulation=st.sampled_from([1, 2, 3]),
    stops=st.sets(st.integers(1, 30), max_size=2).map(sorted),
    steps=st.integers(31, 40),
    precision=st.sampled_from(["float32", "bfloat16"]),
)
@settings(max_examples=2)
def test_any_step_will_do(tmp_path_factory, batch_size, accumulation, stops, steps, precision):
    spec = short("neurotrails").replace(plan=OneRun(steps=steps))
    recipe = Training(batch_size=batch_size, accumulation=accumulation, precision=precision, clip_norm=1.0)
    both(spec, recipe, tmp_path_factory.mktemp("run"), stops=stops)


def test_another_training_does_not_go_on_from_it(tmp_path):
    spec, states = short("rigl").replace(plan=OneRun(epochs=1)), States(tmp_path, every=1)
    taken = []

    def fail(event):
        taken.append(event)
        if event["event"] == "step" and event["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nt_keras.train(spec, Training(batch_size=18), Blobs(), device="cpu", states=states, report=fail)
    another = Training(batch_size=18, optimizer=SGD(lr=0.2))
    with pytest.raises(
        CheckpointError, match=r"another training: training\.optimizer\.lr: 0\.1, expected 0\.2"
    ):
        nt_keras.train(spec, another, Blobs(), device="cpu", states=states)
    nt_keras.train(spec, Training(batch_size=18), Blobs(), device="cpu", states=states, report=taken.append)
    assert {"event": "resumed", "step": 2, "epoch": 0} in taken
    states.clear()
    assert not tmp_path.exists()
