"""The table of all references; each module lists its own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from nt_core.graph.ops import Op
from nt_core.reference.attention import ATTENTION
from nt_core.reference.contract import Reference
from nt_core.reference.dense import DENSE
from nt_core.reference.elementwise import ELEMENTWISE
from nt_core.reference.images import IMAGES
from nt_core.reference.norms import NORMS
from nt_core.reference.sequences import SEQUENCES

REFERENCE: Mapping[type[Op], Reference] = MappingProxyType(
    {**DENSE, **IMAGES, **NORMS, **ELEMENTWISE, **SEQUENCES, **ATTENTION}
)
"""The reference of each op; its keys are exactly :data:`nt_core.graph.ops.OPS`."""
