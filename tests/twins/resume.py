"""Trainings that are stopped and gone on with come to the same end, bit for bit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import GRAPH, Images, short

import nt_models
from nt_core import PRESETS, CheckpointError, OneRun
from nt_core.states import States
from nt_core.testing import Blobs
from nt_core.testing.resumption import expect_same_outcome, train_in_pieces
from nt_core.training import SGD, Adam, AdamW, LearningRate, Training


def both(backend, spec, recipe, folder, stops, **data):
    """Train in pieces and at one go."""
    run = (backend.train, backend.checkpoint, spec, recipe)
    found = train_in_pieces(*run, folder / "pieces", stops=stops, **data)
    assert found.starts == 1 + len(stops)
    expect_same_outcome(found, train_in_pieces(*run, folder / "whole", **data))
    return found


def expect_to_go_on(backend, preset, accumulation, folder, stops):
    spec = short(preset)
    spec = spec.replace(plan=spec.plan.replace(epochs=2, steps=None))
    optimizer = SGD(lr=0.1) if accumulation == 1 else AdamW()
    schedule = LearningRate(warmup=0.3)
    recipe = Training(batch_size=18, accumulation=accumulation, optimizer=optimizer, learning_rate=schedule)
    both(backend, spec, recipe, folder, stops=stops)


def test_members_one_after_another_go_on_in_the_middle_of_the_second(backend, tmp_path):
    spec = PRESETS["dst_ensemble"](GRAPH).replace(plan=OneRun(epochs=2, at_once=1))
    stops = (10, 13, 17) if backend.starts_fast else (13,)
    found = both(backend, spec, Training(batch_size=18), tmp_path, stops=stops)
    assert [event["trained"] for event in found.history if event["event"] == "member"] == [(1,), (2,), (3,)]


def test_batch_statistics_and_memory_formats_are_kept(backend, tmp_path):
    graph = nt_models.wide_resnet(depth=10, width=1, classes=3, size=8, channels=1)
    spec = PRESETS["neurotrails"](graph).replace(plan=OneRun(epochs=2))
    images = {"data": Images(), "test": Images(30, shuffle=False)}
    stops = (2, 3, 4) if backend.starts_fast else (2, 3)
    both(backend, spec, Training(batch_size=30), tmp_path, stops=stops, **images)
    if backend.starts_fast:
        recipe = Training(batch_size=30, optimizer=Adam())
        both(backend, spec, recipe, tmp_path / "adam", stops=(2, 5), **images)


def test_dropout_draws_the_same_numbers(backend, tmp_path):
    graph = nt_models.wide_resnet(depth=10, width=1, classes=3, size=8, channels=1, dropout=0.5)
    spec = PRESETS["neurotrails"](graph).replace(plan=OneRun(epochs=3))
    images = {"data": Images(), "test": Images(30, shuffle=False)}
    stops = (1, 3, 4, 6) if backend.starts_fast else (4,)
    both(backend, spec, Training(batch_size=30), tmp_path, stops=stops, **images)


def any_step_will_do(max_examples, max_stops):
    """Make the test for a backend."""

    @given(
        batch_size=st.integers(1, 6).map(lambda n: n * 6),
        accumulation=st.sampled_from([1, 2, 3]),
        stops=st.sets(st.integers(1, 30), max_size=max_stops).map(sorted),
        steps=st.integers(31, 40),
        precision=st.sampled_from(["float32", "bfloat16"]),
    )
    @settings(max_examples=max_examples)
    def test(backend, tmp_path_factory, batch_size, accumulation, stops, steps, precision):
        spec = short("neurotrails").replace(plan=OneRun(steps=steps))
        recipe = Training(
            batch_size=batch_size, accumulation=accumulation, precision=precision, clip_norm=1.0
        )
        both(backend, spec, recipe, tmp_path_factory.mktemp("run"), stops=stops)

    return test


def test_another_training_does_not_go_on_from_it(backend, tmp_path):
    spec, states = short("rigl").replace(plan=OneRun(epochs=1)), States(tmp_path, every=1)
    taken = []

    def fail(event):
        taken.append(event)
        if event["event"] == "step" and event["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.train(spec, Training(batch_size=18), Blobs(), states=states, report=fail)
    another = Training(batch_size=18, optimizer=SGD(lr=0.2))
    with pytest.raises(
        CheckpointError, match=r"another training: training\.optimizer\.lr: saved 0\.1, asked 0\.2"
    ):
        backend.train(spec, another, Blobs(), states=states)
    backend.train(spec, Training(batch_size=18), Blobs(), states=states, report=taken.append)
    assert {"event": "resumed", "step": 2, "epoch": 0} in taken
    states.clear()
    assert not tmp_path.exists()
