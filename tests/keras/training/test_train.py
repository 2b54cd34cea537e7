"""Training, evaluation and checkpoints in Keras, on the engine in use."""

import keras
import numpy as np
import pytest
from small import short
from training import *  # noqa: F403
from training import alike, expect_close, train

import nt_keras
import nt_models
from nt_core import PRESETS, DataError, GraphError, OneRun, initial_values
from nt_core.checkpoint import save_checkpoint
from nt_core.testing import Blobs
from nt_core.training import SGD, Adam, AdamW, LearningRate, Training
from nt_keras.topology.optimizers import RecipeRate, make_optimizer


def values(model):
    return {placed.name: model.array(placed.name) for placed in model.spec.layout.weights}


def test_blocks_that_keras_could_not_tell_apart_are_an_error():
    with pytest.raises(GraphError, match="'head1/a_b/fc': Keras names it 'head1-a_b-fc', which is taken"):
        nt_keras.compile(alike())


def test_the_rate_of_a_recipe_is_one_of_keras():
    schedule = LearningRate(schedule="steps", milestones=(0.5,), factor=0.1)
    rate = RecipeRate(0.1, schedule, total_steps=12, accumulation=2)
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


@pytest.mark.parametrize("device", ["gpu:77", "cuda:77", "xla", "cpu:x"])
def test_a_device_that_is_not_there(device, tmp_path):
    spec = short("single").replace(plan=OneRun(epochs=1))
    with pytest.raises(DataError, match=f"device '{device}'.*leave the device out"):
        nt_keras.train(spec, Training(), Blobs(), device=device)
    save_checkpoint(tmp_path, nt_keras.checkpoint(nt_keras.compile(spec)))
    with pytest.raises(DataError, match=f"device '{device}'.*leave the device out"):
        nt_keras.load(tmp_path, device=device)


def test_a_device_that_is_there(backend):
    assert train(backend, short("neurotrails"), epochs=1, device="cpu").steps == 3


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras writes it by TensorFlow")
def test_a_tracker_writes(backend, tmp_path):
    train(backend, short("neurotrails"), trackers=["tensorboard"], folder=tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_evaluation_leaves_weights_alone():
    model = nt_keras.compile(PRESETS["treenet"](nt_models.mlp(inputs=6, hidden=(8,), classes=3, norm=True)))
    before = values(model)
    metrics = nt_keras.evaluate(model, Blobs(50, shuffle=False), batch_size=7)
    assert metrics.count == 50
    assert all(np.array_equal(before[key], value) for key, value in values(model).items())


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
    expect_close(nt_keras, parts.model, whole.model, rtol=1e-3, atol=1e-5)


def test_tokens_beyond_the_vocabulary_and_longer_sequences_are_errors():
    model = nt_keras.compile(LANGUAGE)
    with pytest.raises(DataError, match="input: expected tokens from 0 to 4, found 0 to 5"):
        nt_keras.predict(model, np.arange(8).reshape(1, 8) % 6)
    with pytest.raises(DataError, match=r"input: expected shape \(batch, 8\), found \(1, 9\)"):
        nt_keras.predict(model, np.zeros((1, 9), np.int64))
