"""Schedules of the drop fraction of updates, and of the sparsity of gradual pruning.

All schedules are pure functions of the step, so a resumed run needs no state of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

DropSchedule: TypeAlias = Callable[[float, int, int], float]
"""(start, step, end_step) to the drop fraction: in [0, start], never rising, 0 at and after ``end_step``."""


def constant(start: float, step: int, end_step: int) -> float:
    """Hold the drop fraction until the end step; Mocanu et al. 2018 (SET), algorithm 1.

    Args:
        start: drop fraction at step 0, in [0, 1].
        step: optimiser steps taken, at least 0.
        end_step: the first step without updates.

    Returns:
        The drop fraction at ``step``; 0 from ``end_step`` on, because updates stop there.

    Example:
        >>> [constant(0.3, step, 100) for step in (0, 99, 100)]
        [0.3, 0.3, 0.0]
    """
    return start if step < end_step else 0.0


def cosine(start: float, step: int, end_step: int) -> float:
    """Anneal as start·½(1 + cos(πt/T)); Evci et al. 2020 (RigL), §3, after Dettmers & Zettlemoyer 2019.

    Args:
        start: drop fraction at step 0, in [0, 1].
        step: optimiser steps taken, t, at least 0.
        end_step: T, the first step without updates.

    Returns:
        The drop fraction at ``step``; 0 from ``end_step`` on.

    Example:
        >>> [round(cosine(0.5, step, 100), 12) for step in (0, 50, 100)]
        [0.5, 0.25, 0.0]
    """
    return start * (0.5 * (1.0 + math.cos(math.pi * step / end_step))) if step < end_step else 0.0


def linear(start: float, step: int, end_step: int) -> float:
    """Anneal as start·(1 − t/T); Evci et al. 2020 (RigL), appendix, inverse power of 1.

    Args:
        start: drop fraction at step 0, in [0, 1].
        step: optimiser steps taken, t, at least 0.
        end_step: T, the first step without updates.

    Returns:
        The drop fraction at ``step``; 0 from ``end_step`` on.

    Example:
        >>> [linear(0.5, step, 100) for step in (0, 50, 100)]
        [0.5, 0.25, 0.0]
    """
    return start * (1.0 - step / end_step) if step < end_step else 0.0


SCHEDULES: Final[Mapping[str, DropSchedule]] = MappingProxyType(
    {schedule.__name__: schedule for schedule in (constant, cosine, linear)}
)
"""The drop-fraction schedules by the name that a spec file uses: that of the function."""

if TYPE_CHECKING:
    ScheduleName: TypeAlias = str
else:
    ScheduleName = Literal[*SCHEDULES]


def cubic_sparsity(final: float, step: int, begin: int, end: int) -> float:
    """Raise the sparsity as final·(1 − (1 − t)³), t = (step − begin)/(end − begin); Zhu & Gupta 2017, §3.

    Args:
        final: sparsity at and after ``end``, in [0, 1].
        step: optimiser steps taken.
        begin: the last step at sparsity 0.
        end: the first step at the final sparsity, at least ``begin``; equal to it for pruning in one shot.

    Returns:
        The sparsity at ``step``: 0 before ``begin``, never falling.

    Example:
        >>> [cubic_sparsity(0.8, step, 100, 200) for step in (100, 150, 200)]
        [0.0, 0.7000000000000001, 0.8]
    """
    if step >= end:
        return final
    if step <= begin:
        return 0.0
    return final * (1.0 - (1.0 - (step - begin) / (end - begin)) ** 3)
