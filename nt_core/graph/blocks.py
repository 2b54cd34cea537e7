"""Block graphs: a network as a graph of named blocks, each a small graph of ops.

A block is the unit in which papers count depth. Stem blocks come first and always belong to the backbone. The
classifier comes last and always belongs to the head. Neither is counted. Architectures are written with
:class:`nt_core.graph.GraphBuilder`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Final, Literal, Self

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from nt_core.errors import DataError, GraphError, nearest
from nt_core.graph.ops import AnyOp, Embedding, Op
from nt_core.values import Count, Shape, Value, explain

MOST_OPS: Final = 1 << 17
"""Most ops of a graph, and of all members of an ensemble together: 100 LLaMAs of 80 blocks."""

INPUT = "input"
"""The reference by which nodes name the network's input."""


class Image(Value):
    """An input of images. Example shape (channels, height, width)."""

    kind: Literal["image"] = "image"
    channels: Count
    height: Count
    width: Count

    @property
    def shape(self) -> Shape:
        """The shape of one example."""
        return self.channels, self.height, self.width


class Features(Value):
    """An input of feature vectors. Example shape (count,)."""

    kind: Literal["features"] = "features"
    count: Count

    @property
    def shape(self) -> Shape:
        """The shape of one example."""
        return (self.count,)


