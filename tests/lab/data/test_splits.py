from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value
from hypothesis import given
from hypothesis import strategies as st

import nt_models
from nt_core import BlockGraph
from nt_core.errors import DataError
from nt_core.training import Data
from nt_lab.data import splits as lab
from nt_lab.data.splits import Examples, Normalisation, Split, hold_out, load, load_test, measure

DIGITS = nt_models.wide_resnet(depth=10, width=1, classes=10, size=8, channels=1)
SMALL = nt_models.wide_resnet(depth=10, width=1, classes=4, size=8, channels=3)
PLAIN = Normalisation(mean=(0.0,), std=(1.0,))


@pytest.fixture(scope="module")
def digits() -> Split:
    return load(Data(source="digits"), DIGITS, seed=0)


def everything(examples: Examples, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
    batches = list(examples.epoch(epoch, 100))
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


def test_digits_are_cut_once_and_stratified(digits: Split) -> None:
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    other = load(Data(source="digits"), DIGITS, seed=99)
    np.testing.assert_array_equal(other.test.labels, digits.test.labels)
    np.testing.assert_array_equal(everything(other.test)[0], everything(digits.test)[0])
    share = np.bincount(digits.test.labels) / (
        np.bincount(digits.test.labels) + np.bincount(digits.train.labels)
    )
    assert np.abs(share - 0.2).max() < 0.005
    assert digits.test.labels[:12].tolist() == [1, 4, 8, 6, 5, 9, 9, 1, 3, 2, 2, 2]


def test_digits_hold_every_pixel_of_scikit_learn(digits: Split) -> None:
    from sklearn.datasets import load_digits

    ours = np.concatenate([split.read(np.arange(len(split))) for split in (digits.train, digits.test)])
    theirs = load_digits().images
    np.testing.assert_array_equal(
        np.sort(ours.reshape(-1, 64).astype(int), axis=0), np.sort(15 * theirs.reshape(-1, 64), axis=0)
    )


def test_training_examples_have_mean_0_and_deviation_1(digits: Split, parquet: str) -> None:
    for split in (digits, load(Data(source=parquet), SMALL, seed=0)):
        inputs, labels = everything(split.train)
        assert inputs.dtype == np.float32
        assert labels.dtype == np.int64
        np.testing.assert_allclose(inputs.mean(axis=(0, 2, 3)), 0, atol=1e-5)
        np.testing.assert_allclose(inputs.std(axis=(0, 2, 3)), 1, atol=1e-5)


def numbered(count: int, seed: int | None) -> Examples:
    """Examples whose input is their own row."""
    return Examples(
        read=lambda rows: rows[:, None].astype(np.float32),
        labels=np.arange(count),
        shape=(1,),
        normalisation=PLAIN,
        shuffle_seed=seed,
    )


@given(st.integers(1, 300), st.integers(0, 2**40), st.integers(0, 10**6), st.integers(1, 400))
def test_an_epoch_is_each_example_once_and_repeats_bit_for_bit(
    count: int, seed: int, epoch: int, batch_size: int
) -> None:
    batches = list(numbered(count, seed).epoch(epoch, batch_size))
    assert [len(labels) for _, labels in batches[:-1]] == [batch_size] * (len(batches) - 1)
    inputs, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    np.testing.assert_array_equal(inputs[:, 0], labels)
    np.testing.assert_array_equal(np.sort(labels), np.arange(count))
    again = np.concatenate([labels for _, labels in numbered(count, seed).epoch(epoch, 7)])
    np.testing.assert_array_equal(again, labels)


def test_orders_differ_between_epochs_and_seeds_and_tests_have_none() -> None:
    orders = {
        tuple(np.concatenate([labels for _, labels in numbered(50, seed).epoch(epoch, 8)]))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9
    for epoch in (0, 5):
        labels = np.concatenate([labels for _, labels in numbered(50, None).epoch(epoch, 8)])
        np.testing.assert_array_equal(labels, np.arange(50))


@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 999))
def test_measured_figures_are_those_of_numpy(count: int, channels: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, channels, 3, 2), dtype=np.uint8)
    found = measure(lambda rows: pixels[rows], np.arange(count))
    np.testing.assert_allclose(found.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(axis=(0, 2, 3)), rtol=1e-9)


