"""What the benchmarks share: interleaved timing, the machine's description, plain tables."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path


def interleaved_medians(
    contenders: Mapping[str, Callable[[], object]], *, repeats: int, seconds: float = 20.0
) -> dict[str, float]:
    """Time contenders in turn, so that a slow minute of the machine is shared by all.

    Args:
        contenders: what to run, by name; each is run once more beforehand to warm up.
        repeats: rounds, fewer where ``seconds`` have passed (at least three).
        seconds: time limit.

    Returns:
        Median seconds by name.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    deadline = time.perf_counter() + seconds
    for done in range(repeats):
        if done >= 3 and time.perf_counter() > deadline:
            break
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def peak_bytes(run: Callable[[], object]) -> int:
    """Bytes that Python and NumPy allocate at most at one time while ``run`` runs."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def machine(*packages: str) -> dict[str, str | int]:
    """Describe where the numbers come from: processor, cores, versions of the named packages."""
    versions = {name: _version(name) for name in packages}
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "python": platform.python_version(),
        **versions,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headings: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, ["-" * width for width in widths], *rows):
        first, *rest = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join((first, *rest)))


def write_json(
    file: Path, title: str, about: Mapping[str, object], results: Sequence[Mapping[str, object]]
) -> None:
    """Store the results with the machine they come from."""
    record = {"benchmark": title, "machine": dict(about), "results": [dict(row) for row in results]}
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
