"""Recipe and data of a training, the same for every backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from nt_core.errors import DataError, SpecError
from nt_core.finite import NonFinite
from nt_core.metrics import Metrics
from nt_core.random import Random
from nt_core.structure import Structure
from nt_core.values import Count, Fraction, Value

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[
    tuple[Count, Count], BeforeValidator(lambda value: (value, value) if isinstance(value, int) else value)
]
DEFAULT_TEST: Final = "test"
Model = TypeVar("Model", covariant=True)
Report = Callable[[Mapping[str, Any]], None]
"""Function that receives the events of a training, as plain records with an ``event``."""


class SGD(Value):
    """Stochastic gradient descent; weight decay is added to the gradient.

    Attributes:
        lr: the learning rate.
        momentum: the momentum.
        nesterov: Nesterov's momentum.
        weight_decay: added to the gradient, times the weight.
    """

    kind: Literal["sgd"] = "sgd"
    lr: Positive = 0.1
    momentum: Beta = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 5e-4


class Adam(Value):
    """Adam (Kingma & Ba 2015); weight decay is added to the gradient.

    Attributes:
        lr: the learning rate.
        betas: decay rates of the two moments.
        eps: added to the denominator.
        weight_decay: added to the gradient, times the weight.
    """

    kind: Literal["adam"] = "adam"
    lr: Positive = 1e-3
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0


class AdamW(Value):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

    Attributes:
        lr: the learning rate.
        betas: decay rates of the two moments.
        eps: added to the denominator.
        weight_decay: decoupled from the gradient.
    """

    kind: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.01


AnyOptimizer = Annotated[SGD | Adam | AdamW, Field(discriminator="kind")]
"""Any optimiser that a recipe can name."""


class LearningRate(Value):
    """Schedule of the learning rate, as a factor on the optimiser's learning rate.

    Attributes:
        schedule: ``constant``; ``cosine`` down to ``final``; ``steps``: ×``factor`` at each milestone.
        warmup: share of training in which the learning rate rises linearly from 0.
        final: the last factor of the cosine.
        milestones: shares of training.
        factor: multiplies the learning rate at each milestone, for ``steps``.
    """

    schedule: Literal["constant", "cosine", "steps"] = "cosine"
    warmup: Fraction = 0.0
    final: Fraction = 0.0
    milestones: tuple[Fraction, ...] = (0.25, 0.5, 0.75)
    factor: Fraction = 0.1

    def at(self, step: int, total_steps: int) -> float:
        """Return the factor for the optimiser step number ``step``, counted from 0.

        Example:
            >>> steps = LearningRate(schedule="steps", milestones=(0.5,))
            >>> [steps.at(step, 10) for step in (0, 4, 5)]
            [1.0, 1.0, 0.1]
        """
        warmup = round(self.warmup * total_steps)
        if step < warmup:
            return self.rising(step, total_steps)
        match self.schedule:
            case "constant":
                return 1.0
            case "cosine":
                share = (step - warmup) / max(1, total_steps - warmup)
                return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
            case "steps":
                passed = sum(step >= round(share * total_steps) for share in self.milestones)
                return self.factor**passed

    def rising(self, step: int, total_steps: int) -> float:
        """Return the factor of the warm-up alone; 1 after it.

        Example:
            >>> [LearningRate(warmup=0.3).rising(step, 10) for step in (0, 2, 3)]
            [0.25, 0.75, 1.0]
        """
        warmup = round(self.warmup * total_steps)
        return min(1.0, (step + 1) / (warmup + 1))


class Training(Value):
    """Recipe of a training.

    Attributes:
        optimizer: kind and hyperparameters of the optimiser.
        learning_rate: schedule of the learning rate.
        batch_size: examples per optimiser step.
        accumulation: micro-batches into which a step's examples are cut.
        clip_norm: the largest norm of the active weights' gradient; None: no limit.
        precision: of forward and backward; weights and optimiser state stay float32.
        non_finite: reaction to a loss or gradient that is NaN or infinite: ``stop`` with an error that names
            the first such weight, before anything changes; ``skip`` the batch, which is counted.
        deterministic: whether the same seed on the same machine gives the same run, bit for bit.
    """

    optimizer: AnyOptimizer = SGD()
    learning_rate: LearningRate = LearningRate()
    batch_size: Count = 128
    accumulation: Count = 1
    clip_norm: Positive | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    non_finite: NonFinite = "stop"
    deterministic: bool = True

    @model_validator(mode="after")
    def _check(self) -> Training:
        if self.batch_size % self.accumulation:
            raise SpecError(
                f"training.accumulation: expected a divisor of batch_size={self.batch_size}, "
                f"found {self.accumulation}"
            )
        return self


class Text(Value):
    """Conversion of text to sequences of tokens, for graphs that read tokens.

    Attributes:
        tokenizer: ``bytes``; the path of a ``tokenizer.json``, for the package ``tokenizers``; or a folder or
            a name on the hub, for ``transformers``.
        end_of_text: the token that follows each document; None, as in older specs: the tokenizer's own.
        held_out: share of the text for tests, held out of training: the end of a text, every k-th document
            of a stream; 0: tests use a stream's split ``data.test``.
        column: name of a dataset's column of text.
        subset: name of a subset, for a dataset on the hub that has several, ``en`` of ``allenai/c4`` say.
        shuffle_buffer: number of a stream's sequences among which the next is drawn.
        test_sequences: largest number of a stream's test sequences.
    """

    tokenizer: str = "bytes"
    end_of_text: str | None = None
    held_out: Fraction = 0.1
    column: str = "text"
    subset: str | None = None
    shuffle_buffer: Count = 1000
    test_sequences: Count = 256


