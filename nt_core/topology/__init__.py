"""Topologies: the active connections, from their declaration to each update during training.

Input: a declared topology, a layout of weights, and a backend's arrays of them. Output: numbers of active
connections, initial values and masks, and swaps of connections. This room imports ``structure``,
``policies``, ``masks``, ``graph``, and the ground (``values``, ``errors``, ``random``).
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
from nt_core.topology.by_saliency import (
    expect_chosen,
    expect_prunable,
    masks_of_parts,
    saliency,
    saliency_masks,
)
from nt_core.topology.declared import (
    AnyTopology,
    Dense,
    DropFraction,
    Dynamic,
    GradualPruning,
    Semantics,
    Static,
    criteria,
    due,
    expect_escapes,
    expect_shardable,
    final_counts,
    momentum_beta,
    next_due,
    reads_gradient,
    replaces_step,
)
from nt_core.topology.exploration import Bits, pack, seen_with, unpack
from nt_core.topology.initial import draw, initial_masks, initial_values, magnitude_masks
from nt_core.topology.updates import Update, share_of, update

__all__ = [
    "ER",
    "ERK",
    "AnySaliency",
    "AnyTopology",
    "Bits",
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
    "Static",
    "Uniform",
    "UniformPlus",
    "Update",
    "allocate",
    "criteria",
    "draw",
    "due",
    "expect_chosen",
    "expect_escapes",
    "expect_prunable",
    "expect_shardable",
    "final_counts",
    "initial_masks",
    "initial_values",
    "magnitude_masks",
    "masks_of_parts",
    "momentum_beta",
    "next_due",
    "pack",
    "reads_gradient",
    "replaces_step",
    "saliency",
    "saliency_masks",
    "seen_with",
    "share_of",
    "unpack",
    "update",
]
