"""What every structure is: how the members of an ensemble share one block graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import DataError
from nt_core.graph import BlockGraph
from nt_core.random import Stream
from nt_core.structure.layout import Layout
from nt_core.values import Value

Reduction = Literal["mean", "sum"]


class Structure(Value, ABC):
    """How members share one graph."""

    @property
    @abstractmethod
    def members(self) -> int:
        """The number of predictions the ensemble makes for one example: M."""

    @property
    def loss_reduction(self) -> Reduction:
        """How members' losses are combined unless a spec says otherwise."""
        return "mean"

    @property
    def distillation(self) -> float | None:
        """The temperature at which members learn from their mean, too; None: they do not."""
        return None

    @property
    def training_rows(self) -> int:
        """How many rows of the network one example is in training."""
        return 1

    @abstractmethod
    def layout(self, graph: BlockGraph) -> Layout:
        """Spread a graph over backbone and heads."""

    def member_rows(self, count: int, stream: Stream) -> NDArray[np.int64] | None:
        """Choose which rows of a batch each member trains on.

        Args:
            count: of the batch's rows.
            stream: the randomness of this batch.

        Returns:
            (M·r,) positions in the batch, member-major; None: the batch is trained on as it is.
        """
        return None

    @property
    def row_groups(self) -> int:
        """How many members divide a training batch's rows among them, in order; 1: all see all of them."""
        return 1

    def expect_batch_size(self, size: int) -> None:
        """Raise unless a batch can be divided among members where it must be.

        Raises:
            DataError: it cannot; says which sizes can.
        """


def divisible(size: int, members: int) -> None:
    """Raise unless each member gets as many rows of a batch.

    Raises:
        DataError: the batch cannot be divided.

    Example:
        >>> divisible(126, 3)
    """
    if size % members:
        raise DataError(
            f"batch: {size} rows cannot be divided among {members} members; "
            f"expected a multiple of {members}, {size - size % members or members} or "
            f"{size + -size % members} say"
        )
