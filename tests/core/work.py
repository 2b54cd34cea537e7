"""How much work a function does, counted instead of timed: the same on every machine, however busy."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")


def calls_in(function: Callable[[], Result]) -> tuple[Result, int]:
    """Return a function's result, and the number of calls of Python and C functions that it made."""
    count = 0

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(watch)
    try:
        result = function()
    finally:
        sys.setprofile(None)
    return result, count


def peak_bytes_in(function: Callable[[], Result]) -> tuple[Result, int]:
    """Return a function's result, and the most bytes that Python and NumPy held for it at once."""
    tracemalloc.start()
    try:
        result = function()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
