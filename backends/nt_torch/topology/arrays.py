"""Selection and random numbers on PyTorch tensors of any device, bit for bit the same as in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nt_core.errors import TopologyError
from nt_core.random import Random

WORD = 0xFFFFFFFF
ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY = 0x1BD11BDA


@dataclass(frozen=True)
class TorchArrays:
    """:class:`nt_core.masks.Arrays` for tensors of one device."""

    device: torch.device

    def top_k(
        self, scores: Tensor | Callable[[slice], Tensor], among: Tensor, k: int, *, inverse: bool = False
    ) -> Tensor:
        """Return the ascending positions of the k largest scores; ties go to the lowest position."""
        positions = self.nonzero(~among if inverse else among)
        if not 0 <= k <= positions.shape[0]:
            raise TopologyError(
                f"k: {k} positions requested, {positions.shape[0]} available; "
                f"choose 0 to {positions.shape[0]}"
            )
        if k == 0:
            return positions[:0]
        everywhere = slice(0, among.shape[0], 1)
        values = (scores(everywhere) if callable(scores) else scores)[positions]
        bad = torch.isnan(values)
        if bool(bad.any()):
            first = int(positions[bad][0])
            raise TopologyError(f"scores: NaN at position {first}; skip this update")
        threshold = torch.topk(values, k, sorted=False).values.min()
        chosen = values > threshold
        ties = values == threshold
        chosen |= ties & (ties.cumsum(0) <= k - chosen.sum())
        return positions[chosen]

    def draws(self, random: Random, *, weight: str, step: int, purpose: str) -> TorchStream:
        """Return the random numbers of a weight, step and purpose."""
        return TorchStream(random.at(weight=weight, step=step, purpose=purpose).key, self.device)

    def first_not_finite(self, array: Tensor) -> int | None:
        """Return the first position that holds NaN or an infinity."""
        bad = ~torch.isfinite(array)
        return int(bad.nonzero()[0]) if bool(bad.any()) else None

    def concatenate(self, arrays: Sequence[Tensor]) -> Tensor:
        """Join flat tensors."""
        return torch.cat(list(arrays))

    def ones(self, count: int) -> Tensor:
        """Return ``count`` flags, all True."""
        return torch.ones(count, dtype=torch.bool, device=self.device)

    def nonzero(self, flags: Tensor) -> Tensor:
        """Return the ascending positions of True."""
        return flags.nonzero().squeeze(1)

    def count(self, flags: Tensor) -> int:
        """Return the number of True flags."""
        return int(torch.count_nonzero(flags))


@dataclass(frozen=True)
class TorchStream:
    """The numbers of :class:`nt_core.random.Stream`, computed on a device.

    64-bit integers hold the 32-bit words, because PyTorch has no unsigned 32-bit arithmetic everywhere.
    """

    key: tuple[int, int]
    device: torch.device

    def uniform(self, where: slice) -> Tensor:
        """Return the float64 numbers in (0, 1) of some positions, exactly as in NumPy."""
        positions = torch.arange(where.start, where.stop, where.step, device=self.device)
        high, low = threefry2x32(self.key, positions & WORD, positions >> 32)
        return (((high << 20) | (low >> 12)).double() + 0.5) * 2.0**-52

    def gumbel(self, where: slice) -> Tensor:
        """Refuse, because logarithms differ between libraries in the last bit, so NumPy must compute them."""
        raise TopologyError("gumbel numbers are drawn by NumPy for every backend")


def threefry2x32(key: tuple[int, int], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypt by Threefry-2×32 with 20 rounds (Salmon et al. 2011), on int64 tensors of 32-bit words."""
    keys = (*key, PARITY ^ key[0] ^ key[1])
    x0, x1 = (low + keys[0]) & WORD, (high + keys[1]) & WORD
    for number in range(20):
        turn = ROTATIONS[number % 8]
        x0 = (x0 + x1) & WORD
        x1 = (((x1 << turn) & WORD) | (x1 >> (32 - turn))) ^ x0
        if number % 4 == 3:
            group = number // 4 + 1
            x0 = (x0 + keys[group % 3]) & WORD
            x1 = (x1 + keys[(group + 1) % 3] + group) & WORD
    return x0, x1
