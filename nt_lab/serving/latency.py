"""Latency of predictions, measured for several runtimes in turn in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

VISIT_SECONDS: Final = 0.02
"""Length of a runtime's turn."""

LEAST_VISITS: Final = 5

PAUSE_SECONDS: Final = 0.2
"""Pause before each turn, because threads of the runtime before may still spin on cores that are needed."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency of one runtime.

    Attributes:
        batch: examples of one call.
        visits: for each turn of the runtime, the median seconds of its calls.
        calls: seconds of every counted call.
    """

    batch: int
    visits: tuple[float, ...]
    calls: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Seconds of a call."""
        return statistics.fmean(self.calls)

    @property
    def median(self) -> float:
        """Seconds of a call."""
        return statistics.median(self.calls)

    @property
    def p95(self) -> float:
        """Seconds within which 95 of 100 calls end, the 95th percentile."""
        return float(np.percentile(self.calls, 95))

    @property
    def throughput(self) -> float:
        """Examples per second, by the median latency."""
        return self.batch / self.median

    def times_faster(self, other: Latency) -> float:
        """Return the other's latency divided by this one's, as the median of the ratios, turn by turn.

        Example:
            >>> fast, slow = (Latency(batch=1, visits=(t, 2 * t), calls=(t,)) for t in (1.0, 3.0))
            >>> fast.times_faster(slow)
            3.0
        """
        return statistics.median(theirs / own for own, theirs in zip(self.visits, other.visits, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return the figures in types that JSON can hold."""
        figures = {name: getattr(self, name) for name in ("batch", "mean", "median", "p95", "throughput")}
        return {**figures, "calls": len(self.calls)}


def interleaved(
    contenders: Mapping[str, Callable[[], object]], *, batch: int, seconds: float = 10.0
) -> dict[str, Latency]:
    """Measure contenders in turn, so that a slow minute of the machine affects all of them.

    Each turn begins with a pause, in which other runtimes' threads fall asleep. Then a contender is called
    for 20 ms, at least once. The first of several calls is not counted, because it finds another runtime's
    data in the caches, unlike the calls of a server that runs one runtime only.

    Args:
        contenders: functions to call, by name; each is called twice beforehand.
        batch: examples of one call.
        seconds: approximate length of the measurement; every contender has at least five turns.

    Example:
        >>> found = interleaved({"sum": lambda: sum(range(1000))}, batch=1, seconds=0.2)
        >>> found["sum"].median < found["sum"].p95 * 1.001
        True
    """
    visits: dict[str, list[Sequence[float]]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
        call()
    deadline = time.perf_counter() + seconds
    turns = 0
    while turns < LEAST_VISITS or time.perf_counter() < deadline:
        for name, call in contenders.items():
            visits[name].append(_visit(call))
        turns += 1
    return {
        name: Latency(
            batch=batch,
            visits=tuple(statistics.median(visit) for visit in each),
            calls=tuple(call for visit in each for call in visit),
        )
        for name, each in visits.items()
    }


def _visit(call: Callable[[], object]) -> Sequence[float]:
    times = []
    time.sleep(PAUSE_SECONDS)
    end = time.perf_counter() + VISIT_SECONDS
    while True:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        times.append(now - start)
        if now >= end:
            return times[1:] or times
