"""Shuffled, augmented, normalised batches for training, the same for every backend."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray

from nt_core.errors import CheckpointError, DataError
from nt_core.graph import BlockGraph, Features, Tokens
from nt_core.random import Random
from nt_core.runs import TrainedOn
from nt_core.training import Batches, Data, Normalisation, Preprocessing
from nt_core.values import Shape
from nt_lab.data.advice import described, spaced
from nt_lab.data.augment import Augmentation
from nt_lab.data.classes import Names, by_name, class_names
from nt_lab.data.decode import Fit, Reader, Rows, chunks, in_memory, read_labels, reader, resized
from nt_lab.data.holding import stratified, warn_of_missing, warn_of_shared
from nt_lab.data.language import load_test_text, load_text
from nt_lab.data.order import epoch_order
from nt_lab.data.sources import Splits, count_shared, image_column, label_column, open_source, take
from nt_lab.data.text import PREFIX

IN_MEMORY_BYTES: Final = 2 << 30
"""Size up to which a split is decoded once and kept; a larger split is decoded anew for each batch."""

SAMPLE: Final = 10_000
"""Examples, evenly spaced, from which a split that is not kept in memory is normalised."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """One split; a :class:`nt_core.training.Batches`.

    Attributes:
        read: rows (B,) → their raw inputs, (B, C, H, W) uint8 or (B, features) float32.
        labels: (N,) int64.
        shape: of one example, as the network expects it.
        normalisation: applied to every batch.
        shuffle_seed: keys the order of each epoch; None: in order, as tests are.
        augmentation: applied to every batch; None: no augmentation.
        classes: names of the classes, in the order of labels; None: classes are numbers only.
    """

    read: Reader
    labels: NDArray[np.int64]
    shape: Shape
    normalisation: Normalisation
    shuffle_seed: int | None = None
    augmentation: Augmentation | None = None
    classes: Names = None

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(
        self, number: int, batch_size: int, first: int = 0
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Yield (inputs (B, *shape) float32, labels (B,) int64); the last batch may be smaller."""
        order = epoch_order(len(self), self.shuffle_seed, number)
        for start in range(first * batch_size, len(order), batch_size):
            rows = order[start : start + batch_size]
            inputs = self.read(rows)
            if self.augmentation is not None:
                inputs = self.augmentation(inputs, rows, epoch=number)
            yield self.normalisation.apply(inputs).reshape(len(rows), *self.shape), self.labels[rows]


@dataclass(frozen=True, kw_only=True)
class Split:
    """The data of one run.

    Attributes:
        train: shuffled and augmented.
        test: in order, without augmentation.
        normalisation: measured on the training examples, or given; None for text, which is not normalised.
        held_out: examples of the training split that are not trained on, in order, without augmentation;
            None: no examples are held out.
        classes: names of the classes, in the order of labels; None: classes are numbers, or tokens.
        preprocessing: of raw examples, for whoever serves the model; None for text.
        data: the settings that were loaded.
    """

    train: Batches
    test: Batches
    normalisation: Normalisation | None
    held_out: Batches | None = None
    classes: Names = None
    preprocessing: Preprocessing | None = None
    data: Data | None = None

    @property
    def trained_on(self) -> TrainedOn:
        """What a record of a training on this data tells, for ``save_run`` of either backend."""
        return TrainedOn(data=self.data, classes=self.classes, preprocessing=self.preprocessing)


def load(
    data: Data,
    graph: BlockGraph,
    seed: int,
    normalisation: Normalisation | None = None,
    *,
    stream_epoch: int | None = None,
    held_out: float | None = None,
) -> Split:
    """Load the training data and the test data of a run.

    Args:
        data: the source, splits, columns and augmentation.
        graph: gives the shape that examples must have.
        seed: keys order and augmentation.
        normalisation: of all inputs; None: measured on the training split, without augmentation.
        stream_epoch: number of a stream's sequences that count as one epoch; None: streams are refused.
        held_out: share of the training examples to hold out, for a fitted aggregation; None: none.

    Raises:
        DataError: the source cannot be read or does not fit the graph; the message names the remedy.

    Example:
        >>> import nt_models
        >>> graph = nt_models.wide_resnet(depth=10, width=1, classes=10, size=8, channels=1)
        >>> split = load(Data(source="digits"), graph, seed=0)
        >>> inputs, labels = next(split.train.epoch(0, batch_size=32))
        >>> inputs.shape, labels.shape, len(split.train), len(split.test)
        ((32, 1, 8, 8), (32,), 1437, 360)
    """
    if isinstance(graph.input, Tokens):
        _expect_text(data)
        if held_out is not None:
            raise DataError(
                "aggregation: fitted is for images and vectors, but the graph reads tokens; use mean_prob"
            )
        text, tests = load_text(data, graph, seed, stream_epoch)
        return Split(train=text, test=tests, normalisation=None, data=data)
    splits = _open_examples(data, "train", "test")
    train = _examples(splits, data, graph, "train", normalisation)
    test = _examples(splits, data, graph, "test", train.normalisation, train.classes)
    labels = {_where(data, "train"): train.labels, _where(data, "test"): test.labels}
    warn_of_missing(labels, train.classes)
    augmentation = _augmentation(data, seed, train)
    kept, rest = (train, None) if held_out is None else hold_out(train, held_out, seed)
    return Split(
        train=replace(kept, shuffle_seed=seed, augmentation=augmentation),
        test=test,
        normalisation=train.normalisation,
        held_out=rest,
        classes=train.classes,
        preprocessing=_preprocessing(train, data),
        data=data,
    )


