"""The base class of every declared topology: the questions that the rest of the package asks one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from nt_core.masks import Moment, Scores
from nt_core.policies import Criterion, Layer, Policy, Swap
from nt_core.random import Stream
from nt_core.structure import Layout, PlacedWeight, Single
from nt_core.structure.fission import divide_counts
from nt_core.topology.allocation import Sparsity
from nt_core.values import Value

Competition = Literal["layer", "global", "momentum"]


class DeclaredTopology(Value, ABC):
    """How many connections are active, which ones at the start, and how they change while training runs.

    A kind of topology is one subclass, listed in :data:`nt_core.topology.AnyTopology`. It says ``kind`` and
    :meth:`counts`, and overrides the answers that differ from those of random masks that stay as drawn.

    Attributes:
        kind: its name in a spec file.
        masked: whether weights have masks.
        updates: whether masks change while training runs.
        grows: whether an update grows as many connections as it prunes, so that escapes can be asked for.
        divisible: whether the active connections may be divided among members (``Fission``).
    """

    kind: str
    masked: ClassVar[bool] = True
    updates: ClassVar[bool] = False
    grows: ClassVar[bool] = False
    divisible: ClassVar[bool] = False

    @property
    def summary(self) -> str:
        """The kind, and the sparsity where there is one, for people to read."""
        return self.kind

    # How many.

    @abstractmethod
    def counts(self, layout: Layout) -> Mapping[str, int]:
        """Return how many elements of each sparsifiable weight are active when training ends.

        Args:
            layout: one that divides no weight among members.
        """

    def final_counts(self, layout: Layout) -> Mapping[str, int]:
        """Return how many elements of each sparsifiable weight are active when training ends.

        Where weights compete the total is exact and the division among weights the allocation's, as the
        expected one: the true one depends on the training.

        Args:
            layout: any; the counts of the single network are divided as its weights are.
        """
        if layout.divided:
            return divide_counts(layout, self.counts(Single().layout(layout.graph)))
        return self.counts(layout)

    def initial_counts(self, layout: Layout) -> Mapping[str, int]:
        """Return how many elements of each sparsifiable weight are active when training starts."""
        return self.final_counts(layout)

    def initial_scores(self, placed: PlacedWeight, stream: Stream) -> Scores:
        """Return the scores of a weight's positions, of which the largest are active when training starts.

        Args:
            placed: the weight, in a layout that divides none.
            stream: the randomness of its mask.
        """
        return stream.bits

    @property
    def sparsity_from_start(self) -> float:
        """The sparsity that every step of the training has; 0 where steps are dense."""
        return 0.0

    @property
    def examples_needed(self) -> int:
        """How many training examples choose the masks before the first step; 0: the masks are drawn."""
        return 0

    # Updates.

    @property
    def competition(self) -> Competition:
        """Among which connections the pruned and the grown are chosen: ``layer``, those of one weight."""
        return "layer"

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """The criteria that updates read, those that prune first."""
        return ()

    @property
    def takes_policy(self) -> bool:
        """Whether a policy of somebody's own can take the place of the criteria."""
        return False

    @property
    def replaces_step(self) -> bool:
        """Whether an update takes the place of the optimiser's step."""
        return False

    @property
    def draws_grown(self) -> bool:
        """Whether grown connections start at a new draw from the initial distribution, not at 0."""
        return False

    @property
    def momentum_beta(self) -> float | None:
        """By how much the dense gradient is smoothed at every step; None where nothing reads that."""
        return next((each.smoothing for each in self.criteria if each.smoothing is not None), None)

    def reads_gradient(self, policy: Policy | None = None) -> bool:
        """Tell whether updates read the dense gradient; a policy of one's own always may."""
        return self.updates and (policy is not None or any(each.uses_gradient for each in self.criteria))

    def due(self, step: int, total_steps: int) -> bool:
        """Tell whether an update follows the ``step``-th optimiser step (counted from 1)."""
        return False

    def next_due(self, step: int, total_steps: int) -> int | None:
        """Return the first step after ``step`` that an update follows; None if there is none."""
        return None

    def swaps(
        self,
        layers: Sequence[Layer],
        moment: Moment,
        *,
        total_steps: int,
        targets: Mapping[str, int],
        policy: Policy | None = None,
        fraction: float | None = None,
    ) -> Mapping[str, Swap]:
        """Choose the connections that an update prunes and grows in each weight; none, where masks stay.

        Call :func:`nt_core.topology.update`, which checks its inputs and explains the arguments.
        """
        nothing = {each.name: moment.arrays.nonzero(each.active & ~each.active) for each in layers}
        return {name: Swap(pruned=none, grown=none) for name, none in nothing.items()}

    # Cost.

    def step_flops(self, sparse: int, dense: int) -> float:
        """Return the FLOPs of a training step for one example, on average over the training.

        The forward pass counts once and the backward pass twice.

        Args:
            sparse: FLOPs of inference at the final counts.
            dense: FLOPs of inference without masks.
        """
        return 3.0 * sparse

    def chosen(self, active: int, size: int) -> int:
        """Return how many positions of a weight the largest update chooses.

        Args:
            active: the final count.
            size: of the weight.
        """
        return 0

    def exchanged(self, active: int, size: int) -> int:
        """Return how many connections of a weight the largest update replaces by others."""
        return 0


class SparseTopology(DeclaredTopology, ABC):
    """A topology that leaves a sparse network.

    Attributes:
        sparsity: 1 − active / size over all sparsifiable weights.
    """

    sparsity: Sparsity

    @property
    def summary(self) -> str:
        return f"{self.kind} at sparsity {self.sparsity:g}"

    @property
    def sparsity_from_start(self) -> float:
        return self.sparsity


def full_counts(layout: Layout) -> Mapping[str, int]:
    """Return the size of each sparsifiable weight: its count where everything is active."""
    return {placed.name: placed.weight.size for placed in layout.sparsifiable}
