"""Raw inputs become what a network reads: layouts, sizes, units, ranges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nt_core import CheckpointError, DataError, EnsembleSpec, SpecError
from nt_core.checkpoint import classes_of, preprocessing_of
from nt_core.training import Normalisation, Preprocessing
from nt_core.training.resizing import resize
from nt_models import mlp, wide_resnet

COLOUR = Preprocessing.of_images((3, 4, 5), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0), scale=1 / 255)
VECTORS = Preprocessing(
    units="values",
    shape=(2,),
    normalisation=Normalisation(mean=(10.0, 0.0), std=(2.0, 1.0)),
    low=(0.0, -1.0),
    high=(20.0, 1.0),
)


def images(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_rows_are_resized_by_means_of_what_they_cover(old: int, new: int, seed: int) -> None:
    row = np.random.default_rng(seed).integers(0, 256, (1, old), dtype=np.uint8)
    found = resize(row, (1, new))
    assert found.min() >= row.min()
    assert found.max() <= row.max()
    np.testing.assert_array_equal(resize(row.T, (new, 1)), found.T)
    np.testing.assert_array_equal(resize(row[:, ::-1], (1, new)), found[:, ::-1])
    if old == new:
        np.testing.assert_array_equal(found, row)


def test_both_layouts_and_single_images_are_the_same_input() -> None:
    first = images(2, 3, 4, 5)
    truth = COLOUR.inputs(first, (3, 4, 5))
    exact = (first / 255 - np.reshape((0.5, 0.25, 0.0), (3, 1, 1))) / np.reshape((0.5, 0.25, 1.0), (3, 1, 1))
    np.testing.assert_allclose(truth, exact, atol=1e-6)
    last = first.transpose(0, 2, 3, 1)
    for same in (last, last.astype(np.int64), first.reshape(2, -1)):
        np.testing.assert_array_equal(COLOUR.inputs(same, (3, 4, 5)), truth)
    for one in (last[0], first[0]):
        np.testing.assert_array_equal(COLOUR.inputs(one, (60,)), truth[:1].reshape(1, 60))
    assert COLOUR.inputs(first[:0], (3, 4, 5)).shape == (0, 3, 4, 5)


def test_any_size_where_images_are_resized() -> None:
    fits = COLOUR.replace(resize=(4, 5))
    whole = images(2, 9, 8, 3)
    np.testing.assert_array_equal(
        fits.batch(whole), [resize(each, (4, 5)) for each in whole.transpose(0, 3, 1, 2)]
    )
    np.testing.assert_array_equal(fits.batch(whole[1]), fits.batch(whole)[1:])
    for wrong in (images(3, 9, 3), images(9, 8), images(2, 9, 8, 4), images(2, 0, 8, 3)):
        with pytest.raises(DataError, match="expected images"):
            fits.batch(wrong)
    with pytest.raises(DataError, match=r"expected images \(batch, 3, 4, 5\)"):
        COLOUR.batch(whole)
    with pytest.raises(DataError, match="whole numbers from 0 to 255, found int64 from 0 to 256"):
        fits.batch(np.where(np.arange(60) == 9, 256, 0).reshape(1, 3, 4, 5))


@pytest.mark.parametrize(
    ("given_", "at"),
    [
        (COLOUR.inputs(images(5, 3, 4, 5), (3, 4, 5)), None),
        (images(1, 3, 4, 5).astype(float), "channel 0, expected -1 to 1"),
        (np.full((1, 3, 4, 5), -0.1), "channel 2, expected 0 to 1"),
        (np.empty((0, 3, 4, 5)), None),
    ],
)
def test_floats_outside_the_range_of_pixels_are_seen(given_: NDArray[np.float64], at: str | None) -> None:
    found = COLOUR.outside(given_)
    assert found is None if at is None else at in str(found)


def test_vectors_have_the_range_of_training_with_some_room() -> None:
    raw = np.array([[25.0, 2.0]])
    np.testing.assert_array_equal(VECTORS.inputs(raw[0], (2,)), [[7.5, 2.0]])
    assert VECTORS.outside(VECTORS.inputs(raw, (2,))) is None
    assert "feature 0, expected -5 to 5" in str(VECTORS.outside(np.array([[25.0, 0.0]])))
    assert VECTORS.replace(low=None, high=None).outside(raw * 100) is None
    with pytest.raises(DataError, match=r"expected vectors \(batch, 2\)"):
        VECTORS.batch(np.zeros((3, 4)))


def test_records_are_checked_because_files_come_from_strangers() -> None:
    spec = EnsembleSpec(graph=wide_resnet(depth=10, width=1, classes=3, size=8, channels=3))
    flat = EnsembleSpec(graph=mlp(inputs=60, hidden=(), classes=3))
    told = COLOUR.model_dump(mode="json")
    assert preprocessing_of(flat, {"data": {"preprocessing": told}}) == COLOUR
    assert preprocessing_of(flat, {}) is None
    older = {"data": {"normalisation": {"mean": [1.0] * 3, "std": [2.0] * 3}}}
    found = preprocessing_of(spec, older)
    assert found is not None
    assert (found.shape, found.units) == ((3, 8, 8), "bytes")
    assert preprocessing_of(flat, older) is None
    for wrong in (told, [1], {**told, "normalisation": {"mean": [0] * 3, "std": [0] * 3}}, {"shape": [3]}):
        with pytest.raises(CheckpointError, match=r"record: data\.preprocessing"):
            preprocessing_of(spec, {"data": {"preprocessing": wrong}})
    for names in (["a", "a"], [1], "ab", {"a": 1}):
        with pytest.raises(CheckpointError, match=r"record: data\.classes: expected distinct names"):
            classes_of({"data": {"classes": names}})
    assert classes_of({"data": 3}) is None
    with pytest.raises(SpecError, match=r"expected \(4, 5\) as in shape"):
        COLOUR.replace(resize=(1 << 30, 1 << 30))
    with pytest.raises(SpecError, match="mean and std of 3 channels"):
        COLOUR.replace(shape=(3, 4, 5), normalisation=Normalisation(mean=(1.0,), std=(1.0,)))
