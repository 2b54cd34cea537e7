"""Topologies: the active connections, from their declaration to each update during training.

Input: a declared topology, a layout of weights, and their values and gradients. Output: whole numbers for
each weight, initial values and masks, and swaps of connections. This room imports ``graph``, ``masks``,
``structure``, ``policies``, and the ground.
"""

from nt_core.topology.allocation import (
    ER,
    ERK,
    ERKPlus,
    Explicit,
    RandomGlobal,
    Uniform,
    UniformPlus,
    allocate,
)
from nt_core.topology.at_init import AnySaliency, Grasp, PruneAtInit, Snip
from nt_core.topology.base import DeclaredTopology, SparseTopology
from nt_core.topology.by_saliency import (
    expect_chosen,
    expect_prunable,
    masks_of_parts,
    saliency,
    saliency_masks,
)
from nt_core.topology.choosing import share_of
from nt_core.topology.declared import TOPOLOGIES, AnyTopology, expect_counts, expect_escapes, expect_shardable
from nt_core.topology.dynamic import DropFraction, Dynamic, Semantics
from nt_core.topology.exploration import Bits, pack, seen_with, unpack
from nt_core.topology.gradual import GradualPruning
from nt_core.topology.initial import draw, initial_masks, initial_values, magnitude_masks
from nt_core.topology.static import Dense, Static
from nt_core.topology.updates import Update, update

__all__ = [
    "ER",
    "ERK",
    "TOPOLOGIES",
    "AnySaliency",
    "AnyTopology",
    "Bits",
    "DeclaredTopology",
    "Dense",
    "DropFraction",
    "Dynamic",
    "ERKPlus",
    "Explicit",
    "GradualPruning",
    "Grasp",
    "PruneAtInit",
    "RandomGlobal",
    "Semantics",
    "Snip",
    "SparseTopology",
    "Static",
    "Uniform",
    "UniformPlus",
    "Update",
    "allocate",
    "draw",
    "expect_chosen",
    "expect_counts",
    "expect_escapes",
    "expect_prunable",
    "expect_shardable",
    "initial_masks",
    "initial_values",
    "magnitude_masks",
    "masks_of_parts",
    "pack",
    "saliency",
    "saliency_masks",
    "seen_with",
    "share_of",
    "unpack",
    "update",
]
