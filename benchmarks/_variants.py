"""The ways of training that ``train_step.py`` compares: one step of each, as a function."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from _by_hand import HEADS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import nt_torch
from nt_core import EnsembleSpec

Optimizer = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=5e-4),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    # Its square root takes longer for exact zeros on CPUs where PyTorch takes it from MKL.
    "Adam, plain": lambda p: torch.optim.Adam(p, lr=1e-3),
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of training.

    Attributes:
        name: for the table.
        execution: of the masked model; None: the dense network written by hand.
        compiled: whether by ``torch.compile``, model and loss in one graph.
        bfloat16: whether under autocast.
    """

    name: str
    execution: nt_torch.Execution | None = None
    compiled: bool = False
    bfloat16: bool = False


_LOOP, _BATCHED = nt_torch.Execution(), nt_torch.Execution(heads="batched")
_AGAIN = nt_torch.Execution(activation_checkpointing=True)
DENSE = Variant(name="dense by hand")
MASKED = Variant(name="masked, loop", execution=_LOOP)
VARIANTS = (
    DENSE,
    MASKED,
    Variant(name="masked, batched", execution=_BATCHED),
    Variant(name="masked, loop, activation checkpointing", execution=_AGAIN),
    Variant(name="dense by hand, compiled", compiled=True),
    Variant(name="masked, loop, compiled", execution=_LOOP, compiled=True),
    Variant(name="masked, batched, compiled", execution=_BATCHED, compiled=True),
    Variant(name="dense by hand, bf16", bfloat16=True),
    Variant(name="masked, loop, bf16", execution=_LOOP, bfloat16=True),
    Variant(name="masked, batched, bf16", execution=_BATCHED, bfloat16=True),
)


@dataclass
class Trainee:
    """A variant that is ready to take steps.

    Attributes:
        run: takes one.
        topology: None of a dense network.
    """

    run: Callable[[], None]
    topology: nt_torch.Topology | None = field(default=None)


def make(
    variant: Variant,
    spec: EnsembleSpec,
    by_hand: Callable[[], nn.Module],
    batches: list[tuple[Tensor, Tensor]],
    optimizer: Optimizer,
) -> Trainee:
    """Make what takes a variant's steps; it goes through the batches again and again."""
    device = batches[0][0].device
    if variant.execution is None:
        model = by_hand().to(device)
    else:
        model = nt_torch.compile(spec, device=device)
        model.execution = variant.execution
    if batches[0][0].dim() == 4:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=variant.bfloat16):
            logits = model(x)
        if variant.execution is None:
            return cross_entropy(logits.float().flatten(0, 1), y.repeat(HEADS))
        return nt_torch.ensemble_loss(logits.float(), y)

    loss = torch.compile(loss_of, fullgraph=True) if variant.compiled else loss_of
    steps = optimizer(model.parameters())
    topology = None if variant.execution is None else nt_torch.Topology(model, steps, total_steps=10**6)
    turn: Iterator[tuple[Tensor, Tensor]] = itertools.cycle(batches)

    def run() -> None:
        steps.zero_grad()
        loss(*next(turn)).backward()
        steps.step()
        if topology is not None:
            topology.step()

    return Trainee(run, topology)
