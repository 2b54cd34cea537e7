"""Training, evaluation and checkpoints in Keras, on the engine in use."""

import keras
import numpy as np
import pytest

import nt_keras
import nt_models
from nt_core import (
    PRESETS,
    CheckpointError,
    DataError,
    EnsembleSpec,
    Features,
    GraphBuilder,
    GraphError,
    Independent,
    OneRun,
    Single,
    TopologyError,
    initial_values,
)
from nt_core.aggregation import Fitted
from nt_core.checkpoint import load_checkpoint, save_checkpoint
from nt_core.testing import Blobs
from nt_core.training import SGD, Adam, AdamW, LearningRate, Training
from nt_keras.optimizers import RecipeRate, make_optimizer

GRAPH = nt_models.mlp(inputs=6, hidden=(16, 16), classes=3)


def train(spec, *, epochs=4, training=None, report=lambda _: None, seed=0, **options):
    spec = spec.replace(plan=OneRun(epochs=epochs))
    training = training or Training(batch_size=30, optimizer=SGD(lr=0.05))
    return nt_keras.train(
        spec, training, Blobs(), seed=seed, test=Blobs(60, shuffle=False), report=report, **options
    )


def short(preset):
    spec = PRESETS[preset](GRAPH)
    if not hasattr(spec.topology, "interval"):
        return spec
    sparsity = spec.topology.sparsity if spec.topology.sparsity <= 0.8 else 0.6  # 0.99 of so few is too much
    return spec.replace(topology=spec.topology.replace(interval=2, sparsity=sparsity))


def values(model):
    return {placed.name: model.array(placed.name) for placed in model.spec.layout.weights}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_saves_and_loads(preset, tmp_path):
    records = []
    spec = short(preset)
    recipe = Training(batch_size=30, optimizer=SGD(lr=0.2))
    trained = train(spec, report=records.append, training=recipe, epochs=10)
    assert trained.steps == 30
    assert trained.examples == 900
    assert trained.metrics.accuracy > 0.6
    events = [record["event"] for record in records]
    assert events[0] == "start"
    assert events.count("epoch") == 10
    assert events.count("step") == 30
    assert ("update" in events) == (spec.topology.kind in {"dynamic", "gradual_pruning"})
    save_checkpoint(tmp_path, nt_keras.checkpoint(trained.model, {"seed": 0}))
    loaded = nt_keras.load(tmp_path)
    x = Blobs(20).inputs
    np.testing.assert_array_equal(nt_keras.predict(loaded, x), nt_keras.predict(trained.model, x))
    active = sum(mask.count for mask in load_checkpoint(tmp_path).masks.values())
    assert active == (sum(spec.counts.values()) if spec.topology.kind != "dense" else 0)
    pairs = [record.get("disagreement_matrix") for record in records if record["event"] == "epoch"]
    assert pairs[-1] == (trained.metrics.disagreement_matrix.tolist() if spec.members > 1 else None)
    first_alone = Fitted(weights=(1.0, *[0.0] * (spec.members - 1)))
    metrics = nt_keras.evaluate(loaded, Blobs(20), aggregation=first_alone)
    assert metrics.accuracy == metrics.member_accuracy[0]


def test_the_same_seed_is_the_same_run_to_the_bit():
    first, second, other = (values(train(short("neurotrails"), seed=seed).model) for seed in (3, 3, 4))
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert not all(np.array_equal(first[key], other[key]) for key in first)


def test_members_of_a_full_ensemble_train_as_if_alone():
    """A mean over members would divide each one's gradient by M."""
    together = train(EnsembleSpec(graph=GRAPH, structure=Independent(count=3))).model
    alone = train(EnsembleSpec(graph=GRAPH, structure=Single())).model
    for name, value in values(alone).items():
        np.testing.assert_allclose(together.array(name), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.2), Adam(lr=0.01), AdamW(lr=0.01)], ids=lambda o: o.kind)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_optimizers_precisions_accumulation_and_clipping(optimizer, precision):
    recipe = Training(batch_size=30, accumulation=3, optimizer=optimizer, precision=precision, clip_norm=1.0)
    trained = train(short("neurotrails"), training=recipe, epochs=12)
    assert trained.steps == 36
    assert trained.metrics.accuracy > 0.5
    for name in trained.model.masked:
        assert (trained.model.array(name)[~trained.model.mask(name)] == 0).all()


def test_accumulated_batches_train_as_whole_ones():
    whole, parts = (
        train(short("neurotrails"), training=Training(batch_size=30, accumulation=n, optimizer=SGD(lr=0.05)))
        for n in (1, 3)
    )
    for name, value in values(whole.model).items():
        np.testing.assert_allclose(parts.model.array(name), value, rtol=1e-3, atol=1e-4)


