"""Layouts: a graph spread over a backbone and heads, and where each weight of an ensemble stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from nt_core.graph import INPUT, Block, BlockGraph, Node, Weight, expect_ops, owner
from nt_core.values import Shape

Along = Literal["heads", "rows", "channels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The backbone, or one head: some blocks in the order in which they run."""

    name: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedWeight:
    """One array of the ensemble and where it stands.

    Attributes:
        name: ``"part/block/op.weight"``.
        part: ``"backbone"`` or ``"head1"``, ``"head2"``, ….
        block: the block it stands in.
        node: the op that owns it.
        weight: its shape, role and initial distribution.
        positions: how often each of its elements is used for one example (kernels only).
    """

    name: str
    part: str
    block: Block
    node: Node
    weight: Weight
    positions: int

    @property
    def label(self) -> str:
        """The part as people write it: ``"head 1"``."""
        return part_label(self.part)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A graph spread over a backbone and heads.

    Attributes:
        graph: what the parts compute; of members that share every block, the graph that holds them all.
        backbone: the part that all heads share; None where they share nothing.
        heads: one part for each member; none where members share every block.
        crossing: the references that heads read from the backbone or from the input.
        members: M.
        input_shape: of one example.
        along: where members lie: each is a head; or they share every block, and each has its own ``rows`` of
            a member-major batch, or its own ``channels`` of input and output.
        own_rows: whether a batch that is trained on is member-major: its first 1/M belongs to member 1, …;
            elsewhere all members see every row.
        divided: whether weights of one name in several parts are pieces of one weight of the graph.
        whole: the layout of which this has only some heads, and by which connections are allocated.
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
        """How many rows one example is when all members predict it."""
        return self.members if self.along == "rows" else 1

    @property
    def parts(self) -> tuple[Part, ...]:
        """Backbone, if any, and heads."""
        return (*([self.backbone] if self.backbone else []), *self.heads)

    @cached_property
    def weights(self) -> tuple[PlacedWeight, ...]:
        """Every array of the ensemble, in the order in which it is used."""
        return tuple(self._place())

    @cached_property
    def sparsifiable(self) -> tuple[PlacedWeight, ...]:
        """The arrays on which a mask may lie."""
        return tuple(placed for placed in self.weights if placed.weight.sparsifiable)

    def source(self, name: str) -> str:
        """Return the weight of the single network that a weight is a piece of; else its own name.

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
    """Return a part's name as people write it.

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
    """Return the references that heads of these blocks read from elsewhere."""
    refs: dict[str, None] = {}
    for blocks in heads:
        own = {block.name for block in blocks}
        refs |= {ref: None for block in blocks for ref in block.reads() if owner(ref) not in own}
    return tuple(refs) or (INPUT,)
