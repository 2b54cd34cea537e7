"""Network Fission Ensembles, which divide the kept weights of one network among exits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from nt_core.errors import GraphError, SpecError
from nt_core.graph import BlockGraph, expect_ops
from nt_core.masks import Mask
from nt_core.random import Random
from nt_core.structure.base import Reduction, Structure
from nt_core.structure.layout import Layout, Part, crossing, spread
from nt_core.values import Count, Members


class Fission(Structure):
    """One pruned network whose weights are divided among M exits (Lee & Lee 2024, arXiv 2408.02301).

    Each exit but the last leaves the trunk after a counted block and continues along a path of its own to a
    classifier of its own. The kept connections of a weight that several paths have are partitioned among the
    paths at random: pieces are disjoint, and their union is the single network's kept weight. Norms and
    biases are each path's own. The topology, ``static`` or ``prune_at_init``, selects the kept connections.

    The loss is Σ_m CE_m + T²·Σ_m KL(mean ‖ member m), the mean of the logits detached, both at temperature T.

    Attributes:
        count: M, the number of exits, at most the number of counted blocks.
        after: for each exit but the last, the number of counted blocks of the trunk before it, ascending;
            None: evenly spread.
        temperature: T of the distillation from the members' mean; None: no distillation.
    """

    kind: Literal["fission"] = "fission"
    count: Members
    after: tuple[Count, ...] | None = None
    temperature: Annotated[float, Field(gt=0)] | None = 3.0

    @model_validator(mode="after")
    def _check(self) -> Fission:
        if self.after is not None:
            if len(self.after) != self.count - 1:
                raise SpecError(
                    f"structure.after: expected {self.count - 1} numbers of blocks for {self.count} exits, "
                    f"found {len(self.after)}; the last exit needs none"
                )
            if any(b < a for a, b in pairwise(self.after)):
                raise SpecError(f"structure.after: expected ascending numbers, found {list(self.after)}")
        return self

    @property
    def members(self) -> int:
        return self.count

    @property
    def loss_reduction(self) -> Reduction:
        return "sum"

    @property
    def distillation(self) -> float | None:
        return self.temperature

    def layout(self, graph: BlockGraph) -> Layout:
        """Spread the graph over a trunk and exits.

        Raises:
            GraphError: there are more exits than counted blocks, or an exit leaves behind the last block.
        """
        if self.count == 1:
            return spread(graph, shared=0, members=1)
        leaves = self._leaves(len(graph.counted))
        stems = sum(block.kind == "stem" for block in graph.blocks)
        paths = [graph.blocks[stems + blocks :] for blocks in (*leaves, leaves[-1])]
        expect_ops(
            sum(len(block.nodes) for path in paths for block in path), f"structure: {self.count} exits"
        )
        return Layout(
            graph=graph,
            backbone=Part(name="backbone", blocks=graph.blocks[: stems + leaves[-1]]),
            heads=tuple(Part(name=f"head{m}", blocks=blocks) for m, blocks in enumerate(paths, start=1)),
            crossing=crossing(paths),
            members=self.count,
            input_shape=graph.input.shape,
            divided=True,
        )

    def _leaves(self, blocks: int) -> tuple[int, ...]:
        if self.count > blocks:
            raise GraphError(
                f"structure.count: {self.count} exits of a network of {blocks} counted blocks; expected at "
                f"most one for each, choose 2 to {blocks}, or a deeper network"
            )
        leaves = self.after or tuple(round(blocks * m / self.count) for m in range(1, self.count))
        if leaves[-1] > blocks:
            raise GraphError(
                f"structure.after: expected at most the {blocks} counted blocks of the network, "
                f"found {leaves[-1]}"
            )
        return leaves


def divide_counts(layout: Layout, whole: Mapping[str, int]) -> dict[str, int]:
    """Divide the single network's counts among the pieces of each weight; the first pieces get the remainder.

    Args:
        layout: a divided layout.
        whole: active elements of each weight of the single network.

    Example:
        >>> import nt_models
        >>> layout = Fission(count=2).layout(nt_models.mlp(inputs=4, hidden=(8, 8), classes=2))
        >>> whole = {f"head1/{block}/linear1.weight": 9 for block in ("hidden1", "hidden2", "classifier")}
        >>> counts = divide_counts(layout, whole)
        >>> counts["head1/hidden2/linear1.weight"], counts["head2/hidden2/linear1.weight"]
        (5, 4)
    """
    return {
        name: count
        for source, pieces in _pieces(layout)
        for name, count in zip(pieces, _parts(whole[source], len(pieces)), strict=True)
    }


def divide_masks(layout: Layout, whole: Iterable[tuple[str, Mask]], seed: int) -> Iterator[tuple[str, Mask]]:
    """Partition each mask of the single network at random among the paths that have the weight.

    Args:
        layout: a divided layout.
        whole: (name, mask) of each weight of the single network.
        seed: keys the partition.
    """
    pieces = dict(_pieces(layout))
    for source, mask in whole:
        stream = Random(seed).at(weight=source, purpose="fission")
        kept = mask.flat()
        shuffled = kept[np.argsort(stream.bits(kept), kind="stable")]
        ends = np.cumsum(_parts(kept.size, len(pieces[source])))
        for name, part in zip(pieces[source], np.split(shuffled, ends[:-1]), strict=True):
            yield name, Mask.from_flat(mask.shape, np.sort(part))


def gather(layout: Layout, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Join the pieces of each weight to the single network, before training, as the sum of the pieces.

    Args:
        layout: a divided layout.
        values: every weight of the layout, by name; inactive elements are 0.

    Returns:
        Every weight of the single network, by name.
    """
    whole: dict[str, NDArray[Any]] = {}
    for placed in layout.weights:
        source, value = layout.source(placed.name), values[placed.name]
        whole[source] = whole[source] + value if source in whole and placed.weight.sparsifiable else value
    return whole


def _pieces(layout: Layout) -> Iterator[tuple[str, list[str]]]:
    """Yield the single network's sparsifiable weights and the names of their pieces."""
    found: dict[str, list[str]] = {}
    for placed in layout.sparsifiable:
        found.setdefault(layout.source(placed.name), []).append(placed.name)
    yield from found.items()


def _parts(count: int, pieces: int) -> list[int]:
    return [count // pieces + (piece < count % pieces) for piece in range(pieces)]
