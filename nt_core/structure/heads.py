"""Structures whose members are heads: one network, independent networks, heads on a shared backbone."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from nt_core.errors import GraphError, SpecError, nearest
from nt_core.graph import BlockGraph
from nt_core.structure.base import Reduction, Structure
from nt_core.structure.layout import Layout, spread
from nt_core.values import Members


class Single(Structure):
    """One network, which is the graph itself."""

    kind: Literal["single"] = "single"

    @property
    def members(self) -> int:
        return 1

    def layout(self, graph: BlockGraph) -> Layout:
        return spread(graph, shared=0, members=1)


class Independent(Structure):
    """M whole networks that share nothing (full ensemble).

    The members' losses are summed, so that each member is trained as it would be alone, because a mean would
    divide every member's gradient by M.

    Attributes:
        count: M, the number of whole networks.
        only: numbers (from 1, ascending) of the members in this part of the ensemble. Names, initial values,
            masks and counts of the members are those of the whole ensemble; None: all members.
    """

    kind: Literal["independent"] = "independent"
    count: Members
    only: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Independent:
        if self.only is not None and (
            not self.only or sorted({*self.only} & {*range(1, self.count + 1)}) != list(self.only)
        ):
            raise SpecError(
                f"structure.only: expected ascending numbers from 1 to {self.count}, found {self.only}; "
                "leave it out for all members"
            )
        return self

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the members in this part of the ensemble."""
        return tuple(range(1, self.count + 1)) if self.only is None else self.only

    @property
    def members(self) -> int:
        return len(self.numbers)

    @property
    def loss_reduction(self) -> Reduction:
        return "sum"

    def layout(self, graph: BlockGraph) -> Layout:
        whole = spread(graph, shared=0, members=self.count)
        if self.only is None:
            return whole
        heads = tuple(whole.heads[number - 1] for number in self.only)
        return replace(whole, heads=heads, members=len(heads), whole=whole)


def _expect_split(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, int) and value < 0):
        raise PydanticCustomError(
            "split", "expected a number of counted blocks, at least 0, or the name of the backbone's last one"
        )
    return value


Split = Annotated[Annotated[int, Field(ge=0)] | str, BeforeValidator(_expect_split)]


class MultiHead(Structure):
    """A shared backbone and M heads, cut at a block (TreeNet, Lee et al. 2015; NeuroTrails, §3).

    Attributes:
        split: number of counted blocks in the backbone, or the name of its last block. Stems always belong
            to the backbone, the classifier always to the heads.
        heads: M, the number of heads.
    """

    kind: Literal["multi_head"] = "multi_head"
    split: Split
    heads: Members

    @property
    def members(self) -> int:
        return self.heads

    def layout(self, graph: BlockGraph) -> Layout:
        """Spread a graph over backbone and heads.

        Raises:
            GraphError: the split lies outside the network or names no block.
        """
        stems = sum(block.kind == "stem" for block in graph.blocks)
        return spread(graph, shared=stems + self._counted_in_backbone(graph), members=self.heads)

    def _counted_in_backbone(self, graph: BlockGraph) -> int:
        counted = graph.counted
        if isinstance(self.split, int):
            if self.split > len(counted):
                raise GraphError(
                    f"structure.split: expected at most the {len(counted)} counted blocks of the network, "
                    f"found {self.split}; choose 0 to {len(counted)}"
                )
            return self.split
        if self.split not in counted:
            raise GraphError(
                f"structure.split: no counted block {self.split!r}{nearest(self.split, counted)}"
            )
        return counted.index(self.split) + 1
