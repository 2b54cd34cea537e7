"""Framework-neutral core: block graphs, masks, allocation, policies, metrics, checkpoints."""

from nt_core.allocation import ER, ERK, ERKPlus, Explicit, RandomGlobal, Uniform, UniformPlus, allocate
from nt_core.at_init import Grasp, PruneAtInit, Snip
from nt_core.builder import BlockWriter, GraphBuilder, Tensor, architecture
from nt_core.errors import (
    AllocationError,
    CheckpointError,
    DataError,
    GraphError,
    NeuroTrailsError,
    NotFiniteError,
    SpecError,
    TopologyError,
)
from nt_core.graph import Block, BlockGraph, Features, Image, Node, Tokens
from nt_core.initial import initial_masks, initial_values
from nt_core.mask import Mask
from nt_core.plan import ExploreRefine, OneRun
from nt_core.presets import PRESETS
from nt_core.random import Random
from nt_core.run_spec import RunSpec, read_spec
from nt_core.spec import EnsembleSpec, FittedAverage
from nt_core.structure import MIMO, BatchEnsemble, Fission, Independent, Layout, MultiHead, Single
from nt_core.topology import Dense, DropFraction, Dynamic, GradualPruning, Semantics, Static

__version__ = "0.1.0"

__all__ = [
    "ER",
    "ERK",
    "MIMO",
    "PRESETS",
    "AllocationError",
    "BatchEnsemble",
    "Block",
    "BlockGraph",
    "BlockWriter",
    "CheckpointError",
    "DataError",
    "Dense",
    "DropFraction",
    "Dynamic",
    "ERKPlus",
    "EnsembleSpec",
    "Explicit",
    "ExploreRefine",
    "Features",
    "Fission",
    "FittedAverage",
    "GradualPruning",
    "GraphBuilder",
    "GraphError",
    "Grasp",
    "Image",
    "Independent",
    "Layout",
    "Mask",
    "MultiHead",
    "NeuroTrailsError",
    "Node",
    "NotFiniteError",
    "OneRun",
    "PruneAtInit",
    "Random",
    "RandomGlobal",
    "RunSpec",
    "Semantics",
    "Single",
    "Snip",
    "SpecError",
    "Static",
    "Tensor",
    "Tokens",
    "TopologyError",
    "Uniform",
    "UniformPlus",
    "allocate",
    "architecture",
    "initial_masks",
    "initial_values",
    "read_spec",
]
