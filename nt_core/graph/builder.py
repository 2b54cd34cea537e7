"""Builder of architectures: a function writes ops on symbolic tensors, which know their shape."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, ParamSpec

from pydantic import ValidationError, validate_call

from nt_core.errors import GraphError, SpecError, nearest
from nt_core.graph import ops
from nt_core.graph.blocks import (
    INPUT,
    Block,
    BlockGraph,
    BlockKind,
    Features,
    Image,
    Node,
    Tokens,
    expect_ops,
    infer_shape,
)
from nt_core.graph.weights import Init
from nt_core.values import Shape, Value, explain

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Tensor:
    """Symbolic output of an op: its reference and the shape of one example."""

    reference: str
    shape: Shape


class BlockWriter:
    """Writer of one block, whose methods take tensors, add a node and return its tensor.

    Attributes:
        inp: output of the block before (the network's input in the first block).
        out: output of this block, to be set before the block ends.
    """

    def __init__(self, name: str, inp: Tensor) -> None:
        self.name = name
        self.inp = inp
        self.out: Tensor | None = None
        self._nodes: list[Node] = []

    def add_op(self, make: Callable[[], ops.Op], *inputs: Tensor, name: str | None = None) -> Tensor:
        """Add any op.

        Args:
            make: makes the op; called in this method, so that a wrong argument is reported with its place.
            inputs: tensors that the op reads.
            name: of the op in the block; None: its kind and a running number.

        Raises:
            GraphError: an argument or a shape does not fit; the message names block, op, expectation and
                finding.
        """
        where = f"block {self.name!r}, op {name or ''!r}" if name else f"block {self.name!r}"
        try:
            op = make()
        except SpecError as error:
            raise GraphError(f"{where}: {error}") from None
        name = name or self._next_name(op.kind)
        shape = infer_shape(op, [t.shape for t in inputs], f"block {self.name!r}, op {name!r} ({op.kind})")
        self._nodes.append(Node(name=name, op=op, inputs=tuple(t.reference for t in inputs)))  # type: ignore[arg-type]
        return Tensor(f"{self.name}/{name}", shape)

    def conv(
        self,
        x: Tensor,
        channels: int,
        *,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        pad: int | tuple[int, int] | ops.Padding = 0,
        groups: int = 1,
        bias: bool = False,
        name: str | None = None,
    ) -> Tensor:
        """Convolve an image. (C, H, W) → (channels, H', W')."""
        return self.add_op(
            lambda: ops.Conv2d(
                in_channels=x.shape[0],
                out_channels=channels,
                kernel=_pair(kernel),
                stride=_pair(stride),
                padding=_padding(pad),
                groups=groups,
                bias=bias,
            ),
            x,
            name=name or self._next_name("conv"),
        )

    def linear(
        self,
        x: Tensor,
        features: int,
        *,
        bias: bool = True,
        init: Init = "lecun_uniform",
        name: str | None = None,
    ) -> Tensor:
        """Map the last axis of features or a sequence. (…, D) → (…, features)."""
        return self.add_op(
            lambda: ops.Linear(in_features=x.shape[-1], out_features=features, bias=bias, init=init),
            x,
            name=name,
        )

    def embedding(self, x: Tensor, vocabulary: int, features: int) -> Tensor:
        """Look tokens up. (T,) → (T, features)."""
        return self.add_op(lambda: ops.Embedding(vocabulary=vocabulary, features=features), x)

    def class_token(self, x: Tensor) -> Tensor:
        """Prepend one learned vector to a sequence. (T, D) → (T + 1, D)."""
        return self.add_op(lambda: ops.ClassToken(features=x.shape[-1]), x)

    def positions(self, x: Tensor) -> Tensor:
        """Add a learned vector at each position. (T, D) → (T, D)."""
        return self.add_op(lambda: ops.Positions(length=x.shape[0], features=x.shape[-1]), x)

    def norm(self, x: Tensor, *, eps: float = 1e-5, momentum: float = 0.1) -> Tensor:
        """Normalise the channels over the batch. (C, …) → (C, …)."""
        return self.add_op(
            lambda: ops.BatchNorm(channels=x.shape[0], eps=eps, momentum=momentum),
            x,
            name=self._next_name("norm"),
        )

    def layer_norm(self, x: Tensor, *, eps: float = 1e-5) -> Tensor:
        """Normalise the last axis of features or a sequence."""
        return self.add_op(lambda: ops.LayerNorm(features=x.shape[-1], eps=eps), x)

    def rms_norm(self, x: Tensor, *, eps: float = 1e-6) -> Tensor:
        """Divide the last axis of features or a sequence by its root mean square."""
        return self.add_op(lambda: ops.RMSNorm(features=x.shape[-1], eps=eps), x)

    def activation(self, x: Tensor, function: Literal["relu", "gelu", "silu", "tanh", "sigmoid"]) -> Tensor:
        """Apply an elementwise function."""
        return self.add_op(lambda: ops.Activation(function=function), x, name=self._next_name(function))

    def relu(self, x: Tensor) -> Tensor:
        """Apply max(x, 0)."""
        return self.activation(x, "relu")

    def max_pool(
        self, x: Tensor, *, kernel: int, stride: int | None = None, pad: int | ops.Padding = 0
    ) -> Tensor:
        """Take the largest value of each window; stride = kernel unless given."""
        return self.add_op(
            lambda: ops.MaxPool2d(
                kernel=_pair(kernel), stride=_pair(stride or kernel), padding=_padding(pad)
            ),
            x,
        )

    def avg_pool(self, x: Tensor, *, kernel: int, stride: int | None = None) -> Tensor:
        """Take the mean of each window; stride = kernel unless given."""
        return self.add_op(lambda: ops.AvgPool2d(kernel=_pair(kernel), stride=_pair(stride or kernel)), x)

    def global_avg_pool(self, x: Tensor) -> Tensor:
        """Take the mean over all positions. (C, H, W) → (C,), or (T, D) → (D,)."""
        return self.add_op(ops.GlobalAvgPool, x)

    def flatten(self, x: Tensor) -> Tensor:
        """Put all axes into one, in C order."""
        return self.add_op(ops.Flatten, x)

    def to_sequence(self, x: Tensor) -> Tensor:
        """Read an image's pixels row by row. (C, H, W) → (H·W, C)."""
        return self.add_op(ops.ToSequence, x)

    def transpose(self, x: Tensor) -> Tensor:
        """Swap length and features. (T, D) → (D, T)."""
        return self.add_op(ops.Transpose, x)

    def take_token(self, x: Tensor, index: int = 0) -> Tensor:
        """Take the vector at one position. (T, D) → (D,)."""
        return self.add_op(lambda: ops.TakeToken(index=index), x)

    def dropout(self, x: Tensor, rate: float) -> Tensor:
        """Zero a share of the values in training; no op is added where the rate is 0."""
        return self.add_op(lambda: ops.Dropout(rate=rate), x) if rate else x

    def add(self, *xs: Tensor) -> Tensor:
        """Sum tensors of one shape."""
        return self.add_op(ops.Add, *xs)

    def multiply(self, *xs: Tensor) -> Tensor:
        """Multiply tensors of one shape elementwise."""
        return self.add_op(ops.Multiply, *xs)

    def concat(self, *xs: Tensor, axis: int = 0) -> Tensor:
        """Join tensors along an axis of the example's shape."""
        return self.add_op(lambda: ops.Concat(axis=axis), *xs)

    def attention(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        heads: int,
        kv_heads: int | None = None,
        causal: bool = False,
        rotary_base: float | None = None,
        rotary_scaling: ops.AnyRotaryScaling | None = None,
    ) -> Tensor:
        """Attend by scaled dot products of projected queries, keys and values, each (T, features)."""
        return self.add_op(
            lambda: ops.Attention(
                heads=heads,
                kv_heads=kv_heads or heads,
                causal=causal,
                rotary_base=rotary_base,
                rotary_scaling=rotary_scaling,
            ),
            queries,
            keys,
            values,
        )

    def finish(self, kind: BlockKind) -> Block:
        """Return the block as an immutable value.

        Raises:
            GraphError: ``out`` was not set.
        """
        if self.out is None:
            raise GraphError(f"block {self.name!r}: its output was not set; end it with b.out = …")
        return Block(name=self.name, kind=kind, nodes=tuple(self._nodes), output=self.out.reference)

    def _next_name(self, kind: str) -> str:
        taken = {node.name for node in self._nodes}
        return next(name for i in range(1, len(taken) + 2) if (name := f"{kind}{i}") not in taken)


class GraphBuilder:
    """Builder of a graph; each block is written in a ``with`` and reads the output of the block before.

    Example:
        >>> from nt_core import Features, GraphBuilder
        >>> net = GraphBuilder(Features(count=8))
        >>> with net.block("hidden") as b:
        ...     b.out = b.relu(b.linear(b.inp, 4))
        >>> with net.classifier("classifier") as b:
        ...     b.out = b.linear(b.inp, 3)
        >>> net.build().output_shape
        (3,)
    """

    def __init__(self, input: Image | Features | Tokens) -> None:  # noqa: A002
        self._input = input
        self._blocks: list[Block] = []
        self._count = 0
        self.last = Tensor(INPUT, input.shape)

    @contextmanager
    def block(self, name: str, *, kind: BlockKind = "counted") -> Iterator[BlockWriter]:
        """Write a block that counts towards depth."""
        writer = BlockWriter(name, self.last)
        yield writer
        self._blocks.append(writer.finish(kind))
        self._count += len(self._blocks[-1].nodes)
        expect_ops(self._count, "graph")
        assert writer.out is not None
        self.last = writer.out

    def stem(self, name: str = "stem") -> Any:
        """Write a block before the first counted one; it always belongs to the backbone."""
        return self.block(name, kind="stem")

    def classifier(self, name: str = "classifier") -> Any:
        """Write the last block; it always belongs to the head."""
        return self.block(name, kind="classifier")

    def build(self) -> BlockGraph:
        """Check everything and return the immutable graph."""
        return BlockGraph(input=self._input, blocks=tuple(self._blocks))


def architecture(make: Callable[P, BlockGraph]) -> Callable[P, BlockGraph]:
    """Decorate a function that makes a block graph, so that the graph records its name and arguments.

    Arguments are checked against the annotations. Arguments should be keyword-only, because only keywords are
    recorded.

    Raises:
        SpecError: from the decorated function, for an unknown argument (the message names the nearest) or a
            wrong one.

    Example:
        >>> import nt_models
        >>> nt_models.mlp(inputs=4, hidden=(3,), classes=2).origin
        {'name': 'mlp', 'inputs': 4, 'hidden': [3], 'classes': 2}
    """
    known = list(inspect.signature(make).parameters)
    checked = validate_call(make)

    @wraps(make)
    def build(*args: P.args, **kwargs: P.kwargs) -> BlockGraph:
        for key in kwargs:
            if key not in known:
                raise SpecError(f"graph.{key}: unknown argument of {make.__name__}{nearest(key, known)}")
        try:
            graph = checked(*args, **kwargs)
        except ValidationError as error:
            raise explain(error, "graph") from None
        if not isinstance(graph, BlockGraph):
            raise SpecError(
                f"{make.__name__}: expected a function that returns a BlockGraph, found {graph!r:.80}"
            )
        plain = {key: _plain(value) for key, value in kwargs.items()}
        return graph.with_origin({"name": make.__name__, **plain})

    build.is_architecture = True  # type: ignore[attr-defined]
    return build


def _plain(value: Any) -> Any:
    """Return an argument as JSON has it."""
    if isinstance(value, Value):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _padding(value: int | tuple[int, int] | ops.Padding) -> ops.Padding:
    if isinstance(value, int):
        return ((value, value), (value, value))
    rows, columns = value
    if isinstance(rows, int) and isinstance(columns, int):
        return ((rows, rows), (columns, columns))
    return value  # type: ignore[return-value]
