"""Training, evaluation and checkpoints."""

import numpy as np
import pytest
from small import GRAPH, short

from nt_core import (
    PRESETS,
    CheckpointError,
    DataError,
    EnsembleSpec,
    Features,
    GraphBuilder,
    Independent,
    MultiHead,
    NotFiniteError,
    OneRun,
    Single,
)
from nt_core.checkpoint import load_checkpoint, save_checkpoint
from nt_core.metrics import Fitted
from nt_core.testing import Blobs
from nt_core.training import SGD, Adam, AdamW, LearningRate, Training


def train(backend, spec, *, epochs=4, training=None, report=lambda _: None, seed=0, **options):
    spec = spec.replace(plan=OneRun(epochs=epochs))
    training = training or Training(batch_size=30, optimizer=SGD(lr=0.05))
    return backend.train(
        spec, training, Blobs(), seed=seed, test=Blobs(60, shuffle=False), report=report, **options
    )


def expect_close(backend, model, wanted, **tolerances):
    """Raise unless all weights of one model are near those of another."""
    found = backend.checkpoint(model).values
    for name, value in backend.checkpoint(wanted).values.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **tolerances)


def alike():
    """Two blocks whose names differ in a character that backends replace."""
    net = GraphBuilder(Features(count=4))
    for name in ("a.b", "a_b"):
        with net.block(name) as b:
            b.out = b.linear(b.inp, 4, name="fc")
    with net.classifier() as b:
        b.out = b.linear(b.inp, 2)
    return EnsembleSpec(graph=net.build())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_saves_and_loads(backend, preset, tmp_path):
    records = []
    spec = short(preset)
    recipe = Training(batch_size=30, optimizer=SGD(lr=0.2))
    trained = train(backend, spec, report=records.append, training=recipe, epochs=10)
    assert trained.steps == 30
    assert trained.examples == 900
    assert trained.metrics.accuracy > 0.6
    events = [record["event"] for record in records]
    assert events[0] == "start"
    assert events.count("epoch") == 10
    assert events.count("step") == 30
    assert ("update" in events) == (spec.topology.kind in {"dynamic", "gradual_pruning"})
    save_checkpoint(tmp_path, backend.checkpoint(trained.model, {"seed": 0}))
    loaded = backend.load(tmp_path)
    x = Blobs(20).inputs
    np.testing.assert_array_equal(backend.predict(loaded, x), backend.predict(trained.model, x))
    active = sum(mask.count for mask in load_checkpoint(tmp_path).masks.values())
    assert active == (sum(spec.counts.values()) if spec.topology.kind != "dense" else 0)
    pairs = [record.get("disagreement_matrix") for record in records if record["event"] == "epoch"]
    assert pairs[-1] == (trained.metrics.disagreement_matrix.tolist() if spec.members > 1 else None)
    first_alone = Fitted(weights=(1.0, *[0.0] * (spec.members - 1)))
    metrics = backend.evaluate(loaded, Blobs(20), aggregation=first_alone)
    assert metrics.accuracy == metrics.member_accuracy[0]


def test_the_same_seed_is_the_same_run_to_the_bit(backend):
    first, second, other = (
        backend.checkpoint(train(backend, short("neurotrails"), seed=seed).model) for seed in (3, 3, 4)
    )
    assert first.masks == second.masks
    assert all(np.array_equal(first.values[key], second.values[key]) for key in first.values)
    assert not all(np.array_equal(first.values[key], other.values[key]) for key in first.values)


def test_members_of_a_full_ensemble_train_as_if_alone(backend):
    """A mean over members would divide each one's gradient by M."""
    together, alone = (
        train(backend, EnsembleSpec(graph=GRAPH, structure=structure)).model
        for structure in (Independent(count=3), Single())
    )
    expect_close(backend, together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.2), Adam(lr=0.01), AdamW(lr=0.01)], ids=lambda o: o.kind)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_optimizers_precisions_accumulation_and_clipping(backend, optimizer, precision):
    recipe = Training(batch_size=30, accumulation=3, optimizer=optimizer, precision=precision, clip_norm=1.0)
    trained = train(backend, short("neurotrails"), training=recipe, epochs=12)
    assert trained.steps == 36
    assert trained.metrics.accuracy > 0.5
    for name in trained.model.masked:
        assert (trained.model.array(name)[~trained.model.mask(name)] == 0).all()


