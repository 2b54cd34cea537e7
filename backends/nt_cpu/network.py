"""What a trained ensemble computes, as a list of few kinds of operations, fused where one pass can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nt_core import ops
from nt_core.errors import GraphError
from nt_core.graph import INPUT, Tokens
from nt_core.structure import Layout, Part, weight_name
from nt_core.values import Shape

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Extent:
    """A value of one example: channels × positions.

    Attributes:
        channels: of an image; features of a vector.
        positions: pixels; 1 for a vector.
        merged: whether the examples of a batch stand side by side in one row, as vectors do.
    """

    channels: int
    positions: int
    merged: bool

    @staticmethod
    def of(shape: Shape) -> Extent:
        """Return a shape's extent: (C, H, W) or (F,)."""
        if len(shape) == 1:
            return Extent(shape[0], 1, True)
        channels, height, width = shape
        return Extent(channels, height * width, False)


@dataclass(slots=True)
class Operation:
    """One operation on values, which are named.

    Attributes:
        kind: what the native engine calls it.
        inputs: names of values.
        output: a name.
        extent: of the output.
        shapes: of its inputs and its output, canonical.
        op: the op it began as.
        weight: (out, in, kh, kw) of a product.
        bias: (out,), or None.
        scale: (in,) of what is done to a product's input first, or of an affine map; None: nothing.
        shift: as ``scale``.
        pre_relu: whether a product's input is clipped at 0 after that.
        relu: whether the result is clipped at 0.
        residual: the value added before that, or None.
    """

    kind: str
    inputs: list[str]
    output: str
    extent: Extent
    shapes: tuple[Shape, ...] = ()
    op: ops.Op | None = None
    weight: Floats | None = None
    bias: Floats | None = None
    scale: Floats | None = None
    shift: Floats | None = None
    pre_relu: bool = False
    relu: bool = False
    residual: str | None = None

    @property
    def reads(self) -> list[str]:
        """All values it reads."""
        return [*self.inputs, *([self.residual] if self.residual else [])]


@dataclass(slots=True)
class Network:
    """Operations in the order in which they run, and each member's logits.

    Attributes:
        operations: see :class:`Operation`.
        logits: the values' names.
    """

    operations: list[Operation] = field(default_factory=list)
    logits: list[str] = field(default_factory=list)

    def readers(self, name: str) -> list[Operation]:
        """Return the operations that read a value."""
        return [operation for operation in self.operations if name in operation.reads]

    def extents(self) -> dict[str, Extent]:
        """Return every value's extent."""
        return {operation.output: operation.extent for operation in self.operations}


def network(layout: Layout, values: Mapping[str, NDArray[Any]]) -> Network:
    """Return the operations of an ensemble, fused.

    Raises:
        GraphError: an op has no lowering here yet.
    """
    if len(layout.input_shape) not in {1, 3} or isinstance(layout.graph.input, Tokens):
        raise GraphError("nt_cpu: sequences have no native lowering yet")
    if layout.along != "heads":
        raise GraphError("nt_cpu: members that share every block have no native lowering yet")
    found = Network([Operation("input", [], INPUT, Extent.of(layout.input_shape))])
    shared = {INPUT: INPUT}
    if layout.backbone is not None:
        found.operations += _part(layout, layout.backbone, shared, values)
    for head in layout.heads:
        names = dict(shared)
        found.operations += _part(layout, head, names, values)
        found.logits.append(names[layout.graph.output])
    _fuse(found)
    return found


def _part(
    layout: Layout, part: Part, names: dict[str, str], values: Mapping[str, NDArray[Any]]
) -> Iterator[Operation]:
    for block in part.blocks:
        for node in block.nodes:
            own = {
                w.name: np.asarray(
                    values[weight_name(part.name, block.name, node.name, w.name)], dtype=np.float32
                )
                for w in node.op.weights()
            }
            reference = f"{block.name}/{node.name}"
            shapes = tuple(layout.graph.shapes[ref] for ref in (*node.inputs, reference))
            if type(node.op) not in LOWERINGS or not _fits(node.op, shapes):
                raise GraphError(
                    f"block {block.name!r}, op {node.name!r}: nt_cpu has no native {node.op.kind!r} of "
                    f"{', '.join(map(str, shapes[:-1]))} yet"
                )
            call = Call(node.op, [names[ref] for ref in node.inputs], shapes, own)
            operation = LOWERINGS[type(node.op)](call)
            if operation is None:
                names[reference] = names[node.inputs[0]]
                continue
            operation.output = names[reference] = f"{part.name}/{reference}"
            yield operation


def _fits(op: ops.Op, shapes: tuple[Shape, ...]) -> bool:
    """Tell whether an op works on vectors, or on the channels of images."""
    ranks = {len(shape) for shape in shapes}
    return ranks <= {1, 3} and (not isinstance(op, ops.Linear) or ranks == {1})


@dataclass(frozen=True, slots=True)
class Call:
    """An op, the names of what it reads, the shapes of that and of its result, and its arrays."""

    op: Any
    inputs: list[str]
    shapes: tuple[Shape, ...]
    own: dict[str, Floats]

    def becomes(self, kind: str, **more: Any) -> Operation:
        """Return an operation of a kind."""
        extent = Extent.of(self.shapes[-1])
        return Operation(kind, self.inputs, "", extent, shapes=self.shapes, op=self.op, **more)