def test_accumulation_changes_nothing_where_the_last_batch_is_short():
    recipe = {"batch_size": 64, "optimizer": SGD(lr=0.05, momentum=0.0)}
    records = {1: [], 16: []}
    whole, parts = (
        train(
            short("single"), training=Training(accumulation=n, **recipe), epochs=3, report=records[n].append
        )
        for n in records
    )
    for name, value in values(whole.model).items():
        np.testing.assert_allclose(parts.model.array(name), value, rtol=1e-4, atol=1e-6)
    losses = [[r["loss"] for r in records[n] if r["event"] == "epoch"] for n in records]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_half_precision_on_a_cpu_is_an_error_instead_of_nothing():
    with pytest.raises(DataError, match="float16 needs a GPU"):
        train(short("single"), training=Training(batch_size=30, precision="float16"))


def test_blocks_that_keras_could_not_tell_apart_are_an_error():
    net = GraphBuilder(Features(count=4))
    for name in ("a.b", "a_b"):
        with net.block(name) as b:
            b.out = b.linear(b.inp, 4, name="fc")
    with net.classifier() as b:
        b.out = b.linear(b.inp, 2)
    with pytest.raises(GraphError, match="'head1/a_b/fc': Keras names it 'head1-a_b-fc', which is taken"):
        nt_keras.compile(EnsembleSpec(graph=net.build()))


def test_a_model_with_values_where_it_is_inactive_is_not_saved_as_another(tmp_path):
    model = nt_keras.compile(short("neurotrails"))
    model.set_array(model.masked[0], model.array(model.masked[0]) + 0.1)
    with pytest.raises(CheckpointError, match="inactive elements are not 0"):
        save_checkpoint(tmp_path, nt_keras.checkpoint(model))


def test_the_learning_rate_follows_its_schedule():
    records = []
    recipe = Training(
        batch_size=30,
        optimizer=SGD(lr=0.1),
        learning_rate=LearningRate(schedule="steps", milestones=(0.5,), factor=0.1),
    )
    train(short("single"), training=recipe, report=records.append)
    rates = [record["lr"] for record in records if record["event"] == "epoch"]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])
    rate = RecipeRate(0.1, recipe.learning_rate, total_steps=12, accumulation=2)
    assert [float(rate(call)) for call in (0, 11, 12, 23, 99)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.01])
    again = RecipeRate.from_config(rate.get_config())
    assert float(again(12)) == float(rate(12))


@pytest.mark.parametrize(
    "optimizer", [SGD(nesterov=True), Adam(weight_decay=0.1), AdamW()], ids=lambda o: o.kind
)
def test_the_optimizers_of_recipes_go_through_keras_serialization(optimizer):
    made = make_optimizer(Training(optimizer=optimizer, clip_norm=1.0, accumulation=2), total_steps=10)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(made))
    assert again.get_config() == made.get_config()


def test_a_plan_in_steps_stops_there():
    trained = nt_keras.train(
        short("neurotrails").replace(plan=OneRun(steps=7)), Training(batch_size=30), Blobs()
    )
    assert trained.steps == 7
    assert trained.examples == 210


def test_a_loss_that_is_not_finite_says_what_to_do():
    with pytest.raises(TopologyError, match="Lower the learning rate"):
        train(short("single"), training=Training(batch_size=30, optimizer=SGD(lr=1e20)))


def test_nothing_to_train_on():
    spec = short("single").replace(plan=OneRun(epochs=1))
    with pytest.raises(DataError, match="at least one training example"):
        nt_keras.train(spec, Training(), Blobs(0))


@pytest.mark.parametrize("device", ["gpu:77", "cuda:77", "xla", "cpu:x"])
def test_a_device_that_is_not_there(device, tmp_path):
    spec = short("single").replace(plan=OneRun(epochs=1))
    with pytest.raises(DataError, match=f"device '{device}'.*leave the device out"):
        nt_keras.train(spec, Training(), Blobs(), device=device)
    save_checkpoint(tmp_path, nt_keras.checkpoint(nt_keras.compile(spec)))
    with pytest.raises(DataError, match=f"device '{device}'.*leave the device out"):
        nt_keras.load(tmp_path, device=device)


def test_a_device_that_is_there():
    assert train(short("neurotrails"), epochs=1, device="cpu").steps == 3


