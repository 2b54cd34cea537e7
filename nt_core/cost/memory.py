"""What one process holds only while it updates a topology: copies, the choosing, what was chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from nt_core.spec import EnsembleSpec
from nt_core.structure import PlacedWeight
from nt_core.topology import DeclaredTopology

Place = Literal["device", "drawing", "host", "sharded"]

CHOOSING: Final[Mapping[Place, tuple[int, int]]] = MappingProxyType(
    {"device": (36, 0), "drawing": (76, 0), "host": (9, 8), "sharded": (9, 56)}
)
"""Bytes on device and host for each position of the weight that is chosen from: bounds on what was measured;
``drawing`` is the device with random numbers, ``sharded`` the host where processes choose together."""

NOMINEE: Final = 12
"""Bytes of a position and its score, for each weight's candidates where all weights compete."""

CHOSEN: Final = 2 * 8
"""Bytes of one position that is pruned and one that grows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateMemory:
    """Bytes that one topology update adds, and what it leaves behind.

    Attributes:
        device: on the device: the dense gradient, kept from the backward pass on, and what is chosen there.
        host: beside it: two sets of bits, and what NumPy chooses from.
        seen: bits of all masks so far, on the host, that stay.
    """

    device: int = 0
    host: int = 0
    seen: int = 0


def update_memory(
    spec: EnsembleSpec, masked: Sequence[PlacedWeight], *, parts: int, sharded: bool, width: int
) -> UpdateMemory:
    """Work out what a topology update needs in the process that holds most.

    Plain arithmetic is chosen by on the device, other criteria by NumPy on the host, which then has a copy of
    every weight, gradient and mask at once. What criteria of paths need (CHT) is not counted, nor are
    policies of one's own.

    Args:
        spec: what is trained at once.
        masked: its weights that have a mask.
        parts: into how many a weight is divided.
        sharded: whether processes choose together.
        width: bytes of one number of a gradient.

    Example:
        >>> import nt_models
        >>> from nt_core import PRESETS
        >>> spec = PRESETS["rigl"](nt_models.mlp(inputs=64, hidden=(64,), classes=10))
        >>> update_memory(spec, spec.layout.sparsifiable, parts=1, sharded=False, width=4)
        UpdateMemory(device=170944, host=1184, seen=592)
    """
    topology = spec.topology
    if not topology.updates:
        return UpdateMemory()
    counts = [held_by_one([placed], parts) for placed in masked]
    positions, seen = sum(counts), sum(-(-count // 8) for count in counts)
    gradient, momentum = topology.reads_gradient(), topology.momentum_beta is not None
    place = _place(topology, sharded)
    on_device, on_host = CHOOSING[place]
    here = place in ("device", "drawing")
    together = topology.competition == "global"
    among = positions if together else max(counts, default=0)
    choice = CHOSEN * _swapped(spec, masked, parts) + NOMINEE * together * positions
    read = (4 + 1 + 4 * gradient + 4 * momentum) * positions
    kept = width * positions if gradient or momentum else 0
    return UpdateMemory(
        device=kept + on_device * among + (choice if here else 0),
        host=2 * seen + on_host * among + (0 if here else read + choice),
        seen=seen,
    )


def held_by_one(weights: Iterable[PlacedWeight], parts: int) -> int:
    """Count the elements of the process that holds most: weights are divided by rows, rounded up.

    Example:
        >>> import nt_models
        >>> from nt_core import Single
        >>> layout = Single().layout(nt_models.mlp(inputs=4, hidden=(), classes=3))
        >>> [held_by_one(layout.weights, parts) for parts in (1, 2, 3, 100)]
        [15, 10, 5, 5]
    """
    return sum(-(-p.weight.shape[0] // parts) * (p.weight.size // p.weight.shape[0]) for p in weights)


def _place(topology: DeclaredTopology, sharded: bool) -> Place:
    if not all(criterion.exact for criterion in topology.criteria):
        return "sharded" if sharded else "host"
    return "drawing" if any(criterion.uses_random for criterion in topology.criteria) else "device"


def _swapped(spec: EnsembleSpec, masked: Sequence[PlacedWeight], parts: int) -> int:
    """Count the positions that one process prunes, on average over processes, when training starts."""
    counts = ((spec.counts[p.name], p.weight.size) for p in masked)
    return -(-sum(spec.topology.exchanged(active, size) for active, size in counts) // parts)
