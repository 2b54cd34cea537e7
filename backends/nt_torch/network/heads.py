"""Computation of all heads of a model at once, instead of one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nt_core.errors import SpecError
from nt_torch.network.batched import Read
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

    An op whose modules somebody has changed since they were compiled (a hook, another class such as
    SyncBatchNorm, the momentum of a norm, one head in evaluation mode) is computed by those modules, one head
    after another.

    Raises:
        SpecError: the heads' weights are sharded.
    """
    _expect_possible(heads)

    def compute(step: Step, inputs: list[Tensor]) -> Tensor:
        read = [(x, ref not in values) for x, ref in zip(inputs, step.inputs, strict=True)]
        modules = [head.ops[step.key] for head in heads]
        if all(_as_compiled(step, module, modules[0].training) for module in modules):
            return step.batched(step.op, modules, read)
        return torch.stack([module(*_of_head(i, read)) for i, module in enumerate(modules)])

    return run_stages(heads, values, compute, recompute=recompute)


def have_hooks(modules: Sequence[nn.Module]) -> bool:
    """Return whether a call of a module would do more than compute its result."""
    everywhere = nn.modules.module
    return bool(everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks) or any(
        each._forward_hooks or each._forward_pre_hooks or each._backward_hooks or each._backward_pre_hooks
        for each in modules
    )


def _as_compiled(step: Step, module: nn.Module, training: bool) -> bool:
    """Return whether a head's module computes what its op says, as the other heads' modules do."""
    if type(module) is not step.kind or module.training is not training or have_hooks([module]):
        return False
    op: Any = step.op
    match module:
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return (module.momentum, module.eps, module.track_running_stats) == (op.momentum, op.eps, True)
        case nn.Dropout():
            return bool(module.p == op.rate)
        case _:
            return True


def _of_head(number: int, read: Read) -> list[Tensor]:
    return [x[number] if own else x for x, own in read]


def _expect_possible(heads: Sequence[PartModule]) -> None:
    if any(is_sharded(parameter) for parameter in heads[0].parameters()):
        raise SpecError(
            "execution.heads: batched needs whole weights, but processes hold parts of them (fully_shard); "
            "choose loop"
        )
