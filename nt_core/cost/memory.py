"""Memory that one process needs during a topology update only: copies, selection, selected positions."""

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
"""Bytes on device and host for each position of the weight under selection, as bounds on measurements;
``drawing`` is the device with random numbers, ``sharded`` the host where processes select together."""

NOMINEE: Final = 12
"""Bytes of a position and its score, for the candidates of each weight where all weights compete."""

CHOSEN: Final = 2 * 8
"""Bytes of one pruned position and one grown position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateMemory:
    """Bytes that one topology update needs, and bytes that remain after it.

    Attributes:
        device: on the device: the dense gradient, kept from the backward pass on, and the selection there.
        host: on the host: two sets of bits, and the arrays that NumPy selects from.
        seen: on the host: bits of all masks so far, which remain.
    """

    device: int = 0
    host: int = 0
    seen: int = 0


def update_memory(
    spec: EnsembleSpec, masked: Sequence[PlacedWeight], *, parts: int, sharded: bool, width: int
) -> UpdateMemory:
    """Compute the memory of a topology update in the process that holds most.

    Criteria of plain arithmetic select on the device. Other criteria select in NumPy on the host, which then
    has a copy of every weight, gradient and mask at once. The memory of criteria of paths (CHT) and of users'
    own policies is not counted.

    Args:
        spec: of the part that is trained at once.
        masked: the weights that have a mask.
        parts: number of parts into which a weight is divided.
        sharded: whether processes select together.
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
    """Count the elements of the process that holds most; weights are divided by rows, rounded up.

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