def test_accumulated_batches_train_as_whole_ones(backend):
    recipe = Training(batch_size=30, optimizer=SGD(lr=0.05))
    whole, parts = (
        train(backend, short("neurotrails"), training=recipe.replace(accumulation=n)).model for n in (1, 3)
    )
    expect_close(backend, parts, whole, rtol=1e-3, atol=1e-4)


def test_accumulation_changes_nothing_where_the_last_batch_is_short(backend):
    recipe = Training(batch_size=64, optimizer=SGD(lr=0.05, momentum=0.0))
    records = {1: [], 16: []}
    whole, parts = (
        train(backend, short("single"), training=recipe.replace(accumulation=n), epochs=3, report=into.append)
        for n, into in records.items()
    )
    expect_close(backend, parts.model, whole.model, rtol=1e-4, atol=1e-6)
    losses = [[r["loss"] for r in each if r["event"] == "epoch"] for each in records.values()]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_half_precision_on_a_cpu_is_an_error_instead_of_nothing(backend):
    with pytest.raises(DataError, match="float16 needs a GPU"):
        train(backend, short("single"), training=Training(batch_size=30, precision="float16"))


def test_values_that_somebody_writes_where_a_model_is_inactive_are_not_saved(backend, tmp_path):
    model = backend.compile(short("neurotrails"))
    name = model.masked[0]
    before = backend.checkpoint(model)
    written = before.values[name] + np.float32(0.1)
    backend.assign(model, name, written)
    if backend.__name__ == "nt_keras":  # whose variables refuse such values, unless they are forced upon them
        with pytest.raises(CheckpointError, match="inactive elements are not 0"):
            save_checkpoint(tmp_path, backend.checkpoint(model))
        return
    save_checkpoint(tmp_path, backend.checkpoint(model))
    found = load_checkpoint(tmp_path)
    assert found.masks == before.masks
    np.testing.assert_array_equal(found.values[name], np.where(before.masks[name].dense(), written, 0))


def test_the_learning_rate_follows_its_schedule(backend):
    records = []
    recipe = Training(
        batch_size=30,
        optimizer=SGD(lr=0.1),
        learning_rate=LearningRate(schedule="steps", milestones=(0.5,), factor=0.1),
    )
    train(backend, short("single"), training=recipe, report=records.append)
    rates = [record["lr"] for record in records if record["event"] == "epoch"]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_a_plan_in_steps_stops_there(backend):
    trained = backend.train(
        short("neurotrails").replace(plan=OneRun(steps=7)), Training(batch_size=30), Blobs()
    )
    assert trained.steps == 7
    assert trained.examples == 210


def test_a_loss_that_is_not_finite_says_what_to_do(backend):
    with pytest.raises(
        NotFiniteError, match=r"step 2: the norm of its gradient is nan .* Lower the learning rate"
    ):
        train(backend, short("single"), training=Training(batch_size=30, optimizer=SGD(lr=1e20)))


def test_nothing_to_train_on(backend):
    spec = short("single").replace(plan=OneRun(epochs=1))
    with pytest.raises(DataError, match="at least one training example"):
        backend.train(spec, Training(), Blobs(0))


def test_a_tracker_that_is_not_there(backend):
    with pytest.raises(DataError, match="tracker 'tensorbord'"):
        train(backend, short("single"), trackers=["tensorbord"])


def test_a_checkpoint_of_another_spec_is_an_error(backend, tmp_path):
    model = backend.compile(EnsembleSpec(graph=GRAPH, structure=MultiHead(split=1, heads=2)))
    save_checkpoint(tmp_path, backend.checkpoint(model))
    other = EnsembleSpec(graph=GRAPH, structure=MultiHead(split=1, heads=3))
    with pytest.raises(CheckpointError, match="another spec: weight 'head3/"):
        load_checkpoint(tmp_path, expected=other)
