"""Errors and events for numbers that are not finite, the same in every backend."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

from nt_core.errors import NotFiniteError

NonFinite = Literal["stop", "skip"]
"""Reaction of a training to a batch whose gradient is not finite: end, or skip the batch and continue."""

REMEDY: Final = (
    "Lower the learning rate, warm up longer, clip the gradient, check the data, or pass such batches over "
    "with training.non_finite: skip"
)


def not_finite(place: str, found: str, left: str, remedy: str) -> NotFiniteError:
    """Make the error for a number that is not finite, from its place, the unchanged parts, and a remedy.

    Example:
        >>> str(not_finite("step 3", "loss nan", "the model is that of step 2", "Check the data"))
        'step 3: loss nan, expected a finite number; the model is that of step 2. Check the data'
    """
    return NotFiniteError(f"{place}: {found}, expected a finite number; {left}. {remedy}")


def gradient_not_finite(step: int, lr: float, norms: Mapping[str, float]) -> NotFiniteError:
    """Make the error of an optimiser step that is not taken.

    Args:
        step: number of the step, from 1.
        lr: learning rate of the step.
        norms: of each weight's gradient, by full name; if each is finite, the norm of all together is not.

    Example:
        >>> norms = {"head1/fc.weight": float("nan"), "head1/fc.bias": 1.0}
        >>> str(gradient_not_finite(8, 0.1, norms))[:85]
        "weight 'head1/fc.weight', step 8: the norm of its gradient is nan, expected a finite "
    """
    bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if bad:
        name, found = bad[0], f"the norm of its gradient is {norms[bad[0]]}"
        found += f" (and of {len(bad) - 1} other weights' not finite)" if len(bad) > 1 else ""
    else:
        name = max(norms, key=lambda name: norms[name])
        found = f"the norm of all gradients overflows, that of its own is {norms[name]:.3g}"
    return not_finite(f"weight {name!r}, step {step}", found, _left(step - 1, lr), REMEDY)


def loss_not_finite(step: int, lr: float) -> NotFiniteError:
    """Make the error of an optimiser step that is not taken because of its loss.

    Arguments as of :func:`gradient_not_finite`.

    Example:
        >>> str(loss_not_finite(8, 0.1))[:59]
        'step 8: the loss is not finite, expected a finite number; w'
    """
    return not_finite(f"step {step}", "the loss is not finite", _left(step - 1, lr), REMEDY)


def nothing_finite(epoch: int, step: int, lr: float) -> NotFiniteError:
    """Make the error of a training in which a whole epoch would be skipped.

    Args:
        epoch: number of the epoch, from 1.
        step: number of optimiser steps taken so far.
        lr: the learning rate.

    Example:
        >>> str(nothing_finite(2, 7, 0.1))[:77]
        'epoch 2: no batch gave a finite gradient, so no step was taken, expected one;'
    """
    return NotFiniteError(
        f"epoch {epoch}: no batch gave a finite gradient, so no step was taken, expected one; "
        f"{_left(step, lr)}. Lower the learning rate, warm up longer, clip the gradient, or check the data"
    )


def skipped(step: int, total: int) -> dict[str, Any]:
    """Return the event of a skipped batch.

    Args:
        step: number of the step that was not taken, from 1; the next batch takes it.
        total: number of skipped batches so far, with this one.

    Example:
        >>> skipped(8, total=2)
        {'event': 'skipped', 'step': 8, 'skipped': 2}
    """
    return {"event": "skipped", "step": step, "skipped": total}


def _left(step: int, lr: float) -> str:
    return f"weights are those after step {step}, the learning rate is {lr:g}"
