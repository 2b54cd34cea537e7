"""Loading of this process's rows of batches as tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from nt_core import DataError
from nt_core.structure import Structure
from nt_core.training import Batches, Share, Training, member_batches


class Epochs(IterableDataset[tuple[Tensor, Tensor, int, float]]):
    """A process's share of a dataset's batches as tensors, for a loader that does not batch again.

    Yields inputs, labels, the number of examples of the whole batch, and the yielded share of its rows.

    Attributes:
        number: of the epoch that is read next, from 1.
        first: number of the epoch's batches that are left out.
    """

    def __init__(self, structure: Structure, data: Batches, batch_size: int, seed: int, share: Share) -> None:
        self.structure, self.data, self.batch_size, self.seed = structure, data, batch_size, seed
        self.number, self.first, self.share = 1, 0, share

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int, float]]:
        batches = member_batches(
            self.structure, self.data, self.number, self.batch_size, self.seed, self.first, self.share
        )
        for inputs, labels, count, part in batches:
            yield torch.from_numpy(inputs), torch.from_numpy(labels), count, part


def expect_batch_size(training: Training, structure: Structure, processes: int) -> None:
    """Check that every process gets whole micro-batches.

    Raises:
        DataError: the batch cannot be divided into whole micro-batches.
    """
    size = training.batch_size // training.accumulation
    structure.expect_batch_size(size)
    if size % processes:
        raise DataError(
            f"training.batch_size: {training.batch_size} in {training.accumulation} micro-batches cannot be "
            f"divided among {processes} processes; choose a multiple of {processes * training.accumulation}"
        )
    structure.expect_batch_size(size // processes)
