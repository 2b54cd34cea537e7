"""Exact zeros of inactive weights, however somebody wrote to them: an average, another optimiser, a copy."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from nt_torch.network.remask import remask_

MASK = "weight_mask"
"""Name of the buffer beside a masked ``weight``: bool, True where a connection is active."""

Version: TypeAlias = tuple[int, int, int]
"""Identity of a tensor's present contents: object, count of changes, address."""


def version(tensor: Tensor) -> Version:
    """Return the identity of a tensor's present contents, because PyTorch counts every change in place.

    Example:
        >>> x = torch.zeros(2)
        >>> before = version(x)
        >>> _ = x.add_(1)
        >>> before == version(x)
        False
    """
    return id(tensor), tensor._version, tensor.data_ptr()


@dataclass(slots=True)
class _Known:
    """A weight and its mask when the inactive weights were last known to be zero."""

    weight: Version
    mask: Version
    active: int


class Zeros:
    """The masked weights of a model, whose inactive elements are set to zero wherever somebody has written.

    A weight is looked at only if it, or its mask, changed since it was last known to be right, so asking
    costs nothing. Sharded weights, and weights that ``torch.func`` has replaced, are left alone.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._owners: dict[str, nn.Module] = {}

    def add(self, name: str, owner: nn.Module) -> None:
        """Follow a weight whose mask was registered just now, and whose values are taken as they are."""
        self._owners[name] = owner
        self._known.pop(name, None)

    def note(self, names: Iterable[str] | None = None) -> None:
        """Take weights and masks as they are: their inactive elements are zero."""
        for name, weight, mask in self._plain(self._owners if names is None else names):
            known = self._known.get(name)
            now = version(mask)
            same = known is not None and known.mask == now
            active = known.active if known is not None and same else int(mask.count_nonzero())
            self._known[name] = _Known(version(weight), now, active)

    def forget(self) -> None:
        """Take every mask as it is, whatever its count was: a state was loaded."""
        self._known.clear()

    @torch.no_grad()
    def settle(self, names: Iterable[str] | None = None) -> None:
        """Set inactive elements to zero in weights that changed since they were last known to be right."""
        changed = [
            (name, weight, mask)
            for name, weight, mask in self._plain(self._owners if names is None else names)
            if (known := self._known.get(name)) is None
            or known.weight != version(weight)
            or known.mask != version(mask)
        ]
        if not changed:
            return
        self._cut_unions()
        for _, weight, mask in changed:
            remask_(weight.detach(), mask)
        self.note(name for name, _, _ in changed)

    def _cut_unions(self) -> None:
        """Cut masks that were averaged, which makes their union, back to their counts: the largest stay."""
        every = [each for each in self._plain(self._owners) if each[0] in self._known]
        if all(self._known[name].mask == version(mask) for name, _, mask in every):
            return
        before = sum(self._known[name].active for name, _, _ in every)
        now = sum(int(mask.count_nonzero()) for _, _, mask in every)
        if now <= before:  # copied from a model that is as sparse, or sparser
            return
        warnings.warn(
            f"masks: {now} connections are active where {before} were: masks were averaged into their union; "
            "of each weight's average the largest stay, as many as there were. Leave buffers out of the "
            "average, or call topology.average(…) after it",
            stacklevel=4,
        )
        for name, weight, mask in every:
            remask_(weight.detach(), mask)
            scores = torch.where(mask, weight.detach().abs().double(), -1.0).reshape(-1)
            kept = torch.sort(scores, descending=True, stable=True).indices[: self._known[name].active]
            mask.copy_(torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, kept, True).view(mask.shape))

    def _plain(self, names: Iterable[str]) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        for name in names:
            owner = self._owners.get(name)
            if owner is None:
                continue
            weight, mask = owner._parameters.get("weight"), owner._buffers.get(MASK)
            if type(weight) is nn.Parameter and type(mask) is Tensor and not weight.is_inference():
                yield name, weight, mask
