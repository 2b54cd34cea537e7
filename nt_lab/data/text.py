"""Text for training: sequences of tokens and, for each token, the token that follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import DataError
from nt_lab.data.order import epoch_order
from nt_lab.data.tokenizer import Tokenizer

PREFIX: Final = "text:"
"""Prefix of a source that is a text file or a folder of text files."""

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Tokens in memory, cut into sequences; a :class:`nt_core.training.Batches`.

    The inputs of sequence i are tokens i·T to (i+1)·T − 1; its labels are tokens i·T + 1 to (i+1)·T.

    Attributes:
        tokens: (N,) unsigned integers.
        length: T.
        shuffle_seed: keys the order of each epoch; None: in order, as tests are.

    Example:
        >>> text = Sequences(tokens=np.arange(9, dtype=np.uint8), length=4)
        >>> len(text), next(text.epoch(1, batch_size=2))
        (2, (array([[0, 1, 2, 3],
               [4, 5, 6, 7]]), array([[1, 2, 3, 4],
               [5, 6, 7, 8]])))
    """

    tokens: NDArray[Any]
    length: int
    shuffle_seed: int | None = None

    def __len__(self) -> int:
        return count_sequences(self.tokens, self.length)

    def epoch(self, number: int, batch_size: int, first: int = 0) -> Iterator[Batch]:
        """Yield (inputs (B, T), labels (B, T)), int64; the last batch may be smaller."""
        order = epoch_order(len(self), self.shuffle_seed, number)
        for start in range(first * batch_size, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield cut(self.tokens[rows[:, None] * self.length + np.arange(self.length + 1)])


def cut(windows: NDArray[Any]) -> Batch:
    """Cut windows of tokens (B, T + 1) into inputs and labels (B, T)."""
    wide = windows.astype(np.int64)
    return np.ascontiguousarray(wide[:, :-1]), np.ascontiguousarray(wide[:, 1:])


def count_sequences(tokens: NDArray[Any], length: int) -> int:
    """Return the number of sequences in a text, whose last token is a label only.

    Example:
        >>> count_sequences(np.zeros(8), length=4), count_sequences(np.zeros(9), length=4)
        (1, 2)
    """
    return max(0, len(tokens) - 1) // length


def read_text(source: str, tokenizer: Tokenizer) -> NDArray[Any]:
    """Return the tokens (N,) of a text file, or of the ``.txt`` files in a folder in the order of names.

    Args:
        source: ``text:PATH``.
        tokenizer: encodes each file as one document.

    Raises:
        DataError: no such file, or one that cannot be read.
    """
    path = Path(source.removeprefix(PREFIX)).expanduser()
    if not path.exists() or source == PREFIX:
        raise DataError(f"data.source: {source!r}: no such file or folder; give text:PATH of an existing one")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*.txt") if file.is_file())
    if not files:
        raise DataError(f"data.source: {source!r}: expected .txt files in the folder, found none")
    try:
        return np.concatenate([tokenizer.encode(file.read_bytes(), str(file)) for file in files])
    except OSError as error:
        raise DataError(f"data.source: {source!r} cannot be read: {error.strerror}") from None


def split_text(tokens: NDArray[Any], length: int, held_out: float, where: str) -> tuple[Sequences, Sequences]:
    """Split a text into training sequences and test sequences, which are its end and at least one.

    Raises:
        DataError: the text is shorter than one sequence, or ``held_out`` is 0.

    Example:
        >>> train, test = split_text(np.zeros(41, np.uint8), length=4, held_out=0.2, where="a text")
        >>> len(train), len(test)
        (8, 2)
    """
    if not held_out:
        raise DataError(f"{where}: data.text.held_out=0 leaves nothing to test on; give a share, 0.1 say")
    count = count_sequences(tokens, length)
    if not count:
        found = f"found {len(tokens)}" if len(tokens) else "but it is empty"
        raise DataError(
            f"{where}: expected at least {length + 1} tokens, one sequence and the token that follows it, "
            f"{found}; give a longer text, or a graph of shorter sequences"
        )
    begin = (count - max(1, round(held_out * count))) * length
    return Sequences(tokens=tokens[: begin + 1], length=length), Sequences(
        tokens=tokens[begin:], length=length
    )
