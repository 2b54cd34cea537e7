"""Topologies that stay as they are when training starts: no masks, or random ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from nt_core.structure import Layout
from nt_core.topology.allocation import ERK, AnyAllocation, allocated
from nt_core.topology.base import DeclaredTopology, SparseTopology, full_counts


class Dense(DeclaredTopology):
    """No masks."""

    kind: Literal["dense"] = "dense"
    masked: ClassVar[bool] = False

    def counts(self, layout: Layout) -> Mapping[str, int]:
        return full_counts(layout)


class Static(SparseTopology):
    """Random masks, drawn once.

    Attributes:
        allocation: how the active connections are divided among weights.
    """

    kind: Literal["static"] = "static"
    divisible: ClassVar[bool] = True
    allocation: AnyAllocation = ERK()

    def counts(self, layout: Layout) -> Mapping[str, int]:
        return allocated(layout, self.allocation, self.sparsity)
