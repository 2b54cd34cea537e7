"""Two kinds of topology that the package does not have: one class each, and nothing else knows of them."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest
from pydantic import Field
from small import GRAPH
from training import train

from nt_core import EnsembleSpec, MultiHead, initial_masks
from nt_core.policies import AtRandom, Criterion, Magnitude
from nt_core.topology import ER, Dense, SparseTopology
from nt_core.topology.allocation import AnyAllocation, allocated
from nt_core.topology.choosing import swap_each


class Banded(SparseTopology):
    """Fixed masks: the positions nearest to a weight's diagonal."""

    kind: Literal["banded"] = "banded"
    divisible: ClassVar[bool] = True
    allocation: AnyAllocation = ER()

    def counts(self, layout) -> Mapping[str, int]:
        return allocated(layout, self.allocation, self.sparsity)

    def initial_scores(self, placed, stream):
        rows, columns = placed.weight.shape
        row, column = np.divmod(np.arange(rows * columns), columns)
        return -np.abs(row * columns - column * rows)


class Rewired(SparseTopology):
    """Every ``interval`` steps the smallest quarter goes, and as many come at random; not at the end."""

    kind: Literal["rewired"] = "rewired"
    updates: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    interval: int = 2

    def counts(self, layout) -> Mapping[str, int]:
        return allocated(layout, ER(), self.sparsity)

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        return Magnitude(), AtRandom()

    def due(self, step, total_steps):
        return step % self.interval == 0 and step < total_steps

    def next_due(self, step, total_steps):
        later = (step // self.interval + 1) * self.interval
        return later if later < total_steps else None

    def swaps(self, layers, moment, *, total_steps, targets, policy=None, fraction=None):
        return swap_each(*self.criteria, layers, moment, 0.25 if fraction is None else fraction, False)


class OwnSpec(EnsembleSpec):
    """A spec that may have them, as if they stood in ``AnyTopology``."""

    topology: Annotated[Dense | Banded | Rewired, Field(discriminator="kind")] = Dense()


@pytest.mark.parametrize("topology", [Banded(sparsity=0.6), Rewired(sparsity=0.6)], ids=lambda t: t.kind)
def test_a_topology_of_ones_own_trains(backend, topology):
    spec = OwnSpec(graph=GRAPH, structure=MultiHead(split=1, heads=2), topology=topology)
    records = []
    trained = train(backend, spec, report=records.append)
    events = [record for record in records if record["event"] == "update"]
    due = [step for step in range(1, trained.steps + 1) if topology.due(step, trained.steps)]
    assert [event["step"] for event in events] == due
    assert topology.updates == bool(due)
    assert all(event["pruned"] == event["grown"] > 0 for event in events)
    start, masks = dict(initial_masks(topology, spec.layout, 0)), backend.checkpoint(trained.model).masks
    assert {name: mask.count for name, mask in masks.items()} == spec.counts
    assert (masks == start) != topology.updates
