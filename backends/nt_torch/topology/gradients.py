"""Dense gradients, kept from before they are masked until an update has read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nt_core.errors import TopologyError
from nt_core.masks import Moment
from nt_core.policies import expect_finite
from nt_core.random import Random
from nt_torch.processes.shards import ShardedArrays, local
from nt_torch.topology.arrays import TorchArrays
from nt_torch.topology.masked import MaskedWeight


@dataclass(frozen=True, slots=True)
class _Kept:
    """A dense gradient, and the tensor it was read from."""

    source: Tensor
    dense: Tensor


class DenseGradients:
    """The dense gradients of the present step, and their exponential mean where a topology reads that.

    Args:
        shards: the choices of processes that hold parts of the weights; None: each holds them whole.
        beta: of the mean; None: no mean is kept.

    Attributes:
        smoothed: weight's full name → the mean, float32, of the weight's shape.
    """

    def __init__(self, shards: ShardedArrays | None, beta: float | None) -> None:
        self._shards, self._beta = shards, beta
        self._kept: dict[str, _Kept] = {}
        self.smoothed: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Tensor]:
        return (kept.dense for kept in self._kept.values())

    def keep(self, masked: MaskedWeight, gradient: Tensor) -> None:
        """Copy a weight's gradient, before it is masked; add to the copy if a backward pass came since.

        A gradient that is zero wherever the mask is was masked before, and perhaps clipped since.
        """
        kept, mask = self._kept.get(masked.name), masked.mask
        if kept is not None and not bool(gradient.masked_fill(mask, 0).any()):
            self._kept[masked.name] = _Kept(gradient, kept.dense)
        elif kept is not None and kept.source is gradient:
            self._kept[masked.name] = _Kept(gradient, torch.where(mask, gradient, kept.dense + gradient))
        else:
            self._kept[masked.name] = _Kept(gradient, gradient.clone())

    def forget(self) -> None:
        """Drop the present step's; the mean stays."""
        self._kept = {}

    def take(self) -> Mapping[str, Tensor]:
        """Return the present step's by the weights' names, and drop them."""
        taken = {name: kept.dense for name, kept in self._kept.items()}
        self.forget()
        return taken

    def unscale(self, scale: Tensor | None) -> None:
        """Divide by the loss scale, which a fused optimiser removes only inside its kernel."""
        if scale is not None:
            for dense in self:
                dense.div_(scale)

    @torch.no_grad()
    def smooth(self) -> None:
        """Let the step's gradients enter their mean, in single precision."""
        if self._beta is None:
            return
        for name, kept in self._kept.items():
            if name not in self.smoothed:
                self.smoothed[name] = torch.zeros_like(kept.dense, dtype=torch.float32)
            self.smoothed[name].lerp_(kept.dense.float(), 1 - self._beta)

    def expect_finite(self, weights: Sequence[MaskedWeight], step: int, random: Random) -> None:
        """Stop before the optimiser's step, while the model is whole, if an update could not follow it.

        Args:
            weights: those whose gradients are read.
            step: the number of the step.
            random: the randomness of the run.

        Raises:
            TopologyError: naming the first weight whose gradient is not finite.
        """
        for masked in weights:
            kept = self._kept.get(masked.name)
            if kept is not None and not self._is_finite(kept.dense):
                self.forget()
                layer = masked.layer(local(kept.dense).cpu(), on_device=self._shards is None)
                moment = Moment(step, random, self._shards or TorchArrays(torch.device("cpu")))
                expect_finite(layer, moment, gradients=True)

    def forget_skipped(self, parameters: Iterable[nn.Parameter]) -> None:
        """Drop them if GradScaler found something infinite and skipped the step after they were kept."""
        if not self._kept:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not all(self._is_finite(tensor) for tensor in [*self, *gradients]):
            self.forget()

    def _is_finite(self, tensor: Tensor) -> bool:
        """Tell whether every number is finite, in all processes if they hold parts of it."""
        bad = not bool(torch.isfinite(local(tensor)).all())
        return not (bad if self._shards is None else self._shards.sums([bad])[0])


def expect_gradient(gradients: Mapping[str, Tensor], name: str, step: int) -> Tensor:
    """Return a weight's gradient, or the mean of its gradients.

    Raises:
        TopologyError: there is none, because the loss did not depend on the weight.
    """
    if name not in gradients:
        raise TopologyError(
            f"weight {name!r}, step {step}: it has no gradient, but the topology reads it; "
            "the loss must depend on every member, and backward() come before optimizer.step()"
        )
    return gradients[name]


class HeldBack:
    """Gradients that the optimiser must not see, because an update takes the place of its step."""

    def __init__(self) -> None:
        self._held: list[tuple[nn.Parameter, Tensor]] = []

    def hold(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take the gradients away: an optimiser passes over parameters without one."""
        for parameter in parameters:
            if parameter.grad is not None:
                self._held.append((parameter, parameter.grad))
                parameter.grad = None

    def give_back(self) -> None:
        """Put them back where they were."""
        for parameter, gradient in self._held:
            parameter.grad = gradient
        self._held = []
