"""A dataset read as a stream: no end, no copy on disk, sequences drawn from a shuffle buffer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from nt_core.errors import DataError, NeuroTrailsWarning, nearest
from nt_core.training import Data
from nt_lab.data.files import Tables, find_files
from nt_lab.data.order import buffered
from nt_lab.data.sources import UNREADABLE, expect_place, explain, is_saved, patterns
from nt_lab.data.text import Batch, Sequences, cut
from nt_lab.data.tokenizer import Tokenizer

Streams = Mapping[str, Iterable[Mapping[str, Any]]]
"""A dataset's splits by their names."""

Documents = Callable[[], Iterator[bytes]]
"""Function that begins to read a dataset from its start."""


class Nulls:
    """Count of a stream's examples without text (null), each once, although a stream is read again and again.

    Attributes:
        count: number of such examples so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._last: dict[str, int] = {}

    def count_one(self, split: str, number: int, where: str) -> None:
        """Count an example, and warn of the first one; each reader of a split reads in ascending order."""
        if number <= self._last.get(split, -1):
            return
        self._last[split] = number
        self.count += 1
        if self.count == 1:
            warnings.warn(
                f"{where}: no text (null); such examples are left out and counted",
                NeuroTrailsWarning,
                stacklevel=2,
            )


class Stream:
    """Sequences of a stream; a :class:`nt_core.training.Batches` whose epochs are parts of it.

    Args:
        documents: gives the documents; called again at their end, and shuffled in another order.
        tokenizer: turns the documents into tokens, which are packed into sequences one after the other.
        length: of the sequences.
        buffer: number of sequences among which the next is drawn.
        seed: keys the draws.
        epoch_size: number of sequences that count as one epoch.
        nulls: counts the examples without text.

    Attributes:
        nulls: as given.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: Tokenizer,
        *,
        length: int,
        buffer: int,
        seed: int,
        epoch_size: int,
        nulls: Nulls,
    ) -> None:
        self.nulls = nulls
        self._documents, self._tokenizer = documents, tokenizer
        self._length, self._buffer, self._seed, self._size = length, buffer, seed, epoch_size
        self._rest: Iterator[NDArray[Any]] = iter(())
        self._at = 0

    def __len__(self) -> int:
        return self._size

    def epoch(self, number: int, batch_size: int, first: int = 0) -> Iterator[Batch]:
        """Yield (inputs (B, T), labels (B, T)), int64; restart the stream if another part was read last."""
        wanted = max(number - 1, 0) * self._size + first * batch_size
        if self._at != wanted or not wanted:
            self._rest = islice(self._endless(), wanted, None)
            self._at = wanted
        for start in range(first * batch_size, self._size, batch_size):
            windows = list(islice(self._rest, min(batch_size, self._size - start)))
            self._at += len(windows)
            yield cut(np.stack(windows))

    def _endless(self) -> Iterator[NDArray[Any]]:
        for time in count(1):
            packed = pack(self._documents(), self._tokenizer, self._length)
            empty = True
            for window in buffered(packed, self._buffer, self._seed, time):
                empty = False
                yield window
            if empty:
                raise DataError("data.source: the stream is shorter than one sequence; expected more text")


def pack(documents: Iterable[bytes], tokenizer: Tokenizer, length: int) -> Iterator[NDArray[Any]]:
    r"""Yield windows (T + 1,) of the documents' tokens, each beginning with the last token of the one before.

    Example:
        >>> from nt_lab.data.tokenizer import open_tokenizer
        >>> [window.tobytes() for window in pack([b"ab", b"cdef"], open_tokenizer("bytes"), length=3)]
        [b'ab\nc', b'cdef']
    """
    tokens = np.empty(0, np.uint8)
    for number, document in enumerate(documents):
        tokens = np.concatenate([tokens, tokenizer.encode(document, f"document {number}")])
        while len(tokens) > length:
            yield tokens[: length + 1]
            tokens = tokens[length:]


