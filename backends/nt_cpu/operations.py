"""Values and operations of a network, in the kinds that the native engine computes."""

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
        positions: pixels; positions of a sequence; 1 for a vector.
        merged: whether the examples of a batch lie side by side in one row; true for all but large images.
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
    """One operation on named values.

    Attributes:
        kind: name of the operation in the native engine.
        inputs: names of the values that are read.
        output: name of the result.
        extent: of the output.
        shapes: of inputs and output, canonical.
        op: the op from which the operation was made.
        weight: (out, in, kh, kw) of a product.
        bias: (out,), or None.
        scale: (in,) factor of a product's input, or of an affine map; None: 1.
        shift: (in,) summand after ``scale``; None: 0.
        pre_relu: whether a product's input is clipped at 0 after scale and shift.
        relu: whether the result is clipped at 0.
        residual: name of the value that is added before ``relu``, or None.
        words: further integers for the native engine.
        table: (rows, channels) of an embedding; (channels, positions) of constants.
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
        """Names of all values that the operation reads."""
        return [*self.inputs, *([self.residual] if self.residual else [])]


@dataclass(slots=True)
class Network:
    """Operations in the order in which they run, and each member's logits.

    Attributes:
        operations: see :class:`Operation`.
        logits: name of each member's value.
    """

    operations: list[Operation] = field(default_factory=list)
    logits: list[str] = field(default_factory=list)

    def readers(self, name: str) -> list[Operation]:
        """Return the operations that read a value."""
        return [operation for operation in self.operations if name in operation.reads]

    def extents(self) -> dict[str, Extent]:
        """Return every value's extent."""
        return {operation.output: operation.extent for operation in self.operations}
