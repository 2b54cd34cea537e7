"""Writer of an ONNX graph's nodes and constants, for the lowerings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper


class Writer:
    """Collector of a graph's nodes and of the constants that the nodes read.

    Attributes:
        nodes: in the order of computation.
        constants: arrays of the file.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node with one output, and return the output's name."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, array: NDArray[Any] | Sequence[int]) -> str:
        """Add a constant, float32 or int64, and return its name."""
        given = np.asarray(array)
        kind = np.float32 if given.dtype.kind == "f" else np.int64
        self.constants.append(numpy_helper.from_array(given.astype(kind, order="C"), name))
        return name
