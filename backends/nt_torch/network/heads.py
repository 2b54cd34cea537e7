"""Computation of all heads of a model at once, instead of one after another."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nt_core.errors import SpecError
from nt_torch.network.parts import PartModule, Step, Values, run_stages
from nt_torch.processes.shards import is_sharded


def run_batched(heads: Sequence[PartModule], values: Values, *, recompute: bool = False) -> Values:
    """Run heads of equal structure on values that they share.

    Args:
        heads: at least two; each keeps its own parameters and buffers, whose gradients and running statistics
            are those of a loop.
        values: the heads' inputs, (B, …).
        recompute: whether values inside a block are recomputed in the backward pass.

    Returns:
        The heads' outputs, (M, B, …).

    Raises:
        SpecError: the heads' weights are sharded, or only some of the heads are in training mode.
    """
    _expect_possible(heads)

    def compute(step: Step, inputs: list[Tensor]) -> Tensor:
        read = [(x, ref not in values) for x, ref in zip(inputs, step.inputs, strict=True)]
        return step.batched(step.op, [head.ops[step.key] for head in heads], read)

    return run_stages(heads, values, compute, recompute=recompute)


def _expect_possible(heads: Sequence[PartModule]) -> None:
    if len({head.training for head in heads}) > 1:
        raise SpecError(
            "execution.heads: batched needs all heads in training mode, or all in evaluation mode; found "
            f"{sum(head.training for head in heads)} of {len(heads)} in training; choose loop"
        )
    if any(is_sharded(parameter) for parameter in heads[0].parameters()):
        raise SpecError(
            "execution.heads: batched needs whole weights, but processes hold parts of them (fully_shard); "
            "choose loop"
        )
