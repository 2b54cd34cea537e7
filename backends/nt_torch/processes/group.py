"""Communication of several processes that train one model, and a check that their masks are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from nt_core.errors import TopologyError
from nt_core.topology import Bits

T = TypeVar("T")


def from_main(make: Callable[[], T]) -> T:
    """Return the first process's value in every process.

    Example:
        >>> from_main(lambda: 1)
        1
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return make()
    made: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            made[0] = make()
        except Exception as error:  # sent to the other processes, which would wait for ever otherwise
            made[1] = error
    distributed.broadcast_object_list(made)
    if made[1] is not None:
        raise made[1]
    found: T = made[0]
    return found


def group_of(model: nn.Module) -> Any:
    """Return the group of processes that average a model's gradients; None: a single process."""
    parallel = _data_parallel(model)
    if parallel is None or distributed.get_world_size(parallel.process_group) == 1:
        return None
    return parallel.process_group


def was_reduced(model: nn.Module) -> bool:
    """Return whether a model's gradients are those of all processes; not so after a pass under ``no_sync``.

    Example:
        >>> was_reduced(nn.Linear(2, 3))
        True
    """
    parallel = _data_parallel(model)
    return parallel is None or bool(parallel.require_forward_param_sync)


def _data_parallel(model: nn.Module) -> DistributedDataParallel | None:
    inner: Any = model
    while isinstance(inner, nn.Module):
        if isinstance(inner, DistributedDataParallel):
            return inner
        inner = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
    return None


def expect_same_masks(masks: Mapping[str, Bits], step: int, group: Any, device: torch.device) -> None:
    """Check that all processes have the same masks, by a digest of each mask.

    Args:
        masks: mask of each weight, packed.
        step: the optimiser step after which the masks were updated.
        group: the processes.
        device: of the tensors that the group communicates.

    Raises:
        TopologyError: in every process; the message names the first weight that differs, and the processes.
    """
    if group is None or not masks:
        return
    digests = [hashlib.blake2b(bits.tobytes(), digest_size=8).digest() for bits in masks.values()]
    own = torch.tensor([int.from_bytes(each, "little", signed=True) for each in digests], device=device)
    every = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(every, own, group=group)
    for i, name in enumerate(masks):
        found = [int(each[i]) for each in every]
        if len(set(found)) > 1:
            majority = max(found, key=found.count)
            differing = [str(rank) for rank, digest in enumerate(found) if digest != majority]
            raise TopologyError(
                f"weight {name!r}, step {step}: ranks do not have the same mask: {', '.join(differing)} of "
                f"{len(found)} differ from the others; gradients must be reduced over all of them before the "
                "optimiser's step, and every rank needs the same spec and seed"
            )
