"""Whole sweep of ``nt sweep``: check the grid, train the unfinished runs, write table and plot."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from nt_core.errors import NeuroTrailsError, nearest
from nt_core.files import write_atomically
from nt_lab.runs import backends
from nt_lab.runs.folder import write_csv
from nt_lab.runs.lock import locked
from nt_lab.sweeps import plots
from nt_lab.sweeps.grid import Job, grid
from nt_lab.sweeps.records import FINISHED, Execute, points, run_jobs, table, threads, unfinished
from nt_lab.training.worker import run_alone

RUNNERS: Final = ("local", "ray")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Arguments and options of ``nt sweep``."""

    source: str
    over: Sequence[str]
    values: Sequence[str]
    seeds: str = "0"
    overrides: Sequence[str] = ()
    preset: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    jobs: int | None = None
    runner: str = "local"
    gpus: float = 0.0
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Swept:
    """Result of a sweep.

    Attributes:
        fields: the swept fields.
        rows: one for each run; see :func:`nt_lab.sweeps.records.table`.
        errors: name of each failed run → reason.
        files: paths of the table and the plots.
    """

    fields: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    errors: Mapping[str, str]
    files: Sequence[Path]

    @property
    def points(self) -> list[dict[str, Any]]:
        """Return one row for each point of the grid; see :func:`nt_lab.sweeps.records.points`."""
        return points(self.rows, self.fields)

    def to_dict(self) -> dict[str, Any]:
        """Return all results in types that JSON can hold."""
        return {
            "fields": list(self.fields),
            "runs": list(self.rows),
            "points": self.points,
            "files": [str(path) for path in self.files],
        }


def run(asked: Sweep, out: Path | None, say: Callable[[str], None], execute: Execute | None = None) -> Swept:
    """Run a sweep except for the runs that are finished in its folder.

    Args:
        asked: the grid and its options.
        out: the sweep's folder; None: ``sweeps/NAME``.
        say: receives a line for each run.
        execute: trains one run; None: each run has a process of its own.

    Raises:
        NeuroTrailsError: the grid has a mistake (raised before any training), or files cannot be written.
    """
    jobs = grid(
        asked.source, asked.over, asked.values, asked.seeds, overrides=asked.overrides, preset=asked.preset
    )
    backends.choose(asked.options.get("backend"), asked.options.get("engine"))
    runner = _runner(asked)
    folder = out or Path("sweeps") / Path(asked.source).stem.replace(":", ".")
    rest = unfinished(jobs, folder, asked.options, overwrite=asked.overwrite)
    say(f"{len(jobs)} runs, {len(jobs) - len(rest)} of them finished already")
    with locked(folder):
        errors = runner(rest, folder, execute or partial(_alone, asked), report=_reporter(say, len(rest)))
        rows = table(jobs, folder, errors)
        files = write(rows, asked.over, folder)
    return Swept(fields=asked.over, rows=rows, errors=errors, files=files)


def _runner(asked: Sweep) -> Callable[..., dict[str, str]]:
    if asked.runner not in RUNNERS:
        raise NeuroTrailsError(f"--runner: none is called {asked.runner!r}{nearest(asked.runner, RUNNERS)}")
    if asked.runner == "local":
        return partial(run_jobs, at_once=asked.jobs or 1)
    from nt_lab.sweeps.ray import expect_ray, run_jobs_with_ray

    expect_ray()
    return partial(run_jobs_with_ray, at_once=asked.jobs, gpus=asked.gpus)


def _alone(asked: Sweep, job: Job, folder: Path) -> str | None:
    local = threads(asked.jobs or 1) if asked.runner == "local" else {}
    return run_alone(job.run, folder, asked.options, local, overwrite=asked.overwrite)


def _reporter(say: Callable[[str], None], total: int) -> Callable[[Job, str | None], None]:
    done = 0

    def report(job: Job, error: str | None) -> None:
        nonlocal done
        done += 1
        say(f"{done}/{total}  {job.name}  {'finished' if error is None else f'failed: {error}'}")

    return report


def write(rows: Sequence[Mapping[str, Any]], fields: Sequence[str], folder: Path) -> list[Path]:
    """Write ``sweep.csv``, ``sweep.parquet`` and, if a run finished, ``sweep.png`` and ``sweep.svg``.

    Raises:
        NeuroTrailsError: the folder cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        name: _column([row[name] for row in rows]) if name in fields else [row[name] for row in rows]
        for name in rows[0]
    }
    csv, par = folder / "sweep.csv", folder / "sweep.parquet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flat = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        write_csv(csv, flat)
        parquet.write_table(pa.table(columns), whole := io.BytesIO())
        write_atomically(par, whole.getvalue())
    except OSError as error:
        raise NeuroTrailsError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder with --out"
        ) from None
    drawn = any(row["status"] == FINISHED for row in rows)
    return [csv, par, *(plots.save(plots.sweep_figure(rows, fields), folder / "sweep") if drawn else [])]


def _column(values: Sequence[Any]) -> list[Any]:
    """Return swept values as one type: numbers unchanged; names, mappings, and mixtures as text."""
    if len({type(value) for value in values}) == 1 and isinstance(values[0], int | float | str):
        return list(values)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values]
    return [value if isinstance(value, str) else json.dumps(value) for value in values]
