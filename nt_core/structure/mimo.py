"""MIMO, one network that reads M examples at once and predicts each."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from nt_core.errors import GraphError
from nt_core.graph import INPUT, BlockGraph, Features, Image, Node
from nt_core.graph.ops import Conv2d, Linear
from nt_core.random import Stream
from nt_core.structure.base import Reduction, Structure
from nt_core.structure.layout import Layout, Part
from nt_core.values import Count, Fraction, Members


class MIMO(Structure):
    """One network with M inputs and M outputs (Havasi et al. 2021, §2).

    M examples are stacked on the channels that the first convolutions (or linear maps) read. The last linear
    map has M × classes outputs. Losses are summed. In prediction all inputs are the same example.

    Attributes:
        count: M, the number of examples read at once.
        rho: ρ, the share of a batch's rows in which all members read the same example.
        repetitions: number of copies of each example in a batch (batch repetition).
    """

    kind: Literal["mimo"] = "mimo"
    count: Members
    rho: Fraction = 0.0
    repetitions: Annotated[Count, Field(le=64)] = 1

    @property
    def members(self) -> int:
        return self.count

    @property
    def loss_reduction(self) -> Reduction:
        return "sum"

    @property
    def training_rows(self) -> int:
        return self.repetitions

    def layout(self, graph: BlockGraph) -> Layout:
        """Widen the ops that read the input and the op that gives the output.

        Raises:
            GraphError: the input is read by another op than a convolution or a linear map, or the output is
                not given by a linear map of features.
        """
        stacked = self._stacked(graph)
        blocks = tuple(
            replace(block, nodes=tuple(self._widened(graph, block.name, node) for node in block.nodes))
            for block in graph.blocks
        )
        return Layout(
            graph=BlockGraph(input=stacked, blocks=blocks),
            backbone=Part(name="backbone", blocks=blocks),
            heads=(),
            crossing=(graph.output,),
            members=self.count,
            input_shape=graph.input.shape,
            along="channels",
            own_rows=True,
        )

    def _stacked(self, graph: BlockGraph) -> Image | Features:
        match graph.input:
            case Image() as image:
                return image.replace(channels=self.count * image.channels)
            case Features(count=features):
                return Features(count=self.count * features)
            case other:
                raise GraphError(f"structure: MIMO stacks images or features, found an input of {other.kind}")

    def _widened(self, graph: BlockGraph, block: str, node: Node) -> Node:
        op = node.op
        where = f"block {block!r}, op {node.name!r} ({op.kind})"
        if INPUT in node.inputs:
            match op:
                case Conv2d(groups=1):
                    op = op.replace(in_channels=self.count * op.in_channels)
                case Linear() if isinstance(graph.input, Features):
                    op = op.replace(in_features=self.count * op.in_features)
                case _:
                    raise GraphError(
                        f"{where}: reads the input; MIMO needs a convolution without groups there (for "
                        "features a linear map), which can read M examples at once"
                    )
        if f"{block}/{node.name}" == graph.output:
            if not isinstance(op, Linear) or len(graph.output_shape) != 1:
                raise GraphError(
                    f"{where}: gives the output; MIMO needs a linear map of features there, which can give "
                    "M × classes outputs"
                )
            op = op.replace(out_features=self.count * op.out_features)
        return replace(node, op=op)

    @property
    def row_groups(self) -> int:
        return self.count

    def network_rows(self, layout: Layout, count: int, processes: int = 1) -> int:
        """Return the rows as the base class does; processes divide the copies of an example, too."""
        return max(1, count * self.repetitions // processes)

    def member_rows(self, count: int, stream: Stream) -> NDArray[np.int64]:
        """Shuffle a batch's rows for each member, except for a share ρ that is the same for all members."""
        size = count * self.repetitions
        same = np.tile(_order(stream, 0, count), self.repetitions)
        free = size - round(self.rho * size)
        members = [
            np.concatenate([same[:free][_order(stream, count + m * size, free)], same[free:]])
            for m in range(self.count)
        ]
        return np.concatenate(members)


def _order(stream: Stream, start: int, count: int) -> NDArray[np.int64]:
    """Draw an order of ``count`` things from the stream's numbers that begin at ``start``."""
    return np.argsort(stream.bits(slice(start, start + count, 1)), kind="stable")
