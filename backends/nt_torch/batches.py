"""Data of every kind that users of PyTorch have, as batches that a trainer reads in an order of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset

from nt_core import DataError, EnsembleSpec, Tokens
from nt_core.random import Random
from nt_core.training import Batches, Reads, Rebatched, in_memory, is_batches

_ROWS: Final = 256  # examples of a dataset that are read at a time


def as_batches(data: Any, spec: EnsembleSpec, *, seed: int | None = None, where: str = "data") -> Batches:
    """Return data of any kind as batches.

    Args:
        data: a :class:`nt_core.training.Batches`; (inputs, labels) as arrays or tensors; a ``TensorDataset``;
            a ``DataLoader``, or a ``Dataset`` of known length. A loader keeps its sampler, workers and
            transforms; its batches are joined and cut to those of the recipe.
        spec: of the network that reads them.
        seed: keys the order of each epoch, a loader's too; None: a test set, in order.
        where: name of the data, for errors.

    Raises:
        DataError: data of another kind, or that do not fit the network.

    Example:
        >>> import nt_core, nt_models
        >>> from torch.utils.data import TensorDataset
        >>> spec = nt_core.PRESETS["single"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> pairs = TensorDataset(torch.zeros(5, 8), torch.zeros(5, dtype=torch.long))
        >>> [labels.shape for _, labels in as_batches(DataLoader(pairs, batch_size=2), spec).epoch(1, 3)]
        [(3,), (2,)]
    """
    if is_batches(data):
        found: Batches = data
        return found
    graph = spec.graph
    reads = Reads(
        inputs=graph.input.shape, outputs=graph.output_shape, tokens=isinstance(graph.input, Tokens)
    )
    arrays = in_memory(data, reads, seed, where)
    if arrays is not None:
        return arrays
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__"):
        data = DataLoader(data, batch_size=_ROWS, shuffle=seed is not None)
    if not isinstance(data, DataLoader):
        raise DataError(
            f"{where}: expected (inputs, labels), a TensorDataset, a Dataset of known length, a DataLoader "
            f"or nt_core.training.Batches, found {type(data).__name__}"
        )
    return Rebatched(read=_keyed(data, seed), count=_count(data, where), reads=reads, where=where)


def expect_repeatable(data: Any) -> None:
    """Check that a resumed training can read its data in the order in which it began.

    Raises:
        DataError: a loader has a generator of its own, whose state no saved state holds.
    """
    sampler = getattr(data, "sampler", None)
    if any(getattr(each, "generator", None) is not None for each in (data, sampler)):
        raise DataError(
            "data: a DataLoader with a generator of its own cannot be resumed in the same order; leave the "
            "generator out, because the order is keyed by the seed of train"
        )


def _count(loader: DataLoader[Any], where: str) -> int:
    """Return the number of examples of a loader's epoch."""
    batches = loader.batch_sampler
    if isinstance(loader.sampler, DistributedSampler):
        raise DataError(
            f"{where}: a DistributedSampler gives each process other examples, but train divides each batch "
            "among the processes itself; leave the sampler out"
        )
    if isinstance(loader.dataset, IterableDataset) or type(batches) is not BatchSampler:
        raise DataError(
            f"{where}: expected a DataLoader of a known number of examples, with batch_size, found one of "
            f"{type(loader.dataset).__name__} with {type(batches).__name__}; write a "
            "nt_core.training.Batches, whose epochs have a length"
        )
    count = len(loader.sampler)  # type: ignore[arg-type]  # of torch's own types not all have a length
    return count // batches.batch_size * batches.batch_size if batches.drop_last else count


def _keyed(loader: DataLoader[Any], seed: int | None) -> Callable[[int], Iterator[Any]]:
    """Return a function that reads an epoch with random numbers of the epoch's own.

    A loader draws its order and its transforms from PyTorch's one generator, of which dropout draws, too.
    Here it has a stream for each epoch, which a resumed training begins anew.
    """

    def read(number: int) -> Iterator[Any]:
        stream = Random(seed or 0).at(weight="data", step=number, purpose="loader")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(stream.bits(slice(0, 1))[0]) >> 1)
            batches, own = iter(loader), torch.get_rng_state()
        while True:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(own)
                batch = next(batches, None)
                own = torch.get_rng_state()
            if batch is None:
                return
            yield batch

    return read
