"""Order of examples: keyed by seed and epoch, the same for every backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

import numpy as np

from nt_core.random import Random
from nt_core.training import epoch_order as epoch_order

Item = TypeVar("Item")
_DRAWS: Final = 4096  # random numbers made at a time


def buffered(items: Iterable[Item], size: int, seed: int, epoch: int) -> Iterator[Item]:
    """Shuffle items that do not fit in memory through a shuffle buffer of ``size`` items.

    Example:
        >>> sorted(buffered(range(10), size=4, seed=0, epoch=1))
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    draws = _draws(seed, epoch)
    held: list[Item] = []
    for item in items:
        if len(held) == size:
            place = next(draws) % size
            yield held[place]
            held[place] = item
        else:
            held.append(item)
    yield from (held[row] for row in epoch_order(len(held), seed, epoch))


def _draws(seed: int, epoch: int) -> Iterator[int]:
    stream = Random(seed).at(weight="data", step=epoch, purpose="buffer")
    start = 0
    while True:
        yield from stream.bits(np.arange(start, start + _DRAWS)).tolist()
        start += _DRAWS
