"""Framework-neutral core: block graphs, masks, allocation, policies, metrics, checkpoints."""

from nt_core.builder import BlockWriter, GraphBuilder, Tensor, architecture
from nt_core.errors import GraphError
from nt_core.graph import Block, BlockGraph, Features, Image, Node, Tokens
from nt_core.mask import Mask
from nt_core.structure import Independent, Layout, MultiHead, Single

__version__ = "0.1.0"

__all__ = [
    "Block",
    "BlockGraph",
    "BlockWriter",
    "Features",
    "GraphBuilder",
    "GraphError",
    "Image",
    "Node",
    "Tensor",
    "Tokens",
    "architecture",
]
