"""Selections on weights of which each process holds a part (FSDP2), with little communication.

The selection is exactly that of one process which holds the whole weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn

from nt_core.errors import TopologyError
from nt_core.masks import DIGIT_BITS, NUMPY, Array, Arrays, Draws
from nt_core.random import Random
from nt_core.topology import Update

if TYPE_CHECKING:  # importing it takes a second
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return whether a tensor is sharded, so that processes hold parts of it."""
    return hasattr(tensor, "device_mesh")


def mesh_of(model: nn.Module) -> Any:
    """Return the device mesh over which a model's weights are sharded; None: not sharded."""
    return next((each.device_mesh for each in model.parameters() if is_sharded(each)), None)


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor; the whole tensor if it is not sharded."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        part: Tensor = tensor.to_local()
        return part


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all of its parts; every process that holds a part must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def first_row(weight: DTensor) -> int:
    """Return the first row of this process's part of a weight; rows are divided as by torch.chunk.

    Raises:
        TopologyError: the weight is not sharded by rows alone.
    """
    from torch.distributed.tensor import Shard

    if weight.placements != (Shard(0),):
        raise TopologyError(
            f"a weight is placed as {weight.placements}; expected what fully_shard makes on a mesh of one "
            "dimension: rows, divided among processes"
        )
    mesh = weight.device_mesh
    size = -(-weight.shape[0] // mesh.size())
    return min(mesh.get_local_rank() * size, weight.shape[0])


def like(weight: Tensor, tensor: Tensor) -> Tensor:
    """Return a whole tensor, sharded like a weight; unchanged if the weight is not sharded."""
    if not is_sharded(weight) or is_sharded(tensor):
        return tensor
    start = first_row(weight)
    return placed_like(weight, tensor[start : start + weight.to_local().shape[0]].clone())


def placed_like(weight: DTensor, part: Tensor) -> DTensor:
    """Return a sharded tensor of a weight's shape, of which every process gives the part of its own rows."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part.contiguous(),
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=torch.empty(weight.shape, device="meta").stride(),
    )


@dataclass(frozen=True)
class ShardedArrays:
    """:class:`nt_core.masks.Arrays` for processes that hold consecutive positions, in the order of ranks.

    Positions are a process's own, from 0; counts are sums over all processes.

    Attributes:
        group: the processes.
        device: of the tensors that the group communicates.
        starts: first position, in the whole weight, of this process's part of each weight.
        own: array functions for this process's part: NumPy, or tensors of its device.
    """

    group: Any
    device: torch.device
    starts: Mapping[str, int]
    own: Arrays = NUMPY

    def top_k(
        self, scores: Array | Callable[[slice], Array], among: Array, k: int, *, inverse: bool = False
    ) -> Array:
        """Return this process's positions among the k largest scores of all processes.

        Ties go to the lowest position. The k-th largest score is found digit by digit, because processes then
        sum histograms instead of gathering scores.
        """
        positions = self.own.nonzero(~among if inverse else among)
        read = (scores(slice(0, among.shape[0], 1)) if callable(scores) else scores)[positions]
        values = read if isinstance(read, Tensor) else torch.from_numpy(read)
        available, bad = self._sum(torch.tensor([len(positions), int(torch.isnan(values).sum())])).tolist()
        if not 0 <= k <= available:
            raise TopologyError(f"k: {k} positions requested, {available} available; choose 0 to {available}")
        if bad:
            raise TopologyError(f"scores: {bad} are NaN; skip this update")
        if k == 0:
            return positions[:0]
        keys = _ascending_bits(values)
        threshold, ties = self._kth_largest(keys, k)
        chosen, equal = keys > threshold, keys == threshold
        before = int(self._counts(int(equal.sum()))[: distributed.get_rank(self.group)].sum())
        chosen |= equal & (before + equal.cumsum(0) <= ties)
        return positions[chosen if isinstance(positions, Tensor) else chosen.numpy()]

    def draws(self, random: Random, *, weight: str, step: int, purpose: str) -> Draws:
        """Return the random numbers of this process's positions of a weight."""
        whole = self.own.draws(random, weight=weight, step=step, purpose=purpose)
        return _Shifted(whole, self.starts[weight])

    def first_not_finite(self, array: Array) -> int | None:
        """Return this process's first position of NaN or an infinity.

        Raises:
            TopologyError: another process has such a position, and this process none.
        """
        found = self.own.first_not_finite(array)
        everywhere = int(self._sum(torch.tensor([found is not None]))[0])
        if everywhere and found is None:
            raise TopologyError(f"{everywhere} other ranks hold what is not finite; their errors say where")
        return found

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        """Join flat arrays."""
        return self.own.concatenate(arrays)

    def ones(self, count: int) -> Array:
        """Return ``count`` flags, all True."""
        return self.own.ones(count)

    def nonzero(self, flags: Array) -> Array:
        """Return the ascending positions of True."""
        return self.own.nonzero(flags)

    def count(self, flags: Array) -> int:
        """Return the number of True flags in all processes together."""
        return self.sums([self.own.count(flags)])[0]

    def sums(self, own: Sequence[int]) -> list[int]:
        """Return the sum of each number over processes."""
        return [int(total) for total in self._sum(torch.tensor(own, dtype=torch.int64)).tolist()]

    def summed(self, own: Update) -> Update:
        """Return an update with counts over all processes; the overlap of heads is not known then."""
        kinds = ("pruned", "grown", "active", "explored")
        names = list(own.sizes)
        sums = iter(self.sums([getattr(own, kind)[name] for kind in kinds for name in names]))
        pruned, grown, active, explored = ({name: next(sums) for name in names} for _ in kinds)
        return replace(own, pruned=pruned, grown=grown, active=active, explored=explored, head_overlap=None)

    def _kth_largest(self, keys: Tensor, k: int) -> tuple[int, int]:
        """Return the k-th largest key, and the number of keys equal to it among the k largest."""
        bits = 8 * keys.element_size()
        low, found, left = bits, 0, k
        among = keys
        while low:
            width = min(DIGIT_BITS, low)
            low -= width
            digits = (among >> low) & ((1 << width) - 1)
            if low + width == bits:  # the sign bit: negative keys come first
                digits ^= 1 << (width - 1)
            histogram = self._sum(torch.bincount(digits.long(), minlength=1 << width))
            above = histogram.flip(0).cumsum(0).flip(0)  # at least this digit
            digit = int((above >= left).nonzero().max())
            left -= int(above[digit] - histogram[digit])
            among = among[digits == digit]
            found = (found << width) | digit
        return found - (1 << (bits - 1)), left

    def _sum(self, counts: Tensor) -> Tensor:
        total = counts.to(self.device, torch.int64)
        distributed.all_reduce(total, group=self.group)
        return total.cpu()

    def _counts(self, own: int) -> Tensor:
        """Return one number of every process."""
        mine = torch.tensor([own], device=self.device)
        every = [torch.empty_like(mine) for _ in range(distributed.get_world_size(self.group))]
        distributed.all_gather(every, mine, group=self.group)
        return torch.cat(every).cpu()


@dataclass(frozen=True)
class _Shifted:
    """Random numbers for positions counted from ``start``."""

    stream: Draws
    start: int

    def uniform(self, where: slice) -> Array:
        return self.stream.uniform(self._whole(where))

    def gumbel(self, where: slice) -> Array:
        return self.stream.gumbel(self._whole(where))

    def _whole(self, where: slice) -> slice:
        return slice(where.start + self.start, where.stop + self.start, where.step)


def _ascending_bits(values: Tensor) -> Tensor:
    """Return integers in the order of floats; both zeros are equal."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    bits = (values + 0.0).view(kind)
    return torch.where(bits < 0, bits ^ torch.iinfo(kind).max, bits)
