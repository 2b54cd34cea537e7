"""Block graphs: a network as named blocks of ops, and the builder for architectures.

In go ops and the tensors between them, out comes a checked :class:`BlockGraph` that knows every shape and
weight. This room imports the ground.
"""

from nt_core.graph.blocks import INPUT, Block, BlockGraph, Features, Image, Node, Tokens, expect_ops, owner
from nt_core.graph.builder import BlockWriter, GraphBuilder, Tensor, architecture
from nt_core.graph.weights import Role, Spread, Weight

__all__ = [
    "INPUT",
    "Block",
    "BlockGraph",
    "BlockWriter",
    "Features",
    "GraphBuilder",
    "Image",
    "Node",
    "Role",
    "Spread",
    "Tensor",
    "Tokens",
    "Weight",
    "architecture",
    "expect_ops",
    "owner",
]
