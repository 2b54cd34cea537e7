"""Numbers that are not finite: the one way to say where they were found, and to pass over their batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

from nt_core.errors import NotFiniteError

NonFinite = Literal["stop", "skip"]
"""What a training does with a batch whose gradient is not finite: end, or take no step and go on."""

REMEDY: Final = (
    "Lower the learning rate, warm up longer, clip the gradient, check the data, or pass such batches over "
    "with training.non_finite: skip"
)


def not_finite(place: str, found: str, left: str, remedy: str) -> NotFiniteError:
    """Make the error that says where something is not finite, what is left as it was, and what to do.

    Example:
        >>> str(not_finite("step 3", "loss nan", "the model is that of step 2", "Check the data"))
        'step 3: loss nan, expected a finite number; the model is that of step 2. Check the data'
    """
    return NotFiniteError(f"{place}: {found}, expected a finite number; {left}. {remedy}")


def gradient_not_finite(step: int, lr: float, norms: Mapping[str, float]) -> NotFiniteError:
    """Make the error of an optimiser step that is not taken.

    Args:
        step: its number, from 1.
        lr: the learning rate that it would have been taken with.
        norms: of each weight's gradient, by its full name; where each is finite, that of all together is not.

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
    """Make the error of an optimiser step that is not taken for its loss; arguments as above.

    Example:
        >>> str(loss_not_finite(8, 0.1))[:59]
        'step 8: the loss is not finite, expected a finite number; w'
    """
    return not_finite(f"step {step}", "the loss is not finite", _left(step - 1, lr), REMEDY)


def nothing_finite(epoch: int, step: int, lr: float) -> NotFiniteError:
    """Make the error of a training of which a whole epoch would be passed over.

    Args:
        epoch: its number, from 1.
        step: optimiser steps taken so far.
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
    """Return what is reported of a batch that was passed over.

    Args:
        step: number of the step that was not taken, from 1; the next batch takes it.
        total: batches that were passed over so far, this one included.

    Example:
        >>> skipped(8, total=2)
        {'event': 'skipped', 'step': 8, 'skipped': 2}
    """
    return {"event": "skipped", "step": step, "skipped": total}


def _left(step: int, lr: float) -> str:
    return f"weights are those after step {step}, the learning rate is {lr:g}"
