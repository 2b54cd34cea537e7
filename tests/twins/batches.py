"""Batches that are too small for batch normalisation, and labels that do not count."""

import numpy as np
import pytest
from small import short

import nt_models
from nt_core import PRESETS, DataError, OneRun, SpecError
from nt_core.metrics import IGNORED
from nt_core.testing import Blobs
from nt_core.training import SGD, Training

NORMED = nt_models.mlp(inputs=6, hidden=(8, 8), classes=3, norm=True)


class Relabelled(Blobs):
    """Blobs of which some have another label."""

    def __init__(self, size=90, *, label=IGNORED, rows=slice(0, 90, 3), **options):
        super().__init__(size, **options)
        self.labels[rows] = label


class Kept(Blobs):
    """The same without these examples, in the same order."""

    def __init__(self, relabelled, **options):
        super().__init__(90, **options)
        kept = relabelled.labels != IGNORED
        self.inputs, self.labels = self.inputs[kept], self.labels[kept]


def run(backend, graph, data, *, batch_size, accumulation=1, epochs=2, preset="neurotrails", **options):
    events = []
    training = Training(batch_size=batch_size, accumulation=accumulation, optimizer=SGD(lr=0.05))
    spec = short(preset, graph).replace(plan=OneRun(epochs=epochs))
    return backend.train(spec, training, data, report=events.append, **options), events


@pytest.mark.parametrize(("batch_size", "accumulation", "steps"), [(30, 1, 3), (20, 2, 5)])
def test_a_last_batch_of_one_is_left_out_said_once_and_counted(backend, batch_size, accumulation, steps):
    trained, events = run(backend, NORMED, Blobs(91), batch_size=batch_size, accumulation=accumulation)
    assert (trained.steps, trained.examples, trained.dropped) == (2 * steps, 180, 1)
    dropped = [event for event in events if event["event"] == "dropped"]
    assert dropped == [{"event": "dropped", "examples": 1, "of": 91}]
    assert [event["dropped"] for event in events if event["event"] == "epoch"] == [1, 1]


def test_a_larger_last_batch_is_trained_on(backend):
    trained, events = run(backend, NORMED, Blobs(92), batch_size=30, epochs=1)
    assert (trained.examples, trained.dropped) == (92, 0)
    assert not any("dropped" in event or event["event"] == "dropped" for event in events)


def test_without_batch_norm_every_example_is_trained_on(backend):
    plain = nt_models.mlp(inputs=6, hidden=(8, 8), classes=3)
    trained, _ = run(backend, plain, Blobs(31), batch_size=30, epochs=1)
    assert (trained.steps, trained.examples, trained.dropped) == (2, 31, 0)


def test_micro_batches_of_one_are_refused(backend):
    with pytest.raises(DataError, match=r"training\.accumulation: 6 examples in 6 micro-batches"):
        run(backend, NORMED, Blobs(12), batch_size=6, accumulation=6)
    with pytest.raises(DataError, match="1 training examples are too few: batch normalisation"):
        run(backend, NORMED, Blobs(1), batch_size=6)


def test_labels_of_minus_100_change_nothing(backend):
    """One batch in which a third of the labels is ignored has the loss of a batch without them."""
    data = Relabelled(shuffle=False)
    plain = nt_models.mlp(inputs=6, hidden=(8,), classes=3)
    with_them, events = run(backend, plain, data, batch_size=90, epochs=1)
    without, others = run(backend, plain, Kept(data, shuffle=False), batch_size=90, epochs=1)
    for name, value in backend.checkpoint(without.model).values.items():
        found = backend.checkpoint(with_them.model).values[name]
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6, err_msg=name)
    losses = [next(e["loss"] for e in each if e["event"] == "epoch") for each in (events, others)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    ours, theirs = (backend.evaluate(without.model, each) for each in (data, Kept(data, shuffle=False)))
    assert ours.count == theirs.count == 60
    np.testing.assert_allclose(ours.nll, theirs.nll, rtol=1e-6)


def test_a_batch_without_any_label_teaches_nothing(backend):
    trained, _ = run(backend, NORMED, Relabelled(rows=slice(None)), batch_size=90, epochs=1, preset="single")
    start = backend.checkpoint(backend.compile(short("single", NORMED), seed=0)).values
    for name, value in backend.checkpoint(trained.model).values.items():
        if "linear" in name and "bias" in name:
            np.testing.assert_array_equal(value, start[name])


@pytest.mark.parametrize("label", [-1, 3, -99, 2**40])
def test_other_labels_outside_the_classes_are_refused(backend, label):
    with pytest.raises(DataError, match=rf"labels: {label} at position 0, expected 0 to 2"):
        run(backend, NORMED, Relabelled(label=label, shuffle=False), batch_size=30)


@pytest.mark.parametrize("seed", [2**64, -1, 1.5, True])
def test_seeds_that_frameworks_cannot_read_are_refused(backend, seed):
    with pytest.raises(SpecError, match=r"seed: expected a whole number from 0 to 2\*\*64 - 1, found"):
        run(backend, NORMED, Blobs(90), batch_size=30, seed=seed)


WORDS = nt_models.llama(blocks=1, width=8, hidden=8, heads=2, vocabulary=5, length=4)


def test_tokens_that_are_no_whole_numbers_are_refused(backend):
    model = backend.compile(PRESETS["single"](WORDS))
    tokens = np.array([[0, 1, 4, 2]])
    expected = backend.predict(model, tokens)
    for same in (tokens.astype(np.float64), tokens.astype(np.uint8), tokens.astype(np.int16)):
        np.testing.assert_array_equal(backend.predict(model, same), expected)
    for wrong, found in ((1.5, "1.5"), (np.nan, "nan"), (np.inf, "inf")):
        given = tokens.astype(np.float32)
        given[0, 2] = wrong
        with pytest.raises(DataError, match=f"expected tokens, whole numbers from 0 to 4, found {found};"):
            backend.predict(model, given)
    with pytest.raises(DataError, match="input: expected tokens from 0 to 4, found 0 to 7"):
        backend.predict(model, tokens.astype(np.float64) + np.array([0, 0, 0, 5]))
    with pytest.raises(DataError, match="found bool"):
        backend.predict(model, tokens > 0)
