"""Memory and communication volume of one process of many that train a spec, by arithmetic alone.

The figures are those of the PyTorch backend, which keeps weights dense, with a ``bool`` mask beside each
weight that may be sparse. Bytes are those of tensors. Activations and scalars are not counted, nor is the
memory that allocator, CUDA, kernels and communication libraries need for themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from nt_core.cost.memory import held_by_one, update_memory
from nt_core.cost.messages import Messages, update_messages
from nt_core.errors import SpecError
from nt_core.spec import EnsembleSpec
from nt_core.structure import Layout, PlacedWeight
from nt_core.topology import expect_shardable
from nt_core.training import SGD, AnyOptimizer

Wrap = Literal["ddp", "fsdp2"]
Units = Literal["parts", "blocks"]
Dtype = Literal["float32", "mixed", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Bytes of one number: kept (weights, gradients, optimiser state), computed with, and reduced."""

    kept: int
    computed: int
    reduced: int


WIDTHS: Final[Mapping[Dtype, Widths]] = MappingProxyType(
    {
        "float32": Widths(kept=4, computed=4, reduced=4),
        "mixed": Widths(kept=4, computed=2, reduced=4),
        "bfloat16": Widths(kept=2, computed=2, reduced=2),
    }
)
"""``mixed``: float32 weights, bfloat16 arithmetic (autocast; FSDP2's policy with float32 reduction)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Bytes on the device of the rank that holds most.

    Attributes:
        parameters: of all weights, active or not.
        gradients: as many numbers, after a backward pass.
        optimizer: state tensors of the weights' shapes.
        masks: a byte for each maskable weight.
        smoothed: the float32 mean of dense gradients (SNFS).
        statistics: running means and variances.
        buckets: of DDP, in which it reduces gradients (``gradient_as_bucket_view`` saves them).
        step: added by forward and backward: autocast's copies of weights under DDP; FSDP2's whole units.
        update: added by a topology update; see :mod:`nt_core.cost.memory`.
    """

    parameters: int
    gradients: int
    optimizer: int
    masks: int
    smoothed: int
    statistics: int
    buckets: int
    step: int
    update: int

    @property
    def held(self) -> int:
        """Bytes held from one step to the next, gradients included."""
        return (
            self.parameters
            + self.gradients
            + self.optimizer
            + self.masks
            + self.smoothed
            + self.statistics
            + self.buckets
        )

    @property
    def peak(self) -> int:
        """Peak bytes without activations; a step's extra memory is freed before an update needs its own."""
        return self.held + max(self.step, self.update)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """Bytes in the memory of the host, for one rank.

    Attributes:
        seen: all masks so far, one bit for each maskable weight.
        update: added by a topology update.
    """

    seen: int
    update: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Memory and communication volume of each of several processes; the module's documentation defines them.

    Attributes:
        ranks: number of processes, N.
        wrap: ``ddp``: each process holds all weights; ``fsdp2``: weights are divided by rows.
        units: units that FSDP2 gathers at a time.
        dtype: see :data:`WIDTHS`.
        parameters: number of trained elements, active or not.
        maskable: number of trained elements with a mask.
        active: number of active maskable elements.
        device: bytes on the device.
        host: bytes on the host.
        step_sent: bytes that each rank sends for one optimiser step by ring algorithms.
        messages: communication of one topology update.
    """

    ranks: int
    wrap: Wrap
    units: Units
    dtype: Dtype
    parameters: int
    maskable: int
    active: int
    device: DeviceMemory
    host: HostMemory
    step_sent: int
    messages: Messages

    @property
    def update_sent(self) -> int:
        """Bytes that each rank sends for one topology update by ring algorithms."""
        return self.messages.sent(self.ranks)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as values that JSON can hold."""
        device = {**asdict(self.device), "held": self.device.held, "peak": self.device.peak}
        messages = {**asdict(self.messages), "sent": self.update_sent}
        return {**asdict(self), "device": device, "messages": messages}


