"""Data of every kind that users of Keras have, as batches that a trainer reads in an order of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from nt_core import DataError, EnsembleSpec, Tokens
from nt_core.training import Batches, Reads, Rebatched, in_memory, is_batches


def as_batches(data: Any, spec: EnsembleSpec, *, seed: int | None = None, where: str = "data") -> Batches:
    """Return data of any kind as batches; the twin of ``nt_torch``'s.

    Args:
        data: a :class:`nt_core.training.Batches`; (inputs, labels) as arrays or tensors; a ``TensorDataset``
            of PyTorch; or a ``tf.data.Dataset`` of batches, a ``keras.utils.PyDataset`` or a ``DataLoader``,
            which are read in their own order. Images are channels first, or channels last as in Keras.
        spec: of the network that reads them.
        seed: keys the order of arrays in each epoch; None: a test set, in order.
        where: name of the data, for errors.

    Raises:
        DataError: data of another kind, or that do not fit the network.

    Example:
        >>> import numpy as np, nt_core, nt_models
        >>> spec = nt_core.PRESETS["single"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> len(as_batches((np.zeros((5, 8)), np.zeros(5, int)), spec))
        5
    """
    if is_batches(data):
        found: Batches = data
        return found
    graph = spec.graph
    reads = Reads(
        inputs=graph.input.shape,
        outputs=graph.output_shape,
        tokens=isinstance(graph.input, Tokens),
        channels_last=True,
    )
    arrays = in_memory(data, reads, seed, where)
    if arrays is not None:
        return arrays
    read = _reader(data, where)
    count = sum(_length(item, where) for item in read(0))
    return Rebatched(read=read, count=count, reads=reads, where=where)


def _length(item: Any, where: str) -> int:
    """Return the number of examples in a batch; what is no pair is refused when it is read.

    Raises:
        DataError: an example alone.
    """
    shape = np.shape(item[1]) if isinstance(item, tuple | list) and len(item) == 2 else (0,)
    if not shape:
        raise DataError(f"{where}: expected batches of examples, found single ones; add .batch(64), say")
    return int(shape[0])


def expect_repeatable(data: Any) -> None:
    """Check that a resumed training can read its data in the order in which it began.

    Raises:
        DataError: the data have an order of their own, which no saved state holds.
    """
    if not is_batches(data) and not isinstance(getattr(data, "tensors", data), tuple | list):
        raise DataError(
            f"data: a training on {type(data).__name__} cannot be resumed in the same order; give arrays, or "
            "leave states out"
        )


def _reader(data: Any, where: str) -> Callable[[int], Iterator[Any]]:
    """Return a function that reads an epoch.

    Raises:
        DataError: data of another kind, or without an end.
    """
    if isinstance(data, keras.utils.PyDataset):
        return lambda _: _read(data)
    if hasattr(data, "as_numpy_iterator") and hasattr(data, "cardinality"):
        if int(data.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
            raise DataError(
                f"{where}: expected a dataset with an end, found an endless one; leave repeat() out"
            )
        return lambda _: iter(data.as_numpy_iterator())
    if all(hasattr(data, name) for name in ("dataset", "batch_size", "__iter__")):
        return lambda _: iter(data)
    raise DataError(
        f"{where}: expected (inputs, labels), a tf.data.Dataset, a PyDataset, a DataLoader or "
        f"nt_core.training.Batches, found {type(data).__name__}"
    )


def _read(data: keras.utils.PyDataset) -> Iterator[Any]:
    for place in range(data.num_batches):
        yield data[place]
    data.on_epoch_end()
