"""Declaration of pruning at initialisation: static masks selected by one batch of training data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from nt_core.structure import Layout
from nt_core.topology.allocation import ERK, AnyAllocation, allocated
from nt_core.topology.base import SparseTopology, full_counts
from nt_core.values import Count, Value, by_kind


class Snip(Value):
    """Keep the weights whose removal changes the loss most: |w·∂L/∂w|, first order (Lee et al. 2019, §4)."""

    kind: Literal["snip"] = "snip"


class Grasp(Value):
    """Keep the weights whose removal lowers the gradient's norm most: w·(H·∂L/∂w) (Wang et al. 2020, §4).

    The paper's score of a removal, −w·(H·g), is half of the first-order increase of the squared norm of the
    gradient g. Weights of the highest score are pruned first. The sign matters.

    Attributes:
        temperature: divisor of the logits before the loss.
    """

    kind: Literal["grasp"] = "grasp"
    temperature: Annotated[float, Field(gt=0)] = 200.0


_Saliencies = Annotated[Snip | Grasp, Field(discriminator="kind")]
AnySaliency = Annotated[_Saliencies, BeforeValidator(by_kind, json_schema_input_type=str | _Saliencies)]
"""Any criterion; in a file also its name alone, ``snip``."""


class PruneAtInit(SparseTopology):
    """Static masks, chosen before the first step from the dense network's gradient on one batch.

    Attributes:
        sparsity: 1 − active / size over all sparsifiable weights.
        criterion: score of the weights to keep.
        scope: ``global`` ranks all weights together; ``layer`` keeps each weight's allocated count.
        allocation: division of the active connections among weights, where ``scope`` is ``layer``.
        examples: number of training examples in the batch: the first, in the order of the first epoch.
    """

    kind: Literal["prune_at_init"] = "prune_at_init"
    divisible: ClassVar[bool] = True
    criterion: AnySaliency = Snip()
    scope: Literal["layer", "global"] = "global"
    allocation: AnyAllocation = ERK()
    examples: Count = 128

    @property
    def competition(self) -> Literal["layer", "global"]:
        return self.scope

    @property
    def examples_needed(self) -> int:
        return self.examples

    def counts(self, layout: Layout) -> Mapping[str, int]:
        return allocated(layout, self.allocation, self.sparsity)

    def initial_counts(self, layout: Layout) -> Mapping[str, int]:
        """Return the sizes: everything is active until the data has chosen."""
        return full_counts(layout)