def hold_out(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Divide examples at random into a training part and a held-out part.

    The division depends on the seed and the number of examples alone.

    Args:
        examples: a training split.
        share: of the examples that is held out, above 0 and below 1.
        seed: of the run.

    Raises:
        DataError: one of the two parts would be empty.

    Example:
        >>> pixels = np.zeros((10, 1, 1, 1), np.uint8)
        >>> ten = Examples(read=lambda rows: pixels[rows], labels=np.arange(10), shape=(1, 1, 1),
        ...                normalisation=Normalisation(mean=(0,), std=(1,)))
        >>> [len(part) for part in hold_out(ten, 0.2, seed=0)]
        [8, 2]
    """
    count = len(examples)
    most = round(share * count)
    if not 0 < most < count:
        raise DataError(
            f"aggregation.held_out: {share:g} of {count} training examples is {most}; expected at least one, "
            "and one to train on"
        )
    stream = Random(seed).at(weight="data", step=0, purpose="hold out")
    order = np.argsort(stream.uniform(slice(0, count)), kind="stable")
    return _part(examples, np.sort(order[most:])), _part(examples, np.sort(order[:most]))


def limited(examples: Batches, most: int | None) -> Batches:
    """Return at most ``most`` examples, evenly spaced; all of them where ``most`` is None.

    Raises:
        DataError: the examples are text.
    """
    if most is None or most >= len(examples):
        return examples
    if not isinstance(examples, Examples):
        raise DataError("--limit: expected images or vectors, found text; leave --limit out")
    return _part(examples, spaced(len(examples), most))


def _part(examples: Examples, rows: Rows) -> Examples:
    return replace(examples, read=lambda chosen: examples.read(rows[chosen]), labels=examples.labels[rows])


def load_test(
    data: Data,
    graph: BlockGraph,
    normalisation: Normalisation | None,
    classes: Names = None,
    *,
    own: bool = False,
) -> Batches:
    """Load the test data of a trained ensemble.

    Args:
        data: the source, split and columns.
        graph: gives the shape that examples must have.
        normalisation: of the run that trained the ensemble.
        classes: names of the ensemble's classes, with which those of the data are matched.
        own: whether the ensemble was trained on this source, so that unknown names need no match.

    Raises:
        DataError: as :func:`load`.
    """
    if isinstance(graph.input, Tokens):
        _expect_text(data)
        return load_test_text(data, graph)
    if normalisation is None:
        raise DataError(
            f"data {data.source!r}: the model's record does not say how inputs are normalised; save it with "
            "save_run(…, preprocessing=…), or with data=, what nt_lab.data.load returned"
        )
    matched = not own or classes is not None
    splits, where = _open_examples(data, "test"), _where(data, "test")
    test = _examples(splits, data, graph, "test", normalisation, classes, matched=matched)
    known = test.classes or class_names(splits["test"], label_column(splits["test"], data.label, where))
    warn_of_missing({where: test.labels}, known)
    return test


def trained_on(record: Mapping[str, Any], where: str) -> tuple[Data, Normalisation | None]:
    """Return a run's data and the normalisation of its inputs, which is None for tokens.

    Args:
        record: of the run.
        where: origin of the record, for errors.

    Raises:
        CheckpointError: the record lacks the data or the normalisation.
    """
    try:
        measured = record["data"]["normalisation"]
        normalisation = None if measured is None else Normalisation(**measured)
        return Data(**record["run"]["data"]), normalisation
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{where}: its record does not say what it was trained on and how inputs are normalised "
            f"({error}); expected what nt train wrote"
        ) from None


def _open_examples(data: Data, *names: str) -> Splits:
    """Return what is trained on (``train``) and tested on (``test``), or one of them."""
    if data.source.startswith(PREFIX):
        raise DataError(
            f"data.source: {data.source!r} is text, but the graph does not read tokens; train llama_tiny, say"
        )
    splits = open_source(data.source)
    if not data.held_out:
        chosen = {name: take(splits, getattr(data, name), f"data.{name}") for name in names}
        if len(chosen) == 2:
            warn_of_shared(count_shared(splits, data.train, data.test), f"data {data.source!r}")
        return chosen
    whole, where = take(splits, data.train, "data.train"), _where(data, "train")
    found = whole.select_columns([column := label_column(whole, data.label, where)])[:][column]
    labels = np.array([-1 if label is None else label for label in found])
    out = stratified(labels, data.held_out, data.held_out_seed, where)
    return {"train": whole.select(np.setdiff1d(np.arange(len(whole)), out)), "test": whole.select(out)}


def _expect_text(data: Data) -> None:
    """Check that no setting is for images or vectors, which text would ignore."""
    if data.held_out:
        raise DataError(
            f"data.held_out: {data.held_out:g} is for images and vectors, but the graph reads tokens; give "
            "data.text.held_out"
        )
    if data.resize is not None:
        raise DataError("data.resize: expected none for a graph that reads tokens, which are not resized")


def _where(data: Data, which: str) -> str:
    if data.held_out and which == "test":
        return f"data {data.source!r}, held out of split {data.train!r}"
    return f"data {data.source!r}, split {getattr(data, which)!r}"


def _examples(
    splits: Splits,
    data: Data,
    graph: BlockGraph,
    which: str,
    normalisation: Normalisation | None,
    classes: Names = None,
    *,
    matched: bool = True,
) -> Examples:
    where, dataset, others = _where(data, which), splits[which], list(splits.values())
    column = label_column(dataset, data.label, where)
    names = class_names(dataset, column)
    numbered = which == "train" or not matched or classes == names
    match = None if numbered else partial(by_name, names, classes, where, graph)
    labels = read_labels(dataset, column, graph, where, match, others)
    vectors = isinstance(graph.input, Features)
    read = reader(
        dataset,
        image_column(dataset, data.image, where, vectors=vectors),
        graph,
        where,
        None if data.resize is None else _resizing(data.resize, graph),
        trained=None if normalisation is None else len(normalisation.mean),
        others=others,
    )
    example = read(np.zeros(1, np.int64))
    if data.resize is not None and example.ndim != 4:
        raise DataError(f"data.resize: {where}: expected images to resize, found vectors; leave it out")
    kept = len(dataset) * example.nbytes <= IN_MEMORY_BYTES
    if kept:
        read = in_memory(read, len(dataset))
    if normalisation is None:
        normalisation = measure(read, spaced(len(dataset), len(dataset) if kept else SAMPLE))
    if len(normalisation.mean) != example.shape[1]:
        raise DataError(
            f"{where}: the run was normalised for {len(normalisation.mean)} channels, found "
            f"{example.shape[1]}; evaluate on data of the kind it was trained on"
        )
    return Examples(
        read=read,
        labels=labels,
        shape=graph.input.shape,
        normalisation=normalisation,
        classes=names if match is None else classes,
    )


def _preprocessing(train: Examples, data: Data) -> Preprocessing:
    """Return the preprocessing of raw examples, with the range of vectors' features."""
    example = train.read(np.zeros(1, np.int64))
    told = {"normalisation": train.normalisation, "shape": example.shape[1:]}
    if example.ndim == 4:
        return Preprocessing(units="bytes", resize=data.resize, **told)
    rows = spaced(len(train), SAMPLE)
    parts = [train.read(part) for part in chunks(rows, example.size)]
    low, high = (
        tuple(map(float, most([most(part, axis=0) for part in parts], axis=0))) for most in (np.min, np.max)
    )
    return Preprocessing(units="values", low=low, high=high, **told)


def _resizing(size: tuple[int, int], graph: BlockGraph) -> Fit:
    fit = resized(graph, size)
    if fit is None:
        raise DataError(
            f"data.resize: expected the size of the images that the graph reads, "
            f"{described(graph.input.shape)} of 1 or 3 channels, found [{size[0]}, {size[1]}]"
        )
    return fit


def _class_names(dataset: Dataset, data: Data, where: str) -> list[str] | None:
    feature = dataset.features[label_column(dataset, data.label, where)]
    return feature.names if isinstance(feature, ClassLabel) else None


def measure(read: Reader, rows: Rows) -> Normalisation:
    """Measure mean and standard deviation of each channel over some rows; exact for images.

    Example:
        >>> pixels = np.array([[10], [20]], np.uint8).reshape(2, 1, 1, 1)
        >>> measure(lambda rows: pixels[rows], np.array([0, 1]))
        Normalisation(mean=(15.0,), std=(5.0,))
    """
    example = read(rows[:1])
    count = len(rows) * math.prod(example.shape[2:])
    total, squares = np.zeros((2, example.shape[1]))
    for part in chunks(rows, example.size):
        values = read(part).astype(np.float64).swapaxes(0, 1).reshape(example.shape[1], -1)
        total += values.sum(axis=1)
        squares += np.einsum("ij,ij->i", values, values)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return Normalisation(mean=tuple(mean.tolist()), std=tuple(np.where(std > 0, std, 1.0).tolist()))


def _augmentation(data: Data, seed: int, train: Examples) -> Augmentation | None:
    if data.augment == "none":
        return None
    if train.read(np.zeros(1, np.int64)).ndim != 4:
        raise DataError(
            f"data.augment: {data.augment!r} is for images, but {data.source!r} holds vectors; "
            "--set data.augment=none"
        )
    return Augmentation(seed=seed, flip=data.augment == "flip_crop", crop=True)
