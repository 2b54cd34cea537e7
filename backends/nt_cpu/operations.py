"""Values and operations: what a trained ensemble computes, in a few kinds that the native engine knows."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import GraphError
from nt_core.graph import ops
from nt_core.values import Shape
from nt_cpu.streams import TILE

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Extent:
    """A value of one example: channels × positions.

    Attributes:
        channels: of an image; features of a sequence or a vector.
        positions: pixels; places of a sequence; 1 for a vector.
        merged: whether the examples of a batch stand side by side in one row, as all but large images do.
    """

    channels: int
    positions: int
    merged: bool

    @staticmethod
    def of(shape: Shape) -> Extent:
        """Return a shape's extent: (C, H, W), (T, D) or (F,)."""
        match shape:
            case (features,):
                return Extent(features, 1, True)
            case (length, features):
                return Extent(features, length, True)
            case (channels, height, width):
                return Extent(channels, height * width, 2 * height * width <= TILE)
        raise GraphError(f"nt_cpu: no value of shape {shape}")


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
        words: further numbers that the native engine reads.
        table: (rows, channels) of an embedding; (channels, positions) of what is filled in.
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
    words: tuple[int, ...] = ()
    table: tuple[Floats, ...] = ()

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
