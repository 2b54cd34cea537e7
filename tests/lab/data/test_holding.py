"""Held-out examples, and warnings about divisions that leave classes out."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from hypothesis import given
from hypothesis import strategies as st

import nt_models
from nt_core import DataError, SpecError
from nt_core.errors import NeuroTrailsWarning
from nt_core.training import Data, Text
from nt_lab.data import load, load_test
from nt_lab.data.holding import stratified

TWO = nt_models.mlp(inputs=2, hidden=(2,), classes=4)
DIGITS = nt_models.mlp(inputs=64, hidden=(2,), classes=10)
Store = Callable[..., str]


def rows(labels: list[int], start: float = 0.0) -> Dataset:
    """Vectors that are their own number twice."""
    features = Features(x=List(Value("float32")), label=Value("int64"))
    numbers = [[start + i, start + i] for i in range(len(labels))]
    return Dataset.from_dict({"x": numbers, "label": labels}, features)


def contents(batches: Any) -> list[float]:
    return sorted(batches.read(np.arange(len(batches)))[:, 0].tolist())


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 2**64))
def test_each_class_is_divided_by_the_share(labels: list[int], share: float, seed: int) -> None:
    counts = np.bincount(labels, minlength=6)
    if counts.max() < 2:
        with pytest.raises(DataError, match="expected a class of two examples at least"):
            stratified(np.array(labels), share, seed, "here")
        return
    out = stratified(np.array(labels), share, seed, "here")
    assert sorted(set(out.tolist())) == out.tolist()
    held = np.bincount(np.array(labels)[out], minlength=6)
    assert (held <= np.maximum(counts - 1, 0)).all()
    assert (held >= np.minimum(counts - 1, 1).clip(0)).all()
    np.testing.assert_array_equal(out, stratified(np.array(labels), share, seed, "here"))
    free = (held > 1) & (held < counts - 1)  # where neither bound is met, shares differ by rounding alone
    if free.sum() > 1:
        assert np.ptp(held[free] / counts[free] - share) <= 2 / counts[free].min()


def test_the_sum_is_the_share_where_classes_are_large() -> None:
    labels = np.repeat(np.arange(7), [30, 31, 32, 33, 34, 35, 36])
    assert len(stratified(labels, 0.2, 0, "here")) == round(0.2 * len(labels))


def test_held_out_examples_are_tested_on_and_not_trained_on(stored: Store) -> None:
    source = stored(train=rows([0] * 10 + [1] * 10 + [2] * 20), test=rows([0, 1, 2], start=100))
    data = Data(source=source, held_out=0.2)
    split = load(data, TWO, seed=0)
    np.testing.assert_array_equal(np.bincount(split.train.labels), [8, 8, 16])
    np.testing.assert_array_equal(np.bincount(split.test.labels), [2, 2, 4])
    assert sorted(contents(split.train) + contents(split.test)) == list(range(40))
    alone = load_test(data, TWO, split.normalisation)
    assert contents(alone) == contents(split.test) == contents(load(data, TWO, seed=1).test)
    other = load(data.replace(held_out_seed=1), TWO, seed=0).test
    assert contents(other) != contents(split.test)
    assert contents(load_test(data.replace(held_out=0), TWO, split.normalisation)) == [100, 101, 102]
    part = load_test(data.replace(train="train[:20]+test"), TWO, split.normalisation)
    assert contents(part) != contents(alone)


def test_held_out_digits_and_what_cannot_be_held_out(stored: Store) -> None:
    split = load(Data(source="digits", held_out=0.1), DIGITS, seed=0)
    assert (len(split.train), len(split.test)) == (1293, 144)
    assert np.bincount(split.test.labels).min() >= 14
    with pytest.raises(SpecError, match=r"data\.held_out: a share of data\.train.* data\.test='validation'"):
        Data(held_out=0.2, test="validation")
    words = nt_models.llama(blocks=1, width=8, hidden=8, heads=2, vocabulary=256, length=8)
    with pytest.raises(DataError, match=r"give data\.text\.held_out"):
        load(Data(source="text:here", held_out=0.2, text=Text()), words, seed=0)
    with pytest.raises(DataError, match="expected a class of two examples at least"):
        load(Data(source=stored(train=rows([0, 1, 2])), held_out=0.5), TWO, seed=0)
    for share in (1.0, -0.1):
        with pytest.raises(SpecError):
            Data(held_out=share)


def test_tests_elsewhere_use_the_whole_test_split() -> None:
    data = Data(source="here", held_out=0.2, held_out_seed=3)
    assert data.elsewhere("there") == Data(source="there", held_out_seed=3)
    assert data.elsewhere("here") == data


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ([0, 0, 1, 1], [2, 3], "'train': no examples of 2 of 4 classes: 2, 3, which are tested on; --set"),
        ([0, 1, 2, 3], [2, 3], r"split 'test': no examples of 2 of 4 classes: 0, 1$"),
        ([0, 1, 2], [0, 1, 3], r"split 'train': no examples of 1 of 4 classes: 3"),
    ],
)
def test_classes_without_examples_are_said(
    train: list[int], test: list[int], said: str, stored: Store
) -> None:
    with pytest.warns(NeuroTrailsWarning) as caught:
        load(Data(source=stored(train=rows(train), test=rows(test))), TWO, seed=0)
    assert any(re.search(said, str(each.message)) for each in caught)


def test_named_classes_without_any_example_are_said(stored: Store, labelled: Callable[..., Dataset]) -> None:
    graph = nt_models.wide_resnet(depth=10, width=1, classes=4, size=8, channels=3)
    source = stored(train=labelled(12).select([0, 1, 3]), test=labelled(4).select([0, 1, 3]))
    with pytest.warns(NeuroTrailsWarning, match=r"'train' and .*'test': no examples of 1 of 4 classes: 2"):
        split = load(Data(source=source), graph, seed=0)
    with pytest.warns(NeuroTrailsWarning, match=r"split 'test': no examples of 1 of 4 classes: 2"):
        load_test(Data(source=source), graph, split.normalisation)


def test_examples_that_are_trained_on_and_tested_on_are_said(stored: Store) -> None:
    source = stored(train=rows([0, 1] * 4), test=rows([0, 1]))
    with pytest.warns(NeuroTrailsWarning, match="2 examples are trained on and tested on"):
        load(Data(source=source, train="train[:4]+test", test="train[2:]"), TWO, seed=0)
