"""One masked weight of a model: its parameter, its mask, and its optimiser state, kept at zero together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nt_core.errors import TopologyError
from nt_core.policies import Layer, Swap
from nt_core.random import Stream
from nt_core.structure import PlacedWeight
from nt_core.topology import AnyTopology, Bits, draw, expect_shardable, pack, unpack
from nt_torch.network.model import Ensemble, as_numpy
from nt_torch.network.parts import own_tensor
from nt_torch.network.remask import remask_
from nt_torch.network.zeros import MASK, Version, version
from nt_torch.processes.shards import ShardedArrays, first_row, is_sharded, like, local, placed_like


@dataclass(frozen=True, slots=True)
class MaskedWeight:
    """A weight and its mask; both are looked up at each use, because wrappers may replace parameters.

    Attributes:
        placed: name, shape and initial distribution of the weight.
        owner: the module that holds the weight.
    """

    placed: PlacedWeight
    owner: nn.Module

    @property
    def name(self) -> str:
        """The weight's full name."""
        return self.placed.name

    @property
    def weight(self) -> nn.Parameter:
        """The parameter, dense, with exact zeros where inactive.

        Raises:
            TopologyError: weight_norm, spectral_norm, pruning or another parametrization computes it.
        """
        weight = own_tensor(self.owner, "weight", self.name)
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def mask(self) -> Tensor:
        """The mask, bool, True where active."""
        mask = getattr(self.owner, MASK)
        assert isinstance(mask, Tensor)
        return mask

    @property
    def start(self) -> int:
        """First position, in the whole weight, of this process's part; 0 unless sharded."""
        weight = self.weight
        return first_row(weight) * math.prod(weight.shape[1:]) if is_sharded(weight) else 0

    def shard_mask(self) -> None:
        """Shard the mask like the weight, if the weight is sharded."""
        self.owner.register_buffer(MASK, like(self.weight, self.mask))

    def version(self) -> Version:
        """Identity of the weight's present contents, because PyTorch counts every change in place."""
        weight = self.weight
        return id(weight), *version(local(weight))[1:]

    def layer(self, gradient: Tensor | None, momentum: Tensor | None = None, *, on_device: bool) -> Layer:
        """Return the arrays of this process's part for a policy: flat, on its device or as NumPy arrays."""
        tensors = (self.weight.detach(), gradient, self.mask, momentum)
        parts = (None if tensor is None else local(tensor) for tensor in tensors)
        weights, gradients, active, smoothed = (
            None if t is None else (t if on_device else as_numpy(t)).reshape(-1) for t in parts
        )
        return Layer(
            name=self.name,
            weights=weights,
            gradients=gradients,
            active=active,
            momentum=smoothed,
            shape=self.placed.weight.shape,
        )

    def bits(self) -> Bits:
        """Return this process's part of the mask, packed, on the host."""
        return pack(as_numpy(local(self.mask)))

    def whole_seen(self, bits: Bits) -> Tensor:
        """Return this process's packed positions for a state; for a sharded weight as sharded flags."""
        if not is_sharded(self.weight):
            return torch.from_numpy(bits.copy())
        part = local(self.weight)
        return placed_like(self.weight, torch.from_numpy(unpack(bits, part.numel())).view(part.shape))

    def own_seen(self, seen: Tensor) -> Bits:
        """Return this process's part of a state's positions, packed, for any number of saving processes."""
        if seen.dtype == torch.uint8:
            if not is_sharded(self.weight):
                return np.array(as_numpy(seen), np.uint8)
            bits = np.asarray(as_numpy(seen), np.uint8)
            seen = torch.from_numpy(unpack(bits, self.weight.numel())).view(self.weight.shape)
        return pack(as_numpy(local(like(self.weight, seen))))

    @torch.no_grad()
    def apply(self, swap: Swap, grown_values: Stream | None) -> None:
        """Change the mask, and draw grown values if given a stream; :meth:`remask` clears inactive values."""
        pruned, grown = torch.as_tensor(swap.pruned), torch.as_tensor(swap.grown)
        weight, mask = local(self.weight), local(self.mask)
        flat = mask.clone(memory_format=torch.contiguous_format).view(-1)
        flat[pruned], flat[grown] = False, True
        mask.copy_(flat.view(mask.shape))
        if grown_values is not None and len(grown):
            drawn = torch.from_numpy(draw(self.placed.weight, grown_values, grown.cpu().numpy() + self.start))
            values = weight.clone(memory_format=torch.contiguous_format).view(-1)
            values[grown] = drawn.to(values)
            weight.copy_(values.view(weight.shape))

    @torch.no_grad()
    def remask(self) -> None:
        """Set inactive elements of the weight to zero."""
        remask_(local(self.weight.detach()), local(self.mask))

    @torch.no_grad()
    def any_inactive(self) -> bool:
        """Return whether an inactive element of this process's part is not zero."""
        return bool(local(self.weight.detach()).masked_fill(local(self.mask), 0).any())


def masked_weights(model: Ensemble) -> tuple[MaskedWeight, ...]:
    """List the weights of a model that have a mask, in the layout's order.

    Raises:
        TopologyError: some weights have one and others have lost it.
    """
    sparsifiable = model.spec.layout.sparsifiable
    placed = [p for p in sparsifiable if model.mask(p.name) is not None]
    if 0 < len(placed) < len(sparsifiable):
        lost = next(p.name for p in sparsifiable if model.mask(p.name) is None)
        raise TopologyError(
            f"weight {lost!r}: expected a mask, as the other weights have, found none; torch.nn.utils.prune "
            "deletes it: compile or load the model again"
        )
    return tuple(MaskedWeight(p, model.owner(p.name)) for p in placed)


def shards_of(masked: Sequence[MaskedWeight], topology: AnyTopology) -> ShardedArrays | None:
    """Return the array functions for sharded weights; None: the weights are not sharded.

    Raises:
        TopologyError: weights are sharded, but the topology reads more than each weight's elements.
    """
    sharded = [(each, weight) for each in masked if is_sharded(weight := each.weight)]
    if not sharded:
        return None
    if len(sharded) < len(masked):
        raise TopologyError(
            f"model: {len(sharded)} of its {len(masked)} masked weights are sharded; expected all or none: "
            "call fully_shard on the whole model, after its parts"
        )
    expect_shardable(topology)
    mesh = sharded[0][1].device_mesh
    starts = {each.name: each.start for each, _ in sharded}
    return ShardedArrays(mesh.get_group(), sharded[0][1].device, starts)
