"""Every kind of topology that can be declared, and checks of requests to one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Field

from nt_core.errors import TopologyError
from nt_core.topology.at_init import PruneAtInit
from nt_core.topology.base import DeclaredTopology
from nt_core.topology.dynamic import Dynamic
from nt_core.topology.gradual import GradualPruning
from nt_core.topology.static import Dense, Static
from nt_core.values import kinds_of

AnyTopology = Annotated[Dense | Static | PruneAtInit | Dynamic | GradualPruning, Field(discriminator="kind")]
"""Any topology that a spec file can name."""

TOPOLOGIES: Final[Mapping[str, type[DeclaredTopology]]] = kinds_of(AnyTopology)
"""The same by their names."""


def expect_escapes(escapes: Mapping[int, float], topology: DeclaredTopology) -> Mapping[int, float]:
    """Return the escapes that a caller asks for, once they are known to be possible.

    Raises:
        TopologyError: the topology does not prune and grow, or a drop fraction is not above 0 and at most 1.
    """
    if escapes and not topology.grows:
        raise TopologyError(f"escapes: expected a dynamic topology, found {topology.kind}; leave them out")
    for step, fraction in escapes.items():
        if not 0 < fraction <= 1:
            raise TopologyError(
                f"escapes: expected a drop fraction above 0 and at most 1 after step {step}, found {fraction}"
            )
    return escapes


def expect_shardable(topology: DeclaredTopology) -> None:
    """Check that an update can be chosen by processes of which each holds a part of every weight.

    Raises:
        TopologyError: the topology reads more than each weight's elements.
    """
    whole = [each.kind for each in topology.criteria if each.uses_mask]
    scope = topology.competition
    if whole or scope != "layer":
        raise TopologyError(
            f"topology: weights are sharded, but {whole[0] if whole else f'scope {scope}'} reads more than "
            "one part; train with DistributedDataParallel, or choose scope layer and elementwise criteria"
        )
