"""What lowerings write into: nodes and constants of an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper


class Writer:
    """Collects the nodes of a graph and the constants that they read.

    Attributes:
        nodes: in the order in which they run.
        constants: arrays that the file holds.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node that gives one value, and return the value's name."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, array: NDArray[Any] | Sequence[int]) -> str:
        """Add a constant, float32 or int64, and return its name."""
        given = np.asarray(array)
        kind = np.float32 if given.dtype.kind == "f" else np.int64
        self.constants.append(numpy_helper.from_array(given.astype(kind, order="C"), name))
        return name
