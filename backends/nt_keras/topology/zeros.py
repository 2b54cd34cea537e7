"""Zeros of inactive weights: how they are set, and the optimisers that keep them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from nt_keras.topology.optimizers import OURS

ZERO_STAYS_ZERO: tuple[type[keras.optimizers.Optimizer], ...] = (
    keras.optimizers.SGD,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
    keras.optimizers.Nadam,
    keras.optimizers.RMSprop,
    keras.optimizers.Adagrad,
    keras.optimizers.Adadelta,
    keras.optimizers.Adamax,
    keras.optimizers.Lamb,
    keras.optimizers.Lion,
    *OURS,
)
"""Optimisers that leave a weight and its variables at 0 if weight, variables and gradient are 0 (tested)."""

SMALLEST_EPSILON_1 = 1e-16
"""Smallest ``epsilon_1`` of Adafactor, whose product of two must not be 0 in float32."""


def clear(values: Any, active: Any) -> Any:
    """Return values with +0 where inactive, in place of any value, NaN too.

    Example:
        >>> cleared = clear(ops.array([1.0, float("nan")]), ops.array([True, False]))
        >>> ops.convert_to_numpy(cleared).tolist()
        [1.0, 0.0]
    """
    return ops.where(active, values, ops.zeros((), values.dtype))


def keeps_zeros(optimizer: Any, variables: Sequence[Any]) -> bool:
    """Return whether elements that are zero in weight, variables and gradient stay zero."""
    kind = type(optimizer)
    made_by_keras = kind.__module__.startswith("keras.")  # which has subclasses of its own with PyTorch
    known = kind in ZERO_STAYS_ZERO or (made_by_keras and issubclass(kind, ZERO_STAYS_ZERO))
    zero_by_zero = getattr(optimizer, "epsilon", 1) == 0 or any(v.dtype == "float16" for v in variables)
    return known and not zero_by_zero


def warn_of_zero_by_zero(optimizer: Any) -> None:
    """Warn of an optimiser that turns zeros into NaN, in active weights too."""
    if isinstance(optimizer, keras.optimizers.Adafactor) and optimizer.epsilon_1 < SMALLEST_EPSILON_1:
        remedy = f"with a whole row and column inactive; give epsilon_1={SMALLEST_EPSILON_1}"
    elif isinstance(optimizer, keras.optimizers.Ftrl) and not (
        optimizer.beta or optimizer.l2_regularization_strength
    ):
        remedy = "just grown, whose gradient is 0; give l2_regularization_strength=1e-4, say"
    else:
        return
    warnings.warn(f"optimizer: {type(optimizer).__name__} divides 0 by 0 for a weight {remedy}", stacklevel=3)