Lowering = Callable[[Call], Operation | None]


def _conv(call: Call) -> Operation:
    op, weight = call.op, call.own["weight"]
    if op.groups > 1:
        each, per_group = op.in_channels // op.groups, op.out_channels // op.groups
        whole = np.zeros((op.out_channels, op.in_channels, *op.kernel), np.float32)
        for g in range(op.groups):
            rows = slice(g * per_group, (g + 1) * per_group)
            whole[rows, g * each : (g + 1) * each] = weight[rows]
        weight = whole
    return call.becomes("product", weight=weight, bias=call.own.get("bias"))


def _linear(call: Call) -> Operation:
    return call.becomes("product", weight=call.own["weight"][:, :, None, None], bias=call.own.get("bias"))


def _batch_norm(call: Call) -> Operation:
    own = {name: array.astype(np.float64) for name, array in call.own.items()}
    scale = own["weight"] / np.sqrt(own["running_var"] + call.op.eps)
    shift = own["bias"] - own["running_mean"] * scale
    return call.becomes("affine", scale=scale.astype(np.float32), shift=shift.astype(np.float32))


def _activation(call: Call) -> Operation:
    if call.op.function != "relu":
        raise GraphError(f"nt_cpu has no native {call.op.function!r} yet")
    one = np.ones(Extent.of(call.shapes[0]).channels, np.float32)
    return call.becomes("affine", scale=one, shift=0 * one, relu=True)


def _plain(kind: str) -> Lowering:
    return lambda call: call.becomes(kind)


LOWERINGS: Mapping[type[ops.Op], Lowering] = {
    ops.Conv2d: _conv,
    ops.Linear: _linear,
    ops.BatchNorm: _batch_norm,
    ops.Activation: _activation,
    ops.Add: _plain("add"),
    ops.Multiply: _plain("multiply"),
    ops.MaxPool2d: _plain("max_pool"),
    ops.AvgPool2d: _plain("average_pool"),
    ops.GlobalAvgPool: _plain("global_average"),
    ops.Flatten: _plain("flatten"),
    ops.Dropout: lambda _: None,
}


def _fuse(network: Network) -> None:
    """Let products do what stands before and behind them, as long as nobody else reads it."""
    for rule in (
        _into_product_before,
        _relu_into_affine,
        _into_products_behind,
        _residual,
        _into_product_before,
    ):
        for operation in list(network.operations):
            if operation in network.operations:
                rule(network, operation)


def _producer(network: Network, name: str) -> Operation:
    return next(each for each in network.operations if each.output == name)


def _only_reader(network: Network, name: str) -> bool:
    return name not in network.logits and len(network.readers(name)) == 1


def _replace(network: Network, gone: Operation, by: str) -> None:
    """Remove an operation; who read it reads another value."""
    network.operations.remove(gone)
    for each in network.operations:
        each.inputs = [by if name == gone.output else name for name in each.inputs]
        each.residual = by if each.residual == gone.output else each.residual
    network.logits = [by if name == gone.output else name for name in network.logits]


def _into_product_before(network: Network, affine: Operation) -> None:
    """Fold an affine map of a product's result into the product."""
    if affine.kind != "affine":
        return
    product = _producer(network, affine.inputs[0])
    if product.kind != "product" or product.relu or not _only_reader(network, product.output):
        return
    assert product.weight is not None
    assert affine.scale is not None
    assert affine.shift is not None
    if product.residual is None:
        product.weight = product.weight * affine.scale[:, None, None, None]
        bias = 0 if product.bias is None else product.bias * affine.scale
        product.bias = np.asarray(bias + affine.shift, np.float32)
    elif (affine.scale != 1).any() or affine.shift.any():
        return
    product.relu = affine.relu
    _replace(network, affine, product.output)


def _relu_into_affine(network: Network, relu: Operation) -> None:
    """Let an affine map clip."""
    if relu.kind != "affine" or not relu.relu:
        return
    affine = _producer(network, relu.inputs[0])
    plain = (
        relu.scale is not None and (relu.scale == 1).all() and relu.shift is not None and not relu.shift.any()
    )
    if affine.kind == "affine" and plain and not affine.relu and _only_reader(network, affine.output):
        affine.relu = True
        _replace(network, relu, affine.output)


def _into_products_behind(network: Network, affine: Operation) -> None:
    """Let products do an affine map to their input, if none but products read it."""
    if affine.kind != "affine" or affine.output in network.logits:
        return
    readers = network.readers(affine.output)
    fit = [
        each.kind == "product" and each.scale is None and each.residual != affine.output for each in readers
    ]
    if not all(fit):
        return
    for product in readers:
        product.scale, product.shift, product.pre_relu = affine.scale, affine.shift, affine.relu
    _replace(network, affine, affine.inputs[0])


def _residual(network: Network, add: Operation) -> None:
    """Let the last of two added values' product add the other."""
    if add.kind != "add" or len(add.inputs) != 2:
        return
    order = [each.output for each in network.operations]
    first, last = sorted(add.inputs, key=order.index)
    product = _producer(network, last)
    fits = product.kind == "product" and not product.relu and product.residual is None
    if fits and first != last and _only_reader(network, last):
        product.residual = first
        _replace(network, add, last)
