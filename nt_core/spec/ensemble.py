"""Declaration of an ensemble: a block graph and four choices (structure, topology, plan, aggregation)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from nt_core.errors import SpecError
from nt_core.graph import BlockGraph
from nt_core.structure import (
    MIMO,
    AnyStructure,
    BatchEnsemble,
    Independent,
    Layout,
    Reduction,
    Single,
)
from nt_core.topology import TOPOLOGIES, AnyTopology, DeclaredTopology, Dense, expect_counts
from nt_core.training import AnyPlan, ExploreRefine, OneRun, Ratio, Timeline, longest_of
from nt_core.values import Value

Mean = Literal["mean_prob", "mean_logit"]
"""Averages over members that need no fitting: of probabilities, or of logits."""


class FittedAverage(Value):
    """A weighted mean of members' probabilities, fitted on examples held out of training.

    Attributes:
        held_out: share of the training examples that are held out of training and used for the fit
            afterwards.
        temperature: whether a temperature is fitted too, after the weights; see
            :func:`nt_core.metrics.fit`.
    """

    kind: Literal["fitted"] = "fitted"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    temperature: bool = True


def _by_name(value: Any) -> Any:
    if value == "fitted":
        return FittedAverage()
    if isinstance(value, Mapping):
        return FittedAverage(**value)
    if value not in get_args(Mean) and not isinstance(value, FittedAverage):
        raise ValueError("input should be 'mean_prob', 'mean_logit' or 'fitted'")
    return value


Aggregation = Annotated[
    Mean | FittedAverage,
    BeforeValidator(_by_name, json_schema_input_type=Mean | FittedAverage | str),
]
"""Any aggregation that a spec file can name."""


class EnsembleSpec(Value):
    """A sparse ensemble, declared once.

    Attributes:
        graph: the network of one member.
        structure: sharing of the graph among members.
        topology: sparsity, initial masks, and updates of the masks.
        plan: length and phases of training.
        aggregation: mean over members of probabilities or of logits; or a fitted weighted mean.
        loss: whether members' losses are averaged or summed; None: the structure's default.

    Raises:
        SpecError, GraphError, AllocationError: the choices contradict each other.

    Example:
        >>> import nt_models
        >>> from nt_core import Dynamic, MultiHead
        >>> spec = EnsembleSpec(graph=nt_models.wide_resnet(depth=28, width=10, classes=100),
        ...                     structure=MultiHead(split=4, heads=3), topology=Dynamic(sparsity=0.8))
        >>> spec.members, sum(spec.counts.values())
        (3, 21255766)
    """

    error_path: ClassVar[str] = ""
    graph: BlockGraph
    structure: AnyStructure = Single()
    topology: AnyTopology = Dense()
    plan: AnyPlan = OneRun()
    aggregation: Aggregation = "mean_prob"
    loss: Reduction | None = None

    @model_validator(mode="after")
    def _check(self) -> EnsembleSpec:
        if self.layout.divided and not self.topology.divisible:
            divisible = [kind for kind, topology in TOPOLOGIES.items() if topology.divisible]
            raise SpecError(
                f"topology: {self.topology.kind!r} does not go with structure 'fission', which divides what "
                f"is kept once; choose {' or '.join(divisible)} (sparsity: 0 keeps everything)"
            )
        _ = self.counts
        _expect_fitting(self.structure, self.topology)
        self.plan.extension(self.longest)
        if isinstance(self.plan, ExploreRefine):
            _expect_one_network(self.structure, self.topology)
        elif self.plan.at_once is not None:
            _expect_groups(self.plan.at_once, self.structure, self.topology)
        return self

    @property
    def longest(self) -> Ratio:
        """How many times as long as a dense network this may train: 1/(1 − S), 1 where training is dense."""
        return longest_of(self.topology.sparsity_from_start)

    def timeline(self, steps_per_epoch: int) -> Timeline:
        """Return the phases of the plan for this topology.

        Raises:
            SpecError: the plan has no length, or too few steps for its phases.

        Example:
            >>> import nt_models
            >>> from nt_core import OneRun, Static
            >>> spec = EnsembleSpec(graph=nt_models.mlp(inputs=4, hidden=(8,), classes=2),
            ...                     topology=Static(sparsity=0.5), plan=OneRun(epochs=3, extend="auto"))
            >>> spec.timeline(steps_per_epoch=10).total_steps
            60
        """
        return self.plan.timeline(steps_per_epoch, self.longest)

    @property
    def result(self) -> EnsembleSpec:
        """Spec of the trained ensemble: this spec, or the members that a plan makes from one network."""
        if not isinstance(self.plan, ExploreRefine):
            return self
        return self.replace(structure=Independent(count=self.plan.members), plan=OneRun())

    @property
    def turns(self) -> tuple[EnsembleSpec, ...]:
        """Specs that are trained one after another: groups of members, or all members together."""
        if isinstance(self.plan, ExploreRefine) or self.plan.at_once is None:
            return (self,)
        assert isinstance(self.structure, Independent)
        numbers, size = self.structure.numbers, self.plan.at_once
        groups = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        plan = self.plan.replace(at_once=None)
        return tuple(self.replace(structure=self.structure.replace(only=each), plan=plan) for each in groups)

    @cached_property
    def layout(self) -> Layout:
        """Backbone and heads."""
        return self.structure.layout(self.graph)

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """How many elements of each sparsifiable weight are active (at the end, where that changes)."""
        return self.topology.final_counts(self.layout)

    def expect_counts(self, counts: Mapping[str, int]) -> None:
        """Check that a model has as many active connections as its topology declares.

        Args:
            counts: number of active elements of each sparsifiable weight.

        Raises:
            TopologyError: there are more, or fewer; the message names the first weight.
        """
        expect_counts(self.topology, self.layout, counts)

    @property
    def members(self) -> int:
        """M, the number of predictions for one example."""
        return self.structure.members

    @property
    def mean(self) -> Mean:
        """Mean over members before any fit: ``mean_prob`` where the aggregation is to be fitted."""
        return "mean_prob" if isinstance(self.aggregation, FittedAverage) else self.aggregation

    @property
    def loss_reduction(self) -> Reduction:
        """Reduction of the members' losses."""
        return self.loss or self.structure.loss_reduction

    @property
    def distillation(self) -> float | None:
        """The temperature at which members learn from their mean, too; None: they do not."""
        return self.structure.distillation

    def to_dict(self) -> dict[str, Any]:
        """Return the whole spec, its graph op by op, as values that JSON can hold."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EnsembleSpec:
        """Make a spec from the output of :meth:`to_dict`."""
        return cls(**data)

    def digest(self) -> str:
        """Return a hash, which is equal for equal declarations; a graph's origin does not influence it."""
        data = self.to_dict()
        data["graph"].pop("origin")
        return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=16).hexdigest()


