"""Examples in memory, and examples that come in batches of their own, as a trainer's batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import DataError
from nt_core.random import Random

IGNORED: Final = -100
"""The label of an example, or of a token, that counts in no loss."""

Batch = tuple[NDArray[Any], NDArray[np.int64]]


def epoch_order(count: int, seed: int | None, epoch: int) -> NDArray[np.int64]:
    """Return the rows (count,) in an epoch's order; without a seed in ascending order, for tests.

    Example:
        >>> epoch_order(4, None, 1), sorted(epoch_order(4, 0, 1).tolist())
        (array([0, 1, 2, 3]), [0, 1, 2, 3])
    """
    if seed is None:
        return np.arange(count)
    stream = Random(seed).at(weight="data", step=epoch, purpose="shuffle")
    return np.argsort(stream.uniform(slice(0, count)), kind="stable")


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What a network reads and answers, to which given examples are held.

    Attributes:
        inputs: shape of one input; images are (channels, height, width).
        outputs: shape of one example's logits.
        tokens: whether inputs are numbers of tokens.
        channels_last: whether images may also be (height, width, channels), as in Keras.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tokens: bool = False
    channels_last: bool = False

    def checked(self, inputs: Any, labels: Any, where: str) -> Batch:
        """Return examples as a network reads them: float32 or int64, images channels first, int64 labels.

        Args:
            inputs: (N, *shape) array or tensor.
            labels: (N, …) whole numbers.
            where: the data, for errors.

        Raises:
            DataError: another shape or type, bytes that are not normalised, or a label outside the classes.
        """
        given, answers = as_array(inputs), as_array(labels)
        if given.ndim == 0 or answers.ndim == 0 or len(given) != len(answers):
            raise DataError(
                f"{where}: expected as many labels as inputs, found shapes {given.shape} and {answers.shape}"
            )
        return self._inputs(given, where), self._labels(answers, where)

    def _inputs(self, given: NDArray[Any], where: str) -> NDArray[Any]:
        last = (*self.inputs[1:], *self.inputs[:1])
        images = len(self.inputs) == 3
        if given.shape[1:] != self.inputs and self.channels_last and images and given.shape[1:] == last:
            given = np.moveaxis(given, -1, 1)
        if given.shape[1:] != self.inputs:
            raise DataError(
                f"{where}: expected inputs of shape (examples, {', '.join(map(str, self.inputs))}), found "
                f"{given.shape}" + "; images are (examples, channels, height, width)" * images
            )
        if self.tokens:
            if given.dtype.kind not in "iu":
                raise DataError(f"{where}: expected whole numbers of tokens, found {given.dtype}")
            return np.ascontiguousarray(given, np.int64)
        if given.dtype.kind not in "fiub" or (images and given.dtype == np.uint8):
            raise DataError(
                f"{where}: expected inputs as floats, found {given.dtype}; normalise pixels first, with "
                "nt_core.training.Preprocessing.of_images(…).inputs(images, shape) say"
            )
        return np.ascontiguousarray(given, np.float32)

    def _labels(self, given: NDArray[Any], where: str) -> NDArray[np.int64]:
        expected = (len(given), *self.outputs[:-1])
        if given.dtype.kind not in "iu" or given.shape != expected:
            raise DataError(
                f"{where}: expected labels as whole numbers of shape {expected}, found {given.dtype} of "
                f"shape {given.shape}"
            )
        wrong = ((given < 0) & (given != IGNORED)) | (given >= self.outputs[-1])
        if wrong.any():
            raise DataError(
                f"{where}: expected labels from 0 to {self.outputs[-1] - 1}, found {given[wrong][0]}"
            )
        return np.ascontiguousarray(given, np.int64)


def as_array(given: Any) -> NDArray[Any]:
    """Return an array, or the values of a tensor of any framework."""
    if hasattr(given, "detach"):  # of PyTorch, perhaps on a GPU
        given = given.detach().cpu()
    return np.asarray(given)


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Examples in memory; a :class:`nt_core.training.Batches`.

    Attributes:
        inputs: (N, *shape).
        labels: (N, …).
        shuffle_seed: keys the order of each epoch; None: in order, as tests are.

    Example:
        >>> arrays = Arrays(inputs=np.eye(3, dtype=np.float32), labels=np.arange(3))
        >>> [labels.tolist() for _, labels in arrays.epoch(1, 2)]
        [[0, 1], [2]]
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int64]
    shuffle_seed: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(self, number: int, batch_size: int, first: int = 0) -> Iterator[Batch]:
        """Yield (inputs (B, *shape), labels (B, …)); the last batch may be smaller."""
        order = epoch_order(len(self), self.shuffle_seed, number)
        for start in range(first * batch_size, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield self.inputs[rows], self.labels[rows]


@dataclass(frozen=True, kw_only=True)
class Rebatched:
    """Examples that come in batches of any size; a :class:`nt_core.training.Batches`.

    Attributes:
        read: number of an epoch → its batches, in their own order.
        count: number of examples of an epoch.
        reads: to which each batch is held.
        where: the data, for errors.

    Example:
        >>> parts = [(np.zeros((2, 4)), np.zeros(2, int)), (np.ones((3, 4)), np.ones(3, int))]
        >>> reads = Reads(inputs=(4,), outputs=(2,))
        >>> batches = Rebatched(read=lambda _: iter(parts), count=5, reads=reads, where="data")
        >>> [labels.tolist() for _, labels in batches.epoch(1, 3)]
        [[0, 0, 1], [1, 1]]
    """

    read: Callable[[int], Iterator[Any]]
    count: int
    reads: Reads
    where: str

    def __len__(self) -> int:
        return self.count

    def epoch(self, number: int, batch_size: int, first: int = 0) -> Iterator[Batch]:
        """Yield (inputs (B, *shape), labels (B, …)); the last batch may be smaller.

        Raises:
            DataError: a batch is no pair of inputs and labels, or does not fit; or there are more or fewer
                examples than at first.
        """
        seen, left_out = 0, first * batch_size
        held: list[Batch] = []
        for item in self.read(number):
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise DataError(
                    f"{self.where}: expected batches of (inputs, labels), found {type(item).__name__}"
                    + f" of {len(item)}" * isinstance(item, tuple | list | dict)
                )
            inputs, labels = self.reads.checked(item[0], item[1], self.where)
            seen += len(labels)
            skipped = min(left_out, len(labels))
            left_out -= skipped
            held.append((inputs[skipped:], labels[skipped:]))
            while sum(len(part[1]) for part in held) >= batch_size:
                whole = _joined(held)
                yield whole[0][:batch_size], whole[1][:batch_size]
                held = [(whole[0][batch_size:], whole[1][batch_size:])]
        if seen != self.count:
            raise DataError(f"{self.where}: expected {self.count} examples in epoch {number}, found {seen}")
        if sum(len(part[1]) for part in held):
            yield _joined(held)


def _joined(parts: list[Batch]) -> Batch:
    inputs, labels = zip(*parts, strict=True)
    return np.concatenate(inputs), np.concatenate(labels)


def in_memory(data: Any, reads: Reads, seed: int | None, where: str) -> Arrays | None:
    """Return examples that are in memory as batches; None: the data are of another kind.

    Args:
        data: (inputs, labels), arrays or tensors of any framework; or PyTorch's ``TensorDataset`` of both.
        reads: to which the examples are held.
        seed: keys the order of each epoch; None: in order, as tests are.
        where: the data, for errors.

    Raises:
        DataError: the examples do not fit.

    Example:
        >>> reads = Reads(inputs=(4,), outputs=(2,))
        >>> len(in_memory((np.zeros((5, 4)), np.zeros(5, int)), reads, seed=0, where="data"))
        5
    """
    pair = getattr(data, "tensors", data)
    if not isinstance(pair, tuple | list):
        return None
    if len(pair) != 2:
        raise DataError(f"{where}: expected inputs and labels, found {len(pair)} arrays")
    inputs, labels = reads.checked(pair[0], pair[1], where)
    return Arrays(inputs=inputs, labels=labels, shuffle_seed=seed)


def is_batches(data: Any) -> bool:
    """Return whether data are a :class:`nt_core.training.Batches` already."""
    return callable(getattr(data, "epoch", None)) and hasattr(data, "__len__")
