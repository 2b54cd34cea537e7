"""Topologies: which connections are active, from what is declared to each update while training runs.

In go a declared topology, a layout of weights, and what a backend read of them; out come whole numbers for
each weight, initial values and masks, and swaps of connections. It imports ``structure``, ``policies``,
``masks``, ``graph``, and the ground.
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
