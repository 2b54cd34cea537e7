"""The loss of an ensemble."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nt_core import DataError, EnsembleSpec
from nt_core.metrics import IGNORED
from nt_core.structure import Reduction


def ensemble_loss(
    logits: Tensor,
    targets: Tensor,
    spec: EnsembleSpec | None = None,
    *,
    reduction: Reduction | None = None,
    label_smoothing: float = 0.0,
    distillation: float | None = None,
) -> Tensor:
    """Cross-entropy of every member, combined as a spec means it.

    Members of ``independent``, ``mimo``, and ``fission`` are summed, because their mean divides every
    member's gradient by M. ``model.loss(x, targets)`` gives the loss its spec; otherwise, give it here.

    Args:
        logits: (M, B, classes), or (M, B, T, classes) for sequences.
        targets: (B,) or (B, T) class numbers, the same for all members; or (M·B,), each member's own,
            member-major. Those of -100 are ignored: the loss is the mean over the others, and 0 if there are
            none.
        spec: the spec that the logits come from; its ``loss_reduction`` and ``distillation`` hold.
        reduction: over members, of each member's mean loss, instead of the spec's. Without a spec it is
            ``mean``, which is right for heads of one network.
        label_smoothing: as in ``torch.nn.functional.cross_entropy``.
        distillation: T; each member also learns from the mean of all members' logits, which is not trained
            by it: T²·KL(mean ‖ member), both at temperature T (Hinton et al. 2015). None: the spec's.

    Returns:
        A scalar.

    Raises:
        DataError: shapes do not go together, or a class number on the CPU is outside the classes. On other
            devices the loss is NaN then.

    Example:
        >>> round(ensemble_loss(torch.zeros(3, 2, 10), torch.tensor([4, 7])).item(), 4)
        2.3026
    """
    if spec is not None:
        reduction = reduction or spec.loss_reduction
        distillation = spec.distillation if distillation is None else distillation
    members, rows, classes = logits.shape[0], logits.shape[1], logits.shape[-1]
    if targets.shape not in (logits.shape[1:-1], (members * rows, *logits.shape[2:-1])):
        raise DataError(
            f"targets: expected shape {tuple(logits.shape[1:-1])} for logits {tuple(logits.shape)}, "
            f"found {tuple(targets.shape)}"
        )
    own = targets if len(targets) == members * rows else targets.expand(members, *targets.shape)
    labels, wrong = _checked(own.reshape(-1), classes)
    counted = labels != IGNORED
    total = cross_entropy(
        logits.reshape(-1, classes),
        labels,
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    loss = total / counted.sum().clamp(min=1)
    if distillation is not None:
        loss = loss + distillation_loss(logits, distillation, counted.reshape(logits.shape[:-1]))
    if wrong is not None:
        loss = loss.masked_fill(wrong, torch.nan)
    return loss * members if reduction == "sum" else loss


def _checked(labels: Tensor, classes: int) -> tuple[Tensor, Tensor | None]:
    """Return labels that a loss can read on any device, and whether some are outside the classes.

    On a CPU that is an error. Elsewhere it is not known without waiting for the device, so that the loss
    becomes NaN, which trainers refuse, because a label outside the classes would stop a GPU for good.
    """
    if labels.is_floating_point():
        raise DataError(f"targets: expected class numbers, found {labels.dtype}; convert them by .long()")
    labels = labels.long()
    outside = ((labels < 0) | (labels >= classes)) & (labels != IGNORED)
    if (
        torch.compiler.is_compiling()
        or labels.device.type != "cpu"
        or torch._C._functorch.maybe_current_level()
    ):
        return labels.masked_fill(outside, IGNORED), outside.any()
    if outside.any():
        wrong = labels[outside]
        raise DataError(
            f"targets: expected classes from 0 to {classes - 1}, or {IGNORED} to be ignored, found "
            f"{int(wrong.min())} to {int(wrong.max())}; check the labels, or the network's number of classes"
        )
    return labels, None


def distillation_loss(logits: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
    """Return T²·KL(mean of the members ‖ member), averaged over members and rows.

    Args:
        logits: (M, B, …, classes); no gradient flows through their mean.
        temperature: T.
        counted: (M, B, …), which rows count; None: all.

    Example:
        >>> distillation_loss(torch.zeros(3, 2, 10), 3.0).item()
        0.0
    """
    teacher = (logits.detach().mean(0, keepdim=True) / temperature).log_softmax(-1)
    students = (logits / temperature).log_softmax(-1)
    divergence = (teacher.exp() * (teacher - students)).sum(-1)
    if counted is None:
        return temperature**2 * divergence.mean()
    return temperature**2 * (divergence * counted).sum() / counted.sum().clamp(min=1)
