"""Layouts: a graph spread over a backbone and heads, with the place of each weight of an ensemble."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from nt_core.graph import INPUT, Block, BlockGraph, Node, Weight, expect_ops, owner
from nt_core.graph.ops import BatchNorm
from nt_core.values import Shape

Along = Literal["heads", "rows", "channels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The backbone or one head: blocks in the order of computation."""

    name: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedWeight:
    """One array of the ensemble and its place.

    Attributes:
        name: ``"part/block/op.weight"``.
        part: ``"backbone"`` or ``"head1"``, ``"head2"``, ….
        block: the block of the op.
        node: the op that owns the array.
        weight: shape, role and initial distribution.
        positions: number of uses of each element for one example (kernels only).
    """

    name: str
    part: str
    block: Block
    node: Node
    weight: Weight
    positions: int

    @property
    def label(self) -> str:
        """The part's name for people: ``"head 1"``."""
        return part_label(self.part)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A graph spread over a backbone and heads.

    Attributes:
        graph: the graph that the parts compute; of members that share every block, the graph of all members.
        backbone: the part that all heads share; None where heads share nothing.
        heads: one part for each member; none where members share every block.
        crossing: the references that heads read from the backbone or from the input.
        members: M.
        input_shape: of one example.
        along: dimension of the members: ``heads``; or members share every block, and each has its own
            ``rows`` of a member-major batch, or its own ``channels`` of input and output.
        own_rows: whether a training batch is member-major: its first 1/M belongs to member 1, …; else all
            members read every row.
        divided: whether weights of one name in several parts are pieces of one weight of the graph.
        whole: the whole layout, of which this layout has only some heads, and by which connections are
            allocated.
    """

    graph: BlockGraph
    backbone: Part | None
    heads: tuple[Part, ...]
    crossing: tuple[str, ...]
    members: int
    input_shape: Shape
    along: Along = "heads"
    own_rows: bool = False
    divided: bool = False
    whole: Layout | None = None

    @property
    def rows(self) -> int:
        """Number of rows that one example takes when all members predict it."""
        return self.members if self.along == "rows" else 1

    @property
    def parts(self) -> tuple[Part, ...]:
        """Backbone, if any, and heads."""
        return (*([self.backbone] if self.backbone else []), *self.heads)

    @cached_property
    def weights(self) -> tuple[PlacedWeight, ...]:
        """Every array of the ensemble, in the order of use."""
        return tuple(self._place())

    @cached_property
    def sparsifiable(self) -> tuple[PlacedWeight, ...]:
        """The arrays that may have a mask."""
        return tuple(placed for placed in self.weights if placed.weight.sparsifiable)

    @cached_property
    def least_rows(self) -> int:
        """Smallest number of the network's rows that it can be trained on.

        Batch normalisation needs two values of each channel, of each member that has its own. One row of
        features has one; one row of images has as many as pixels.
        """
        least = 1
        for block in self.graph.blocks:
            for node in block.nodes:
                if isinstance(node.op, BatchNorm):
                    positions = math.prod(self.graph.shapes[node.inputs[0]][1:])
                    least = max(least, (1 if positions > 1 else 2) * (node.op.members or 1))
        return least

    def source(self, name: str) -> str:
        """Return the name of the single network's weight of which a weight is a piece; else its own name.

        Example:
            >>> import nt_models
            >>> from nt_core import Fission
            >>> graph = nt_models.mlp(inputs=4, hidden=(8, 8), classes=2)
            >>> Fission(count=2).layout(graph).source("head2/hidden2/linear1.weight")
            'head1/hidden2/linear1.weight'
        """
        return f"head1/{name.partition('/')[2]}" if self.divided else name

    def _place(self) -> Iterator[PlacedWeight]:
        for part in self.parts:
            for block in part.blocks:
                for node in block.nodes:
                    positions = node.op.positions(*[self.graph.shapes[ref] for ref in node.inputs])
                    for weight in node.op.weights():
                        yield PlacedWeight(
                            name=weight_name(part.name, block.name, node.name, weight.name),
                            part=part.name,
                            block=block,
                            node=node,
                            weight=weight,
                            positions=positions,
                        )


def weight_name(part: str, block: str, node: str, weight: str) -> str:
    """Return the name of one array of an ensemble.

    Example:
        >>> weight_name("head2", "stage3.1", "conv1", "weight")
        'head2/stage3.1/conv1.weight'
    """
    return f"{part}/{block}/{node}.{weight}"


def part_label(part: str) -> str:
    """Return a part's name for people.

    Example:
        >>> part_label("head12"), part_label("backbone")
        ('head 12', 'backbone')
    """
    return part if part == "backbone" else f"head {part.removeprefix('head')}"


def spread(graph: BlockGraph, *, shared: int, members: int) -> Layout:
    """Put the first ``shared`` blocks into the backbone and the others into each head.

    Raises:
        GraphError: members have more ops than can be laid out.
    """
    below, above = graph.blocks[:shared], graph.blocks[shared:]
    expect_ops(members * sum(len(block.nodes) for block in above), f"structure: {members} members")
    return Layout(
        graph=graph,
        backbone=Part(name="backbone", blocks=below) if below else None,
        heads=tuple(Part(name=f"head{m}", blocks=above) for m in range(1, members + 1)),
        crossing=crossing((above,)),
        members=members,
        input_shape=graph.input.shape,
    )


def crossing(heads: Iterable[tuple[Block, ...]]) -> tuple[str, ...]:
    """Return the references that heads of these blocks read from outside."""
    refs: dict[str, None] = {}
    for blocks in heads:
        own = {block.name for block in blocks}
        refs |= {ref: None for block in blocks for ref in block.reads() if owner(ref) not in own}
    return tuple(refs) or (INPUT,)
