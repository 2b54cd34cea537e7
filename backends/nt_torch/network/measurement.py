"""Measurement of the faster execution of heads, on the present machine, model and batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from nt_torch.network.execution import Execution, why_not_batched
from nt_torch.network.model import Ensemble
from nt_torch.network.zeros import MASK

WARM_UP: Final = 2
ROUNDS: Final = 5
WAYS: Final[tuple[Literal["loop", "batched"], ...]] = ("loop", "batched")


@dataclass(frozen=True, kw_only=True)
class MeasuredHeads:
    """Measurement of both executions of heads.

    Attributes:
        heads: the faster execution.
        seconds: median time of a forward and backward pass in each execution; empty if nothing was measured.
        reason: reason why nothing was measured, if so.
    """

    heads: Literal["loop", "batched"]
    seconds: Mapping[str, float]
    reason: str | None = None

    def to_event(self) -> dict[str, Any]:
        """Return the measurement as a plain record."""
        return {"event": "heads", **vars(self), "seconds": dict(self.seconds)}


def measure_heads(model: Ensemble, loss: Callable[[], Tensor], *, rounds: int = ROUNDS) -> MeasuredHeads:
    """Measure heads in a loop and batched, in turn, after a warm-up; the model is unchanged.

    Weights, gradients, running statistics and the sequence of random numbers are unchanged too.

    Args:
        model: on its device, in training mode.
        loss: computes a loss by the model, as a training step does.
        rounds: number of measurements of each execution.

    Example:
        >>> import nt_core, nt_models, nt_torch
        >>> graph = nt_models.mlp(inputs=8, hidden=(16, 16), classes=3)
        >>> model = nt_torch.compile(nt_core.PRESETS["neurotrails"](graph, sparsity=0.5))
        >>> found = measure_heads(model, lambda: model(torch.zeros(4, 8)).square().sum())
        >>> model.execution = model.execution.replace(heads=found.heads)
        >>> sorted(found.seconds)
        ['batched', 'loop']
    """
    reason = why_not_batched(model.spec.layout)
    if reason is not None:
        return MeasuredHeads(heads="loop", seconds={}, reason=reason)
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    with unchanged(model) as execution:
        for number in range(WARM_UP + rounds):
            for way in WAYS[:: 1 if number % 2 else -1]:
                model.execution = execution.replace(heads=way)
                try:
                    seconds = _seconds(model, loss)
                except torch.OutOfMemoryError:
                    if way == "loop":
                        raise
                    return MeasuredHeads(heads="loop", seconds={}, reason="batched heads need more memory")
                if number >= WARM_UP:
                    spent[way].append(seconds)
    medians = {way: statistics.median(times) for way, times in spent.items()}
    return MeasuredHeads(heads=min(WAYS, key=medians.__getitem__), seconds=medians)


def _seconds(model: Ensemble, loss: Callable[[], Tensor]) -> float:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = parameters[0].device
    _wait(device)
    began = time.perf_counter()
    torch.autograd.grad(loss(), parameters, allow_unused=True)
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def unchanged(model: Ensemble) -> Iterator[Execution]:
    """Restore everything that a forward pass changes: execution options, statistics, and random numbers."""
    execution = model.execution
    held = [(b, b.clone()) for name, b in model.named_buffers() if not name.endswith(f".{MASK}")]
    with torch.random.fork_rng():
        try:
            yield execution
        finally:
            model.execution = execution
            with torch.no_grad():
                for buffer, before in held:
                    buffer.copy_(before)