def _expect_one_network(structure: AnyStructure, topology: DeclaredTopology) -> None:
    if not isinstance(structure, Single):
        raise SpecError(
            "structure: expected single for the plan explore_refine, which makes members of one network, "
            f"found {structure.kind}; say how many with plan.members"
        )
    if not topology.grows:
        raise SpecError(
            "topology: expected dynamic for the plan explore_refine, which leaves a member behind by "
            f"pruning and growing, found {topology.kind}; choose topology.kind dynamic"
        )


def _expect_groups(at_once: int, structure: AnyStructure, topology: DeclaredTopology) -> None:
    """Check that members can be trained in groups, and would come out as if trained together."""
    if not isinstance(structure, Independent):
        raise SpecError(
            f"plan.at_once: expected structure independent, found {structure.kind}, whose members share "
            "weights; leave it out"
        )
    if structure.members % at_once:
        raise SpecError(
            f"plan.at_once: expected a divisor of the {structure.members} members, found {at_once}; "
            f"choose 1 to {structure.members}"
        )
    scope = topology.competition
    if scope != "layer":
        raise SpecError(
            f"plan.at_once: expected topology.scope layer, found {scope}, by which all members compete for "
            "connections; change the scope, or leave at_once out"
        )


def _expect_fitting(structure: AnyStructure, topology: DeclaredTopology) -> None:
    only = isinstance(structure, Independent) and structure.only is not None
    scope = topology.competition
    if only and scope != "layer":
        raise SpecError(
            f"structure.only: expected topology.scope layer, found {scope}, by which all members compete for "
            "connections; change the scope, or leave only out"
        )
    if topology.examples_needed and isinstance(structure, BatchEnsemble | MIMO):
        raise SpecError(
            "structure: expected single, independent, multi_head or fission for the topology "
            f"{topology.kind}, found {structure.kind}; change one of them"
        )
