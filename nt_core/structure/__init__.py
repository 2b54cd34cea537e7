"""Structures: how the members of an ensemble share one block graph.

Input: a graph. Output: a :class:`Layout`, which is a backbone that runs once and heads that run on its
output. Every weight of the ensemble has one name, ``"backbone/stage1.1/conv1.weight"`` or
``"head2/stage3.1/conv1.weight"``, the same in every backend, in checkpoints, and in random keys. This room
imports ``graph``, ``masks``, and the ground.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nt_core.structure.base import Reduction, Structure
from nt_core.structure.batch_ensemble import BatchEnsemble
from nt_core.structure.fission import Fission
from nt_core.structure.heads import Independent, MultiHead, Single
from nt_core.structure.layout import Layout, Part, PlacedWeight, part_label, weight_name
from nt_core.structure.memory import expect_memory, machine_bytes
from nt_core.structure.mimo import MIMO

AnyStructure = Annotated[
    Single | Independent | MultiHead | BatchEnsemble | MIMO | Fission, Field(discriminator="kind")
]
"""Any structure that a spec file can name."""

__all__ = [
    "MIMO",
    "AnyStructure",
    "BatchEnsemble",
    "Fission",
    "Independent",
    "Layout",
    "MultiHead",
    "Part",
    "PlacedWeight",
    "Reduction",
    "Single",
    "Structure",
    "expect_memory",
    "machine_bytes",
    "part_label",
    "weight_name",
]
