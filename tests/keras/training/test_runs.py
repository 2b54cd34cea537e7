"""Data of people's own kinds in Keras, and runs of their own loops."""

import keras
import numpy as np
import pytest
from runs import *  # noqa: F403
from runs import RECIPE, SPEC, examples

import nt_keras
import nt_models
from nt_core import DataError, EnsembleSpec
from nt_core.states import States
from nt_keras.batches import as_batches

IMAGES = EnsembleSpec(graph=nt_models.wide_resnet(depth=10, width=1, classes=3, size=8, channels=1))


class Parts(keras.utils.PyDataset):
    """Twenty examples in batches of six."""

    def __len__(self):
        return 4

    def __getitem__(self, place):
        return tuple(part[6 * place : 6 * place + 6] for part in examples())


def expect_all(batches):
    inputs, labels = examples()
    assert len(batches) == 20
    parts = list(batches.epoch(1, 8))
    assert [len(part) for _, part in parts] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), inputs)
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), labels)


def test_datasets_of_keras_give_what_they_hold_in_batches_of_the_recipe(backend):
    expect_all(as_batches(Parts(), SPEC))
    trained = backend.train(SPEC, RECIPE, Parts(), test=Parts())
    assert (trained.examples, trained.metrics.count) == (40, 20)


def test_datasets_of_tensorflow_too():
    tf = pytest.importorskip("tensorflow")
    whole = tf.data.Dataset.from_tensor_slices(examples())
    expect_all(as_batches(whole.batch(6), SPEC))
    for data, said in ((whole, "add .batch"), (whole.batch(6).repeat(), "with an end")):
        with pytest.raises(DataError, match=said):
            as_batches(data, SPEC)


def test_images_may_be_channels_last_as_in_keras():
    first = np.random.default_rng(0).standard_normal((4, 1, 8, 8))
    (found, _), (same, _) = (
        next(as_batches((given, np.zeros(4, int)), IMAGES).epoch(0, 4))
        for given in (first, first.transpose(0, 2, 3, 1))
    )
    np.testing.assert_array_equal(found, same)


def test_an_order_that_cannot_be_repeated_is_not_resumed(tmp_path):
    with pytest.raises(DataError, match="on Parts cannot be resumed"):
        nt_keras.train(SPEC, RECIPE, Parts(), states=States(tmp_path))
