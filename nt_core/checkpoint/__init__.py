"""Checkpoints: a trained ensemble as ``config.json`` and ``model.safetensors``, the same for every backend.

Input: a spec, values, and masks by name. Output: a folder, a :class:`Checkpoint` read from one, members
extracted and joined, and the sequence of ops for an inference engine. This room imports ``graph``,
``masks``, ``files``, ``metrics``, ``structure``, ``training``, ``spec``, and the ground.
"""

from nt_core.checkpoint.directory import (
    CONFIG,
    TENSORS,
    Checkpoint,
    Values,
    expect_values,
    load_checkpoint,
    read_config,
    save_checkpoint,
)
from nt_core.checkpoint.members import Leave, Members, Verbs, join, member, train_members
from nt_core.checkpoint.record import aggregation_of, classes_of, preprocessing_of
from nt_core.checkpoint.serving import STACKED, Call, unroll

__all__ = [
    "CONFIG",
    "STACKED",
    "TENSORS",
    "Call",
    "Checkpoint",
    "Leave",
    "Members",
    "Values",
    "Verbs",
    "aggregation_of",
    "classes_of",
    "expect_values",
    "join",
    "load_checkpoint",
    "member",
    "preprocessing_of",
    "read_config",
    "save_checkpoint",
    "train_members",
    "unroll",
]