def test_a_tracker_that_is_not_there():
    with pytest.raises(DataError, match="tracker 'tensorbord'"):
        train(short("single"), trackers=["tensorbord"])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras writes it by TensorFlow")
def test_a_tracker_writes(tmp_path):
    train(short("neurotrails"), trackers=["tensorboard"], folder=tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_evaluation_leaves_weights_alone():
    model = nt_keras.compile(PRESETS["treenet"](nt_models.mlp(inputs=6, hidden=(8,), classes=3, norm=True)))
    before = values(model)
    metrics = nt_keras.evaluate(model, Blobs(50, shuffle=False), batch_size=7)
    assert metrics.count == 50
    assert all(np.array_equal(before[key], value) for key, value in values(model).items())


def test_a_checkpoint_of_another_spec_is_an_error(tmp_path):
    model = nt_keras.compile(PRESETS["treenet"](GRAPH, heads=2))
    save_checkpoint(tmp_path, nt_keras.checkpoint(model))
    with pytest.raises(CheckpointError, match="another spec: weight 'head3/"):
        load_checkpoint(tmp_path, expected=PRESETS["treenet"](GRAPH, heads=3))


def test_fit_trains_in_training_mode():
    """Batches are normalised by their own statistics, and running ones move."""
    model = nt_keras.compile(PRESETS["treenet"](nt_models.mlp(inputs=6, hidden=(8,), classes=3, norm=True)))
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss=nt_keras.ensemble_loss())
    running = [placed.name for placed in model.spec.layout.weights if placed.weight.role == "running"]
    before = values(model)
    data = Blobs(30)
    model.fit(data.inputs + 5, data.labels, batch_size=30, verbose=0)
    assert running
    assert not any(np.array_equal(before[name], model.array(name)) for name in running)


class Repeats:
    """Sequences of few tokens, so that each stands many times in a batch; what follows is the next number."""

    def __len__(self):
        return 40

    def epoch(self, number, batch_size, first=0):
        start = np.random.default_rng(number).integers(0, 5, (len(self), 1))
        tokens = (start + np.arange(9)) % 5
        for first in range(0, len(self), batch_size):
            rows = slice(first, first + batch_size)
            yield tokens[rows, :-1], tokens[rows, 1:]


LANGUAGE = PRESETS["neurotrails_lm"](
    nt_models.llama(blocks=2, width=8, hidden=8, heads=2, vocabulary=5, length=8), split=1
)


def language(recipe, **plan):
    spec = LANGUAGE.replace(plan=OneRun(**plan), topology=LANGUAGE.topology.replace(interval=3))
    return nt_keras.train(spec, recipe, Repeats(), test=Repeats())


def test_language_models_train():
    schedule = LearningRate(warmup=0.1, final=0.1)
    recipe = Training(optimizer=AdamW(lr=0.03), batch_size=10, learning_rate=schedule, clip_norm=1.0)
    trained = language(recipe, epochs=5)
    assert trained.metrics.count == 40 * 8
    assert trained.metrics.member_perplexity.max() < 2.5
    assert trained.metrics.perplexity < 5
    for name in trained.model.masked:
        assert (trained.model.array(name)[~trained.model.mask(name)] == 0).all()


def test_a_token_that_stands_several_times_has_one_gradient():
    """TensorFlow has slices of it, which Adam would square one by one and take steps larger than lr."""
    constant = LearningRate(schedule="constant")
    recipe = Training(optimizer=Adam(lr=0.01), batch_size=40, learning_rate=constant)
    trained = language(recipe, steps=1)
    name = "backbone/embedding/embedding1.weight"
    step = trained.model.array(name) - dict(initial_values(LANGUAGE.layout, 0))[name]
    np.testing.assert_allclose(np.abs(step), 0.01, rtol=0.01)


def test_sequences_in_micro_batches_train_as_whole_ones():
    whole, parts = (
        language(Training(optimizer=SGD(lr=0.1), batch_size=20, accumulation=n), epochs=2) for n in (1, 4)
    )
    for name, value in values(whole.model).items():
        np.testing.assert_allclose(parts.model.array(name), value, rtol=1e-3, atol=1e-5)


def test_tokens_beyond_the_vocabulary_and_longer_sequences_are_errors():
    model = nt_keras.compile(LANGUAGE)
    with pytest.raises(DataError, match="input: expected tokens from 0 to 4, found 0 to 5"):
        nt_keras.predict(model, np.arange(8).reshape(1, 8) % 6)
    with pytest.raises(DataError, match=r"input: expected shape \(batch, 8\), found \(1, 9\)"):
        nt_keras.predict(model, np.zeros((1, 9), np.int64))
