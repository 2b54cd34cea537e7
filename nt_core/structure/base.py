"""Base class of structures, which define how members share one block graph."""

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
"""How the losses of members become one."""


class Structure(Value, ABC):
    """Base class of structures, which define how members share one graph."""

    @property
    @abstractmethod
    def members(self) -> int:
        """The number of predictions the ensemble makes for one example: M."""

    @property
    def loss_reduction(self) -> Reduction:
        """Default reduction of the members' losses."""
        return "mean"

    @property
    def distillation(self) -> float | None:
        """Temperature at which members are also distilled from their mean; None: no distillation."""
        return None

    @property
    def training_rows(self) -> int:
        """Number of the network's rows that one example takes in training."""
        return 1

    @abstractmethod
    def layout(self, graph: BlockGraph) -> Layout:
        """Spread a graph over backbone and heads."""

    def member_rows(self, count: int, stream: Stream) -> NDArray[np.int64] | None:
        """Choose the rows of a batch on which each member trains.

        Args:
            count: number of the batch's rows.
            stream: random numbers of this batch.

        Returns:
            (M·r,) positions in the batch, member-major; None: the unchanged batch.
        """
        return None

    @property
    def row_groups(self) -> int:
        """Number of members that divide a training batch's rows, in order; 1: all train on all rows."""
        return 1

    def network_rows(self, layout: Layout, count: int, processes: int = 1) -> int:
        """Return the least number of the network's rows that a process has of a training batch.

        Args:
            layout: of this structure.
            count: number of the batch's examples, at least 1.
            processes: among which the batch is divided; each has one row of each member at least.
        """
        groups = self.row_groups if layout.along == "rows" else 1
        return max(1, -(-count // groups) // processes) * groups * self.training_rows

    def expect_batch_size(self, size: int) -> None:
        """Check that a batch can be divided among members, where the structure divides it.

        Raises:
            DataError: the batch cannot be divided; the message names sizes that can.
        """


def divisible(size: int, members: int) -> None:
    """Check that a batch can be divided equally among members.

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
