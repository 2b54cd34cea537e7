"""BatchEnsemble, whose members share every kernel and scale its inputs and outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nt_core.graph import BlockGraph, Node, Spread
from nt_core.random import Stream
from nt_core.structure.base import Structure, divisible
from nt_core.structure.layout import Layout, Part
from nt_core.values import Members


class BatchEnsemble(Structure):
    """One set of kernels, whose inputs and outputs each member scales (Wen et al. 2020, §3).

    y_m = ((x ∘ r_m)·Wᵀ) ∘ s_m + b_m, for convolutions by channel. r and s are not decayed. In training a
    batch is member-major where it is split. In prediction every member reads every example.

    Attributes:
        count: M, the number of members.
        batch: division of a training batch: ``split``, 1/M of it to each member (the paper), or ``tile``,
            all of it to each (uncertainty-baselines).
        factors: distribution of r and s: ``normal``: N(1, 0.5²); ``signs``: ±1.
        norms: normalisations: ``shared`` by all members, or one ``per_member``, with statistics of its own.
    """

    kind: Literal["batch_ensemble"] = "batch_ensemble"
    count: Members
    batch: Literal["split", "tile"] = "split"
    factors: Spread = "normal"
    norms: Literal["shared", "per_member"] = "shared"

    @property
    def members(self) -> int:
        return self.count

    @property
    def training_rows(self) -> int:
        return 1 if self.batch == "split" else self.count

    def layout(self, graph: BlockGraph) -> Layout:
        blocks = tuple(
            replace(block, nodes=tuple(self._shared(node) for node in block.nodes)) for block in graph.blocks
        )
        return Layout(
            graph=BlockGraph(input=graph.input, blocks=blocks),
            backbone=Part(name="backbone", blocks=blocks),
            heads=(),
            crossing=(graph.output,),
            members=self.count,
            input_shape=graph.input.shape,
            along="rows",
            own_rows=self.batch == "split",
        )

    def _shared(self, node: Node) -> Node:
        own_norms = self.norms == "per_member"
        return replace(node, op=node.op.for_members(self.count, self.factors, own_norms=own_norms))

    def member_rows(self, count: int, stream: Stream) -> NDArray[np.int64] | None:
        """Fill up a last, shorter batch of an epoch with its own first rows, so that it can be split."""
        if self.batch == "tile" or count % self.count == 0:
            return None
        return np.arange(count + -count % self.count, dtype=np.int64) % count

    @property
    def row_groups(self) -> int:
        return self.count if self.batch == "split" else 1

    def expect_batch_size(self, size: int) -> None:
        if self.batch == "split":
            divisible(size, self.count)