def test_a_channel_that_never_changes_is_left_unscaled() -> None:
    grey = np.full((5, 1, 2, 2), 7, np.uint8)
    assert measure(lambda rows: grey[rows], np.arange(5)) == Normalisation(mean=(7,), std=(1,))


def test_augmentation_touches_training_alone_and_is_keyed_by_seed_and_epoch(parquet: str) -> None:
    data = Data(source=parquet, augment="flip_crop")
    plain = load(data.replace(augment="none"), SMALL, seed=4)
    first, again, other = (load(data, SMALL, seed=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(everything(first.test)[0], everything(plain.test)[0])
    np.testing.assert_array_equal(everything(first.train, 3)[0], everything(again.train, 3)[0])
    np.testing.assert_array_equal(everything(first.train, 3)[1], everything(plain.train, 3)[1])
    assert (everything(first.train, 3)[0] != everything(plain.train, 3)[0]).any()
    assert (everything(first.train, 3)[0] != everything(first.train, 4)[0]).any()
    assert (everything(first.train, 3)[0] != everything(other.train, 3)[0]).any()
    assert first.normalisation == plain.normalisation


@pytest.mark.parametrize("kind", ["parquet", "saved", "image_folder"])
def test_every_kind_of_folder_gives_the_same_examples(
    kind: str, parquet: str, request: pytest.FixtureRequest
) -> None:
    def content(source: str) -> list[tuple[int, bytes]]:
        inputs, labels = everything(load(Data(source=source), SMALL, seed=0).test)
        return sorted((int(label), row.tobytes()) for label, row in zip(labels, inputs, strict=True))

    assert content(request.getfixturevalue(kind)) == content(parquet)


def test_large_splits_are_decoded_batch_by_batch(parquet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(source=parquet, augment="flip_crop")
    kept = load(data, SMALL, seed=1)
    monkeypatch.setattr(lab, "IN_MEMORY_BYTES", 0)
    lazy = load(data, SMALL, seed=1)
    assert lazy.normalisation == kept.normalisation
    for number in (0, 1):
        np.testing.assert_array_equal(everything(lazy.train, number)[0], everything(kept.train, number)[0])
    monkeypatch.setattr(lab, "SAMPLE", 3)
    inputs = everything(load(data, SMALL, seed=1).test)[0]
    assert np.isfinite(inputs).all()


def test_a_recorded_normalisation_is_used(parquet: str) -> None:
    recorded = Normalisation(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    split = load(Data(source=parquet), SMALL, seed=0, normalisation=recorded)
    alone = load_test(Data(source=parquet), SMALL, recorded)
    assert split.normalisation == recorded
    np.testing.assert_array_equal(everything(split.test)[0], everything(alone)[0])
    raw = alone.read(np.arange(5)).astype(np.float64)
    expected = (raw - np.array([1, 2, 3]).reshape(3, 1, 1)) / np.array([4, 5, 6]).reshape(3, 1, 1)
    np.testing.assert_allclose(everything(alone)[0], expected, rtol=1e-6)


def test_images_are_flattened_for_a_graph_of_features(parquet: str) -> None:
    flat = load(Data(source=parquet, augment="crop"), nt_models.mlp(inputs=192, classes=4), seed=2)
    square = load(Data(source=parquet, augment="crop"), SMALL, seed=2)
    np.testing.assert_array_equal(
        everything(flat.train, 1)[0], everything(square.train, 1)[0].reshape(-1, 192)
    )


def vectors(count: int = 6) -> Dataset:
    rows = np.random.default_rng(0).normal(5, 2, (count, 3))
    features = Features(x=List(Value("float32")), label=Value("int64"))
    return Dataset.from_dict({"x": rows.tolist(), "label": [i % 2 for i in range(count)]}, features)


def test_vectors_are_normalised_by_feature(stored: Callable[..., str]) -> None:
    source = stored(train=vectors(), test=vectors(4))
    inputs, _ = everything(load(Data(source=source), nt_models.mlp(inputs=3, classes=2), seed=0).train)
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std(axis=0), 1, atol=1e-5)


def test_a_split_may_be_a_part_of_one(parquet: str) -> None:
    split = load(Data(source=parquet, train="train[:75%]", test="train[75%:]+test"), SMALL, seed=0)
    assert (len(split.train), len(split.test)) == (9, 8)


def test_columns_can_be_named(stored: Callable[..., str], labelled: Callable[..., Dataset]) -> None:
    fine = labelled(8, classes=8).rename_column("label", "fine")
    both = fine.add_column("coarse", [0, 1] * 4).cast_column("coarse", ClassLabel(num_classes=2))
    source = stored(train=both, test=both)
    graph = nt_models.wide_resnet(depth=10, width=1, classes=8, size=8, channels=3)
    assert load(Data(source=source, label="fine"), graph, seed=0).test.labels.tolist() == list(range(8))
    assert load(Data(source=source, label="coarse"), graph, seed=0).test.labels.tolist() == [0, 1] * 4


def test_colour_modes(stored: Callable[..., str], labelled: Callable[..., Dataset]) -> None:
    dataset = labelled(4)
    palette = Dataset.from_dict(
        {"img": [image.convert("P") for image in dataset["img"]], "label": dataset["label"]},
        dataset.features,
    )
    source = stored(train=palette, test=palette)
    test = load(Data(source=source), SMALL, seed=0).test
    expected = [np.asarray(image.convert("P").convert("RGB")) for image in dataset["img"]]
    np.testing.assert_array_equal(test.read(np.arange(4)).transpose(0, 2, 3, 1), expected)


def test_unused_column_kinds_do_not_confuse(
    stored: Callable[..., str], labelled: Callable[..., Dataset]
) -> None:
    dataset = labelled(4).add_column("id", [7, 8, 9, 10]).add_column("grid", np.zeros((4, 2, 2)).tolist())
    dataset = dataset.cast_column("grid", Array2D((2, 2), "float32"))
    assert len(load(Data(source=stored(train=dataset, test=dataset)), SMALL, seed=0).train) == 4


@pytest.mark.skipif("NT_DATA" not in os.environ, reason="set NT_DATA to a folder with cifar10/ to run this")
def test_cifar10() -> None:
    folder = Path(os.environ["NT_DATA"]) / "cifar10"
    graph: BlockGraph = nt_models.wide_resnet(depth=10, width=1, classes=10, size=32, channels=3)
    split = load(Data(source=str(folder), augment="flip_crop"), graph, seed=0)
    assert (len(split.train), len(split.test)) == (50_000, 10_000)
    np.testing.assert_allclose(np.array(split.normalisation.mean) / 255, [0.491, 0.482, 0.447], atol=2e-3)
    np.testing.assert_allclose(np.array(split.normalisation.std) / 255, [0.247, 0.243, 0.262], atol=5e-3)
    assert np.bincount(split.test.labels).tolist() == [1000] * 10
    inputs, labels = next(split.train.epoch(0, 128))
    assert inputs.shape == (128, 3, 32, 32)
    assert labels.shape == (128,)


@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 3))
def test_held_out_examples_and_the_others_are_a_partition(count: int, share: float, seed: int) -> None:
    pixels = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    examples = Examples(
        read=lambda rows: pixels[rows],
        labels=np.arange(count),
        shape=(1, 1, 1),
        normalisation=Normalisation(mean=(0,), std=(1,)),
    )
    if not 0 < round(share * count) < count:
        with pytest.raises(DataError, match="expected at least one, and one to train on"):
            hold_out(examples, share, seed)
        return
    parts = hold_out(examples, share, seed)
    assert [len(part) for part in parts] == [count - round(share * count), round(share * count)]
    assert sorted([*parts[0].labels, *parts[1].labels]) == list(range(count))
    for part in parts:
        inputs, labels = next(part.epoch(1, count))
        np.testing.assert_array_equal(inputs.ravel(), labels)  # each keeps its own label
    assert [part.labels.tolist() for part in hold_out(examples, share, seed)] == [
        part.labels.tolist() for part in parts
    ]