class Data(Value):
    """Training and test data.

    Attributes:
        source: ``digits`` (the 1,797 handwritten digits of scikit-learn), a name on the Hugging Face hub, a
            folder, or ``text:PATH``, a text file or a folder of text files. A graph that reads tokens
            reads a dataset of the hub or of a folder as a stream.
        train: the split to train on. ``train[:1000]`` is a part of it in the order of its examples, in which
            classes often follow one another.
        test: the split to evaluate on.
        held_out: share of ``train`` that is tested on instead of the split ``test``: as much of each class,
            chosen at random. 0, as in older specs: tests use the split ``test``.
        held_out_seed: keys that choice, apart from the run's seed, so that runs of several seeds are tested
            on the same examples.
        resize: (height, width) to which images are resized, bilinear, and converted to the graph's channels:
            grey to three equal channels, colour to its luma. One number is both. None, as in older specs:
            images must have the graph's size.
        image: the column of images; None: the only such column.
        label: the column of labels; None: the only such column.
        augment: ``none``; ``crop``: pad by an eighth of the size and crop at random; ``flip_crop``: mirror at
            random too.
        text: conversion of text to sequences of tokens.
    """

    source: str = "digits"
    train: str = "train"
    test: str = DEFAULT_TEST
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    held_out_seed: Annotated[int, Field(ge=0)] = 0
    resize: Size | None = None
    image: str | None = None
    label: str | None = None
    augment: Literal["none", "crop", "flip_crop"] = "none"
    text: Text = Text()

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.held_out and self.test != DEFAULT_TEST:
            raise SpecError(
                f"data.held_out: a share of data.train is tested on, but data.test={self.test!r} names other "
                "examples; leave one of the two out"
            )
        return self

    def elsewhere(self, source: str) -> Data:
        """Return the settings for tests on another source, whose split ``test`` is used whole.

        Example:
            >>> Data(source="pets", held_out=0.2).elsewhere("others").held_out
            0.0
        """
        return self if source == self.source else self.replace(source=source, held_out=0.0)


class Batches(Protocol):
    """Protocol of a dataset for a trainer, with the same order and augmentation for every backend."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def epoch(
        self, number: int, batch_size: int, first: int = 0
    ) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        """Yield (inputs (B, *shape), labels (B, …)); the last batch may be smaller.

        Training sets shuffle by (seed, number); test sets do not. An epoch of a stream, which has no end, is
        a
        part of it: epoch 1 is the stream's beginning, and each other epoch follows the one before. The first
        ``first`` batches are left out, because a resumed training has used them already.
        """


def first_examples(data: Batches, count: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the first examples of a training set, in the order of its first epoch.

    Raises:
        DataError: the set is empty.
    """
    for inputs, labels in data.epoch(1, count):
        return inputs, labels
    raise DataError("data: expected examples for the topology prune_at_init to choose masks by, found none")


class MemberBatch(NamedTuple):
    """Batch of members, or a process's share of it.

    Attributes:
        inputs: (rows, *shape).
        labels: (rows, …).
        examples: number of examples of the whole batch, of which this may be a share.
        part: share of the whole batch's rows.
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int64]
    examples: int
    part: float


@dataclass(frozen=True)
class Share:
    """A process's share of every batch, which is consecutive rows.

    Attributes:
        index: of the process, from 0.
        of: number of processes.
    """

    index: int = 0
    of: int = 1

    def rows(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the share of the last axis.

        Example:
            >>> [Share(index, 3).rows(np.arange(7)).tolist() for index in range(3)]
            [[0, 1], [2, 3], [4, 5, 6]]
        """
        count = rows.shape[-1]
        return rows[..., count * self.index // self.of : count * (self.index + 1) // self.of]


def member_batches(
    structure: Structure,
    data: Batches,
    number: int,
    batch_size: int,
    seed: int,
    first: int = 0,
    share: Share = Share(),
) -> Iterator[MemberBatch]:
    """Yield an epoch's batches as a structure's members train on them.

    Args:
        structure: determines the rows of a batch for each member.
        data: the training data.
        number: of the epoch, from 1.
        batch_size: number of examples in a batch.
        seed: keys the choice of rows.
        first: number of batches to leave out at the beginning.
        share: of each batch's rows for this process, as many of each member. An empty share is replaced by
            one row for each member, with ``part`` 0.
    """
    for call, (inputs, labels) in enumerate(data.epoch(number, batch_size, first), start=first):
        stream = Random(seed).at(weight=f"epoch {number}", step=call, purpose="member rows")
        rows = structure.member_rows(len(labels), stream)
        if rows is None and share.of == 1:
            yield MemberBatch(inputs, labels, len(labels), 1.0)
            continue
        rows = (np.arange(len(labels)) if rows is None else rows).reshape(structure.row_groups, -1)
        own = share.rows(rows)
        chosen = (own if own.size else rows[:, :1]).reshape(-1)
        yield MemberBatch(inputs[chosen], labels[chosen], len(labels), own.size / rows.size)


@dataclass(frozen=True, kw_only=True)
class Trained(Generic[Model]):
    """A finished training.

    Attributes:
        model: the trained model, of the backend that trained it.
        steps: number of optimiser steps taken.
        examples: number of training examples seen.
        seconds: of training, without evaluation between epochs.
        metrics: on the test set, if there was one.
        skipped: number of skipped batches, whose loss or gradient was not finite.
        dropped: number of each epoch's examples that were left out (:func:`nt_core.training.trainable`).
    """

    model: Model
    steps: int
    examples: int
    seconds: float
    metrics: Metrics | None
    skipped: int = 0
    dropped: int = 0