class Tokens(Value):
    """An input of token numbers below ``vocabulary``. Example shape (length,)."""

    kind: Literal["tokens"] = "tokens"
    length: Count
    vocabulary: Count

    @property
    def shape(self) -> Shape:
        """The shape of one example."""
        return (self.length,)

    def whole(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Return token numbers as integers, after a check that they are tokens of the vocabulary.

        Raises:
            DataError: a number is not whole (NaN, say), or outside the vocabulary.

        Example:
            >>> tokens = Tokens(length=2, vocabulary=256)
            >>> tokens.whole(np.array([[3.0, 7.0]]))
            array([[3, 7]])
            >>> tokens.whole(np.array([[3.0, 7.5]]))  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            nt_core.errors.DataError: input: expected tokens, whole numbers from 0 to 255, found 7.5; ...
        """
        if inputs.dtype.kind == "f":
            wrong = inputs[(inputs != np.round(inputs)) | (np.abs(inputs) >= 2**62)]
            if wrong.size:
                raise self._no_tokens(str(wrong.flat[0]))
            inputs = inputs.astype(np.int64)
        if inputs.dtype.kind not in "iu":
            raise self._no_tokens(str(inputs.dtype))
        if inputs.size:
            self.expect_tokens(int(inputs.min()), int(inputs.max()))
        return inputs

    def expect_whole(self, dtype: str) -> None:
        """Check the type of token numbers whose values are on a device or not yet known.

        Raises:
            DataError: the type is one of floats, of which frameworks would drop what follows the point.
        """
        if "int" not in dtype:
            raise self._no_tokens(dtype)

    def _no_tokens(self, found: str) -> DataError:
        return DataError(
            f"input: expected tokens, whole numbers from 0 to {self.vocabulary - 1}, found {found}; encode "
            "the text by the tokenizer that the model was trained with"
        )

    def expect_tokens(self, lowest: int, highest: int) -> None:
        """Check the lowest and highest token number of a batch, because frameworks do not, or not on a GPU.

        Raises:
            DataError: a number is outside the vocabulary.

        Example:
            >>> Tokens(length=4, vocabulary=256).expect_tokens(0, 256)  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            nt_core.errors.DataError: input: expected tokens from 0 to 255, found 0 to 256; ...
        """
        if lowest < 0 or highest >= self.vocabulary:
            raise DataError(
                f"input: expected tokens from 0 to {self.vocabulary - 1}, found {lowest} to {highest}; "
                "use the tokenizer that the model was trained with"
            )


AnyInput = Annotated[Image | Features | Tokens, Field(discriminator="kind")]
BlockKind = Literal["stem", "counted", "classifier"]
_NO_OTHER_KEYS = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One op in a block.

    Attributes:
        name: unique in its block, ``"conv1"`` say.
        op: the operation.
        inputs: references of the values that the op reads: ``"input"`` or ``"block/node"``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _NO_OTHER_KEYS
    name: str
    op: AnyOp
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Nodes in the order of computation, and the reference of the block's output."""

    __pydantic_config__: ClassVar[ConfigDict] = _NO_OTHER_KEYS
    name: str
    kind: BlockKind
    nodes: tuple[Node, ...]
    output: str

    def reads(self) -> tuple[str, ...]:
        """Return the references that cross into this block, each once, in order."""
        used = [ref for node in self.nodes for ref in node.inputs] + [self.output]
        return tuple(dict.fromkeys(ref for ref in used if owner(ref) != self.name))


def owner(reference: str) -> str:
    """Return the name of a reference's block, ``"input"`` for the network's input."""
    return reference.rpartition("/")[0] or INPUT


@dataclass(frozen=True, kw_only=True)
class BlockGraph:
    """A checked, immutable network.

    Attributes:
        input: kind and shape of one example.
        blocks: in the order of computation: stems, counted blocks, classifier.
        origin: name and arguments of the architecture, if a named function made the graph. The origin keeps
            spec files short and does not affect the computation.

    Raises:
        GraphError: blocks form a cycle, a block cannot be reached or leads nowhere, a shape does not fit,
            a name is doubled or unknown, stems or classifier are out of place. The message names block
            and op.

    Example:
        >>> import nt_models
        >>> graph = nt_models.mlp(inputs=64, hidden=(32, 16), classes=10)
        >>> graph.counted, graph.output_shape
        (('hidden1', 'hidden2'), (10,))
    """

    __pydantic_config__: ClassVar[ConfigDict] = _NO_OTHER_KEYS
    input: AnyInput
    blocks: tuple[Block, ...]
    origin: Mapping[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        expect_ops(sum(len(block.nodes) for block in self.blocks), "graph")
        _check_names(self.blocks)
        _check_kinds(self.blocks)
        _check_references(self.blocks)
        _check_tokens(self.input, self.blocks)
        _check_idle_ops(self.blocks)
        _check_edges(self.graph)
        _check_order(self.blocks, self.graph)
        _ = self.shapes

    @cached_property
    def graph(self) -> nx.DiGraph:
        """The blocks as a frozen networkx graph; an edge carries the references that cross it."""
        net: nx.DiGraph = nx.DiGraph()
        net.add_node(INPUT)
        for block in self.blocks:
            net.add_node(block.name, kind=block.kind)
        for block in self.blocks:
            for ref in block.reads():
                crossing = (
                    net.edges[owner(ref), block.name]["references"]
                    if net.has_edge(owner(ref), block.name)
                    else ()
                )
                net.add_edge(owner(ref), block.name, references=(*crossing, ref))
        return nx.freeze(net)

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """The shape of one example at each reference."""
        shapes: dict[str, Shape] = {INPUT: self.input.shape}
        for block, node in self.nodes():
            where = f"block {block.name!r}, op {node.name!r} ({node.op.kind})"
            missing = [ref for ref in node.inputs if ref not in shapes]
            if missing:
                raise GraphError(f"{where}: reads {missing[0]!r} before it is computed; put that op earlier")
            shapes[f"{block.name}/{node.name}"] = infer_shape(
                node.op, [shapes[r] for r in node.inputs], where
            )
        return shapes

    @property
    def counted(self) -> tuple[str, ...]:
        """The names of the blocks that papers count, in order."""
        return tuple(block.name for block in self.blocks if block.kind == "counted")

    @property
    def output(self) -> str:
        """The reference of the network's output."""
        return self.blocks[-1].output

    @property
    def output_shape(self) -> Shape:
        """The shape of the output for one example: (classes,) or (length, vocabulary)."""
        return self.shapes[self.output]

    def nodes(self) -> Iterator[tuple[Block, Node]]:
        """Yield all ops in the order of computation."""
        return ((block, node) for block in self.blocks for node in block.nodes)

    def with_origin(self, origin: Mapping[str, Any]) -> Self:
        """Return the same graph with the name and arguments of its architecture as origin."""
        return replace(self, origin=dict(origin))

    def to_dict(self) -> dict[str, Any]:
        """Return the graph, op by op, as values that JSON can hold."""
        return GRAPH_FILE.dump_python(self, mode="json")  # type: ignore[no-any-return]

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> BlockGraph:
        """Make a graph from the output of :meth:`to_dict`.

        Raises:
            GraphError: the data is no graph, or an invalid one.
        """
        try:
            return GRAPH_FILE.validate_python(data, strict=False)
        except ValidationError as error:
            raise GraphError(str(explain(error, "graph"))) from None


GRAPH_FILE: TypeAdapter[BlockGraph] = TypeAdapter(BlockGraph)
"""Adapter that reads a graph from JSON and writes it to JSON."""


def expect_ops(count: int, where: str) -> None:
    """Check that the number of ops can be laid out in a minute or so.

    Raises:
        GraphError: there are more than :data:`MOST_OPS` ops; the message names ``where``.
    """
    if count > MOST_OPS:
        raise GraphError(
            f"{where}: expected at most {MOST_OPS} ops, found {count} or more; lower the depth, or the "
            "number of members"
        )


def infer_shape(op: Op, inputs: list[Shape], where: str) -> Shape:
    """Return an op's output shape, or raise a GraphError that names the op's place."""
    arity = op.arity
    if len(inputs) != arity if arity is not None else len(inputs) < 2:
        raise GraphError(f"{where}: expected {arity or 'two or more'} inputs, found {len(inputs)}")
    try:
        return op.output_shape(*inputs)
    except GraphError as error:
        raise GraphError(f"{where}: {error}") from None


def _check_names(blocks: tuple[Block, ...]) -> None:
    if not blocks:
        raise GraphError("graph: expected at least a classifier block, found no blocks")
    seen: set[str] = set()
    for block in blocks:
        _check_name(block.name, seen, "block")
        inside: set[str] = set()
        for node in block.nodes:
            _check_name(node.name, inside, f"block {block.name!r}: op")


def _check_name(name: str, seen: set[str], what: str) -> None:
    if not name or "/" in name or name == INPUT:
        raise GraphError(f"{what} {name!r}: expected a name without '/' that is not {INPUT!r}; rename it")
    if name in seen:
        raise GraphError(f"{what} {name!r}: the name is taken; give each its own")
    seen.add(name)


def _check_references(blocks: tuple[Block, ...]) -> None:
    known = dict.fromkeys([INPUT, *(f"{block.name}/{node.name}" for block in blocks for node in block.nodes)])
    for block in blocks:
        for node in block.nodes:
            for ref in node.inputs:
                if ref not in known:
                    where = f"block {block.name!r}, op {node.name!r} ({node.op.kind})"
                    raise GraphError(f"{where}: reads {ref!r}, which nothing computes{nearest(ref, known)}")
        if block.output not in known:
            raise GraphError(
                f"block {block.name!r}: gives on {block.output!r}, which nothing computes"
                f"{nearest(block.output, known)}"
            )


def _check_tokens(given: Image | Features | Tokens, blocks: tuple[Block, ...]) -> None:
    """Check that embeddings read token numbers, and that no other op does."""
    for block in blocks:
        for node in block.nodes:
            where = f"block {block.name!r}, op {node.name!r} ({node.op.kind})"
            reads_tokens = isinstance(given, Tokens) and INPUT in node.inputs
            if isinstance(node.op, Embedding):
                if not isinstance(given, Tokens) or node.inputs != (INPUT,):
                    raise GraphError(f"{where}: expected token numbers, found floats; read the Tokens input")
                if node.op.vocabulary < given.vocabulary:
                    raise GraphError(
                        f"{where}: expected a vocabulary of at least {given.vocabulary} as the input has, "
                        f"found {node.op.vocabulary}"
                    )
            elif reads_tokens:
                raise GraphError(f"{where}: expected floats, found token numbers; put an embedding between")


def _check_idle_ops(blocks: tuple[Block, ...]) -> None:
    read = {block.output for block in blocks}
    read |= {ref for block in blocks for node in block.nodes for ref in node.inputs}
    for block in blocks:
        for node in block.nodes:
            if f"{block.name}/{node.name}" not in read:
                raise GraphError(
                    f"block {block.name!r}, op {node.name!r} ({node.op.kind}): nothing reads what it gives; "
                    "use or delete it"
                )


def _check_edges(graph: nx.DiGraph) -> None:
    if not nx.is_directed_acyclic_graph(graph):
        cycle = [edge[0] for edge in nx.find_cycle(graph)]
        raise GraphError(f"blocks form a cycle: {' → '.join([*cycle, cycle[0]])}; remove one of these edges")
    *_, last = graph.nodes
    unreachable = set(graph) - nx.descendants(graph, INPUT) - {INPUT}
    idle = set(graph) - nx.ancestors(graph, last) - {last}
    for name in graph:
        if name in unreachable:
            raise GraphError(f"block {name!r} cannot be reached from the input; connect or delete it")
        if name in idle:
            raise GraphError(f"{name!r} does not lead to the classifier {last!r}; connect or delete it")


def _check_kinds(blocks: tuple[Block, ...]) -> None:
    order = {"stem": 0, "counted": 1, "classifier": 2}
    kinds = [order[block.kind] for block in blocks]
    if kinds != sorted(kinds) or kinds.count(2) != 1:
        found = ", ".join(f"{block.name} ({block.kind})" for block in blocks)
        raise GraphError(f"graph: expected stems, then counted blocks, then one classifier; found {found}")


def _check_order(blocks: tuple[Block, ...], graph: nx.DiGraph) -> None:
    position = {INPUT: -1} | {block.name: i for i, block in enumerate(blocks)}
    for reader in blocks:
        for source in graph.predecessors(reader.name):
            if position[source] > position[reader.name]:
                raise GraphError(f"block {reader.name!r} reads {source!r}, which runs later; list it after")
