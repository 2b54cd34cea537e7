"""A spec as a ``torch.nn.Module``: its computation, and access to its weights and masks by name."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from nt_core import DataError, EnsembleSpec
from nt_core.graph import INPUT
from nt_core.masks import Mask
from nt_torch.network.execution import Execution
from nt_torch.network.heads import run_batched
from nt_torch.network.losses import ensemble_loss
from nt_torch.network.members import from_examples, from_rows
from nt_torch.network.parts import MASK, PartModule, module_key, own_tensor
from nt_torch.processes.shards import whole


class Ensemble(nn.Module):
    """A compiled spec; ``model(x)`` returns logits of shape (M, B, …).

    The model is an ordinary module. Its weights are dense parameters with exact zeros where a connection is
    inactive. Each masked ``weight`` has a boolean buffer ``weight_mask``. Heads share the backbone's output.

    Attributes:
        spec: of the ensemble.
        backbone: module of the shared blocks; None where members share nothing.
        heads: one module for each member.
        execution: execution options, which may be changed at any time.
    """

    def __init__(self, spec: EnsembleSpec) -> None:
        super().__init__()
        self.spec = spec
        self.execution = Execution()
        layout = spec.layout
        shapes, output = layout.graph.shapes, layout.graph.output
        self.backbone = (
            PartModule(layout.backbone, shapes, layout.crossing) if layout.backbone is not None else None
        )
        self.heads = nn.ModuleList(PartModule(head, shapes, (output,)) for head in layout.heads)
        roots = {head.name: f"heads.{i}" for i, head in enumerate(layout.heads)}
        self._paths = {
            p.name: f"{roots.get(p.part, p.part)}.ops.{module_key(p.block.name, p.node.name)}.{p.weight.name}"
            for p in layout.weights
        }

    def forward(self, x: Tensor) -> Tensor:
        """Compute every member's logits. (B, *input shape) → (M, B, *output shape).

        In training, members with rows of their own (``layout.own_rows``) get B / M of them each, in order.
        """
        layout = self.spec.layout
        expected, given = layout.input_shape, cast("object", x)
        if not isinstance(given, fx.Proxy) and tuple(x.shape[1:]) != expected:
            raise DataError(
                f"input: expected shape (batch, {', '.join(map(str, expected))}), found {tuple(x.shape)}; "
                "images are (batch, channels, height, width)"
            )
        values = {INPUT: from_examples(layout, x, training=self.training)}
        execution, output = self.execution, layout.graph.output
        recompute = execution.activation_checkpointing and self.training and torch.is_grad_enabled()
        if self.backbone is not None:
            values = self.backbone(values, recompute=recompute)
        if not self.heads:
            return from_rows(layout, values[output])
        if execution.heads == "batched":
            return run_batched([*self.heads], values, recompute=recompute)[output]
        return torch.stack([head(values, recompute=recompute)[output] for head in self.heads])

    def loss(self, x: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the loss that the spec means, of a batch: one scalar to call ``backward()`` on.

        Where a wrapper computes the logits (DistributedDataParallel), call
        ``nt_torch.ensemble_loss(wrapped(x), targets, model.spec)`` instead, because this method passes it by.
        ``torch.compile(model.loss)`` compiles model and loss together.

        Args:
            x: (B, *input shape).
            targets: as in :func:`nt_torch.ensemble_loss`.
            label_smoothing: the same.

        Example:
            >>> import nt_models, nt_torch
            >>> from nt_core import Independent
            >>> graph = nt_models.mlp(inputs=8, hidden=(), classes=3)
            >>> model = nt_torch.compile(EnsembleSpec(graph=graph, structure=Independent(count=2)))
            >>> x, y = torch.zeros(4, 8), torch.tensor([0, 1, 2, 0])
            >>> round(model.loss(x, y).item(), 4)  # the sum of two members' log 3
            2.1972
        """
        return ensemble_loss(self(x), targets, self.spec, label_smoothing=label_smoothing)

    @property
    def execution(self) -> Execution:
        """Execution options of the model.

        Raises:
            SpecError: options that the model does not support are assigned.
        """
        return self._execution

    @execution.setter
    def execution(self, wanted: Execution) -> None:
        self._execution = wanted.expect_possible(self.spec.layout)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Names of masks, which DistributedDataParallel need not send, because all processes select alike."""
        return [name for name, _ in self.named_buffers() if name.endswith(f".{MASK}")]

    def array(self, name: str) -> Tensor:
        """Return the present parameter or buffer of a weight's full name.

        Do not keep the result, because wrappers may replace parameters.

        Raises:
            TopologyError: weight_norm, spectral_norm, pruning or another parametrization computes it.
        """
        return own_tensor(self.owner(name), self._paths[name].rpartition(".")[2], name)

    def owner(self, name: str) -> nn.Module:
        """Return the module that holds a weight and its mask."""
        return self.get_submodule(self._paths[name].rpartition(".")[0])

    def mask(self, name: str) -> Tensor | None:
        """Return the boolean mask of a weight, True where active; None: no mask."""
        return getattr(self.owner(name), MASK, None) if name.endswith(".weight") else None

    @property
    def masked(self) -> tuple[str, ...]:
        """The full names of all weights that have a mask."""
        return tuple(p.name for p in self.spec.layout.sparsifiable if self.mask(p.name) is not None)

    @property
    def density(self) -> float:
        """Active over all maskable weights; of a sharded model, every process must ask."""
        masks = [whole(mask) for name in self.masked if (mask := self.mask(name)) is not None]
        size = sum(mask.numel() for mask in masks)
        return sum(int(mask.count_nonzero()) for mask in masks) / size if size else 1.0

    def set_mask(self, name: str, mask: Mask) -> None:
        """Give a weight a mask and set its inactive elements to zero."""
        active = self.register_mask(name, mask)
        with torch.no_grad():
            self.array(name).masked_fill_(~active, 0)

    def register_mask(self, name: str, mask: Mask) -> Tensor:
        """Register a mask beside a weight, whose values are unchanged, and return it as a tensor."""
        active = torch.from_numpy(mask.dense()).to(self.array(name).device)
        self.owner(name).register_buffer(MASK, active)
        return active


def fast_layout(model: Ensemble) -> Ensemble:
    """Convert a network of convolutions to channels-last memory, which CPUs and GPUs compute faster.

    Training and loading both convert, because another layout gives other last digits.
    """
    if any(parameter.dim() == 4 for parameter in model.parameters()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def find_device(name: torch.device | str | None) -> torch.device:
    """Return an available device; without a name a GPU if there is one, else the CPU.

    Raises:
        DataError: there is no such device.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"device {str(name)!r}: {reason}; use cpu, or leave the device out") from None
    return device


def unwrap(model: nn.Module) -> Ensemble:
    """Return the ensemble inside the wrappers of ``torch.compile``, DDP or accelerate.

    Raises:
        DataError: the module contains no ensemble.
    """
    inner: object = model
    while not isinstance(inner, Ensemble):
        wrapped = [getattr(inner, name, None) for name in ("module", "_orig_mod")]
        found = [candidate for candidate in wrapped if isinstance(candidate, nn.Module)]
        if not found:
            raise DataError(
                "model: expected what nt_torch.compile returned, perhaps wrapped; "
                f"found {type(inner).__name__}"
            )
        inner = found[0]
    return inner


def as_numpy(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Return a tensor as a NumPy array on the CPU, sharing memory where it can; bfloat16 becomes float32.

    A sharded tensor is gathered; all of its processes must call this.
    """
    tensor = whole(tensor.detach())
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return tensor.cpu().numpy()
