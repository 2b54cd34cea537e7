"""Every kind of topology that can be declared, and checks of requests to one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Field

from nt_core.errors import TopologyError
from nt_core.structure import Layout
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


def expect_counts(topology: DeclaredTopology, layout: Layout, counts: Mapping[str, int]) -> None:
    """Check that a model has as many active connections as its topology declares.

    Where weights compete, the total is declared; otherwise, the count of each weight. While connections are
    pruned gradually, a count lies between the first and the last.

    Args:
        topology: of the model.
        layout: of the model.
        counts: number of active elements of each sparsifiable weight.

    Raises:
        TopologyError: there are more, or fewer; the message names the first weight.

    Example:
        >>> from nt_core import EnsembleSpec
        >>> import nt_models
        >>> graph = nt_models.mlp(inputs=8, hidden=(4,), classes=3)
        >>> spec = EnsembleSpec(graph=graph, topology=Static(sparsity=0.5))
        >>> expect_counts(spec.topology, spec.layout, spec.counts)
    """
    last, first = topology.final_counts(layout), topology.initial_counts(layout)
    if topology.competition != "layer":
        last, first = {"all weights": sum(last.values())}, {"all weights": sum(first.values())}
        counts = {"all weights": sum(counts.values())}
    for name, fewest in last.items():
        most = max(fewest, first[name])
        if not fewest <= counts[name] <= most:
            expected = str(fewest) if fewest == most else f"{fewest} to {most}"
            raise TopologyError(
                f"{name}: expected {expected} active connections, as the topology declares, found "
                f"{counts[name]}; an average of masks is their union, so average weights alone"
            )


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