def scale(
    spec: EnsembleSpec,
    *,
    ranks: int,
    wrap: Wrap = "ddp",
    dtype: Dtype = "float32",
    states: int = 1,
    units: Units = "parts",
) -> Scale:
    """Compute memory and communication volume of each process that trains a spec.

    Where members are trained one after another, the figures are those of one turn. A topology update is
    counted with the drop fraction at the start of training.

    Args:
        spec: of the ensemble.
        ranks: number of processes.
        wrap: ``ddp`` or ``fsdp2``.
        dtype: of weights and arithmetic, see :data:`WIDTHS`.
        states: number of tensors of a weight's shape that the optimiser keeps, see :func:`state_tensors`.
        units: of FSDP2: ``parts``, the backbone and each head; ``blocks``, each block of each part.

    Returns:
        The figures, computed without any array of a weight's size.

    Raises:
        SpecError: ``ranks`` is below 1, or the topology cannot be sharded.

    Example:
        >>> import nt_models
        >>> from nt_core import PRESETS
        >>> spec = PRESETS["neurotrails"](nt_models.llama_tiny())
        >>> figures = scale(spec, ranks=8, wrap="fsdp2", states=2)
        >>> figures.parameters, figures.device.parameters, figures.device.masks
        (527808, 263904, 63744)
    """
    if ranks < 1:
        raise SpecError(f"ranks: expected at least 1, found {ranks}")
    spec = spec.turns[0]
    if wrap == "fsdp2":
        expect_shardable(spec.topology)
    widths, parts = WIDTHS[dtype], ranks if wrap == "fsdp2" else 1
    trained = [p for p in spec.layout.weights if p.weight.trainable]
    masked = spec.layout.sparsifiable if spec.topology.masked else ()
    own, maskable = held_by_one(trained, parts), held_by_one(masked, parts)
    update = update_memory(spec, masked, parts=parts, sharded=wrap == "fsdp2", width=widths.kept)
    step, sent = (
        _copies_and_ring(spec.layout, trained, ranks, widths)
        if wrap == "ddp"
        else _units_and_rings(spec.layout, units, ranks, widths)
    )
    device = DeviceMemory(
        parameters=own * widths.kept,
        gradients=own * widths.kept,
        optimizer=own * widths.kept * states,
        masks=maskable,
        smoothed=0 if spec.topology.momentum_beta is None else 4 * maskable,
        statistics=_statistics(spec.layout) * widths.kept,
        buckets=own * widths.kept if wrap == "ddp" else 0,
        step=step,
        update=update.device,
    )
    return Scale(
        ranks=ranks,
        wrap=wrap,
        units=units,
        dtype=dtype,
        parameters=sum(p.weight.size for p in trained),
        maskable=sum(p.weight.size for p in masked),
        active=sum(spec.counts[p.name] for p in masked),
        device=device,
        host=HostMemory(seen=update.seen, update=update.host),
        step_sent=sent,
        messages=update_messages(spec, ranks=ranks, sharded=wrap == "fsdp2"),
    )


def state_tensors(optimizer: AnyOptimizer) -> int:
    """Return the number of tensors of a weight's shape that an optimiser keeps.

    Example:
        >>> from nt_core.training import AdamW
        >>> state_tensors(SGD(momentum=0)), state_tensors(SGD()), state_tensors(AdamW())
        (0, 1, 2)
    """
    if isinstance(optimizer, SGD):
        return int(optimizer.momentum > 0)
    return 2


def _statistics(layout: Layout) -> int:
    return sum(p.weight.size for p in layout.weights if not p.weight.trainable)


def _copies_and_ring(
    layout: Layout, trained: Sequence[PlacedWeight], ranks: int, widths: Widths
) -> tuple[int, int]:
    """Return the bytes of autocast's copies, and the bytes that DDP sends: gradients and statistics."""
    cast = sum(p.weight.size for p in layout.sparsifiable) if widths.computed < widths.kept else 0
    size = sum(p.weight.size for p in trained) * widths.reduced
    passed_on = _statistics(layout) * widths.kept if ranks > 1 else 0
    return cast * widths.computed, -(-2 * (ranks - 1) * size // ranks) + passed_on


def _units_and_rings(layout: Layout, units: Units, ranks: int, widths: Widths) -> tuple[int, int]:
    """Return the peak bytes of whole units, and the bytes of FSDP2's two all-gathers and reduce-scatter."""
    found = _units(layout, units)
    shards = [held_by_one(unit, ranks) for unit in found]
    sent = (ranks - 1) * sum(shards) * (2 * widths.computed + widths.reduced)
    whole = [ranks * shard * widths.computed for shard in shards]
    gradients = [sum(p.weight.size for p in unit) * widths.computed for unit in found]
    reduced = [ranks * shard * widths.reduced for shard in shards]
    ahead = [0, *(whole if ranks > 1 else [0] * len(whole))]
    forward = (2 if ranks > 1 else 1) * max(whole, default=0)
    backward = [
        max(before + own + gradient + after, before + gradient + scattered)
        for before, own, gradient, scattered, after in zip(
            ahead, whole, gradients, reduced, [*reduced[1:], 0], strict=False
        )
    ]
    return max(forward, *backward), sent


def _units(layout: Layout, units: Units) -> list[list[PlacedWeight]]:
    """Group the trained weights by the units gathered at a time, in the order of the forward pass."""
    found: dict[tuple[str, ...], list[PlacedWeight]] = {}
    for placed in layout.weights:
        if placed.weight.trainable:
            key = (placed.part,) if units == "parts" else (placed.part, placed.block.name)
            found.setdefault(key, []).append(placed)
    return list(found.values())