def open_stream(
    data: Data, tokenizer: Tokenizer, length: int, seed: int, epoch_size: int
) -> tuple[Stream, Sequences]:
    """Return the endless training stream and the test sequences.

    Raises:
        DataError: the dataset cannot be read, has no such split or column, or too little text.
    """
    settings, splits, nulls = data.text, open_splits(data), Nulls()

    def documents() -> Iterator[bytes]:
        found = read_documents(splits, data, data.train, "data.train", nulls)
        return (text for i, text in enumerate(found) if not is_held_out(i, settings.held_out))

    if next(documents(), None) is None:
        raise DataError(
            f"data {data.source!r}, split {data.train!r}: no documents to train on; lower "
            f"data.text.held_out={settings.held_out:g}"
        )
    train = Stream(
        documents,
        tokenizer,
        length=length,
        buffer=settings.shuffle_buffer,
        seed=seed,
        epoch_size=epoch_size,
        nulls=nulls,
    )
    return train, held_out_sequences(splits, data, tokenizer, length, nulls)


def held_out_sequences(
    splits: Streams, data: Data, tokenizer: Tokenizer, length: int, nulls: Nulls | None = None
) -> Sequences:
    """Return the first sequences of the held-out documents: every k-th, k = 1 / ``data.text.held_out``.

    Raises:
        DataError: as :func:`open_stream`; or the documents are shorter than one sequence.
    """
    settings = data.text
    if settings.held_out:
        found = read_documents(splits, data, data.train, "data.train", nulls or Nulls())
        held_out: Iterator[bytes] = (
            text for i, text in enumerate(found) if is_held_out(i, settings.held_out)
        )
    else:
        held_out = read_documents(splits, data, data.test, "data.test", nulls or Nulls())
    windows = list(islice(pack(held_out, tokenizer, length), settings.test_sequences))
    if not windows:
        raise DataError(
            f"data {data.source!r}: what is tested on is shorter than a sequence of {length} tokens; raise "
            f"data.text.held_out={settings.held_out:g}, or use a graph of shorter sequences"
        )
    return Sequences(tokens=np.concatenate([windows[0][:1], *(w[1:] for w in windows)]), length=length)


def is_held_out(number: int, share: float) -> bool:
    """Return whether a document is held out; held-out documents are evenly spaced.

    Example:
        >>> [number for number in range(12) if is_held_out(number, 0.25)]
        [3, 7, 11]
    """
    return math.floor((number + 1) * share) > math.floor(number * share)


def open_splits(data: Data) -> Streams:
    """Return the splits of a dataset by their names; nothing is downloaded before it is read.

    Raises:
        DataError: nothing is there, or it cannot be read.
    """
    path = expect_place(data.source)
    source = str(path) if path.exists() else data.source
    try:
        if is_saved(path):
            found = datasets.load_from_disk(path)
        elif isinstance(files := find_files(path) if path.is_dir() else None, Tables):
            _expect_no_subset(data)
            found = datasets.load_dataset(files.reader, data_files=patterns(path, files), streaming=True)
        else:
            found = datasets.load_dataset(source, data.text.subset, streaming=True)
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(explain(data.source, path, error)) from None
    return found if isinstance(found, dict) else {"train": found}


def _expect_no_subset(data: Data) -> None:
    if data.text.subset is not None:
        raise DataError(
            f"data.text.subset: the folder {data.source!r} has no subsets, which its README would list; "
            f"found {data.text.subset!r}; give the folder of the subset as --data"
        )


def read_documents(
    splits: Streams, data: Data, split: str, setting: str, nulls: Nulls | None = None
) -> Iterator[bytes]:
    """Yield the text of each example of a split, in order, while the split is read.

    Args:
        splits: of :func:`open_splits`.
        data: names the column.
        split: to read.
        setting: the field that names the split, for errors.
        nulls: counts the examples without text, which are left out.

    Raises:
        DataError: no such split or column; or, while reading, a failed connection or a damaged file.
    """
    if split not in splits:
        raise DataError(f"{setting}: no split {split!r}{nearest(split, splits)}")
    examples = enumerate(splits[split])
    while True:
        try:
            number, example = next(examples)
        except StopIteration:
            return
        except UNREADABLE as error:
            raise DataError(explain(data.source, Path(data.source).expanduser(), error)) from None
        where = f"data {data.source!r}, split {split!r}, example {number}"
        text = _text(example, data.text.column, where)
        if text is not None:
            yield text.encode()
        elif nulls is not None:
            nulls.count_one(split, number, where)


def _text(example: Mapping[str, Any], column: str, where: str) -> str | None:
    if column not in example:
        raise DataError(f"data.text.column: {where} has no column {column!r}{nearest(column, example)}")
    text = example[column]
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where}: column {column!r}: expected text, found {type(text).__name__}")
    return text
