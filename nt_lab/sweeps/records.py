"""Runs of a sweep, each in a process and a folder of its own: resumption, and one table of all results."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final

from nt_core.errors import CheckpointError, NeuroTrailsError
from nt_core.files import plain
from nt_core.metrics import RECORDED
from nt_lab.runs.folder import RunFolder, flat, row
from nt_lab.sweeps.grid import Job

Execute = Callable[[Job, Path], str | None]
"""Function that trains a job into a folder and returns the reason of a failure, or None."""

FINISHED, FAILED, MISSING = "finished", "failed", "missing"
FIGURES: Final = (
    *(figure.name for figure in RECORDED),
    "weights_active",
    "flops_training",
    "flops_inference",
    "relative_flops_training",
    "relative_flops_inference",
    "seconds",
)
"""Columns of a sweep's table that are averaged over seeds."""


def unfinished(
    jobs: Sequence[Job], out: Path, options: Mapping[str, Any], *, overwrite: bool = False
) -> list[Job]:
    """Return the jobs without a finished run in their folder.

    Args:
        jobs: all jobs of the sweep.
        out: the sweep's folder.
        options: the wanted ``backend`` and ``engine``; None: any.
        overwrite: whether a run of another spec or backend is trained anew; else such a run is an error.

    Raises:
        NeuroTrailsError: a folder holds a run of another spec or backend.
    """
    rest = []
    for job in jobs:
        record = _record(out / job.name)
        if record is None or (overwrite and _differs(record, job, options)):
            rest.append(job)
        elif found := _differs(record, job, options):
            raise NeuroTrailsError(
                f"{out / job.name}: holds a run whose {found}; choose another folder with --out, or run it "
                "anew with --overwrite"
            )
    return rest


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        return RunFolder(folder).record()
    except CheckpointError:
        return None


def _differs(record: Mapping[str, Any], job: Job, options: Mapping[str, Any]) -> str | None:
    wanted = plain(job.run.to_dict())
    for key in {**wanted, **record["run"]}:
        if record["run"].get(key) != wanted.get(key):
            return f"{key} is another"
    for key in ("backend", "engine"):
        if options.get(key) not in (None, record.get(key)):
            return f"{key} is {record.get(key)}, not {options[key]}"
    return None


def run_jobs(
    jobs: Sequence[Job],
    out: Path,
    execute: Execute,
    *,
    at_once: int = 1,
    report: Callable[[Job, str | None], None] = lambda *_: None,
) -> dict[str, str]:
    """Run jobs, ``at_once`` at a time; a failure does not stop the others.

    Args:
        jobs: the jobs to run.
        out: the sweep's folder.
        execute: trains one job.
        at_once: number of jobs at a time.
        report: receives each job at its end, with its error or None.

    Returns:
        Name of each failed job → reason.
    """
    errors: dict[str, str] = {}
    pool = ThreadPoolExecutor(max_workers=at_once)
    try:
        running: dict[Future[str | None], Job] = {
            pool.submit(execute, job, out / job.name): job for job in jobs
        }
        for done in as_completed(running):
            job, error = running[done], done.result()
            if error is not None:
                errors[job.name] = error
            report(job, error)
    finally:
        pool.shutdown(cancel_futures=True)
    return errors


def threads(at_once: int) -> dict[str, str]:
    """Return variables that divide the cores among processes; none if ``OMP_NUM_THREADS`` is set already."""
    if at_once == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}


def table(jobs: Sequence[Job], out: Path, errors: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one tidy row for each run: swept fields, seed, folder, status, error, figures.

    Args:
        jobs: all jobs of the sweep.
        out: the sweep's folder.
        errors: name of each failed job → reason.
    """
    return [_row(job, out / job.name, errors.get(job.name)) for job in jobs]


def _row(job: Job, folder: Path, error: str | None) -> dict[str, Any]:
    record = None if error is not None else _record(folder)
    status = FAILED if error is not None else MISSING if record is None else FINISHED
    figures = dict.fromkeys(FIGURES) if record is None else flat(row(record))
    return {
        **job.point,
        "seed": job.run.seed,
        "folder": str(folder),
        "status": status,
        "error": error,
        "unit": None if record is None else figures["unit"],
        **{name: figures[name] for name in FIGURES},
    }


def points(rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row for each point of the grid: mean and standard deviation of each figure over its seeds.

    The deviation is that of a sample, n − 1; None for one run. Failed runs are left out of the mean and
    counted.

    Args:
        rows: of :func:`table`.
        fields: the swept fields.

    Example:
        >>> two = [{"heads": 2, "status": FINISHED, **dict.fromkeys(FIGURES, value)} for value in (1.0, 3.0)]
        >>> found = points(two, ["heads"])[0]
        >>> found["heads"], found["runs"], found["accuracy"], round(found["accuracy_std"], 4)
        (2, 2, 2.0, 1.4142)
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for each in rows:
        groups.setdefault(repr([each[field] for field in fields]), []).append(each)
    return [_point(group, fields) for group in groups.values()]


def _point(group: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> dict[str, Any]:
    good = [each for each in group if each["status"] == FINISHED]
    found: dict[str, Any] = {field: group[0][field] for field in fields}
    found |= {
        "runs": len(good),
        "failed": len(group) - len(good),
        "unit": good[0].get("unit") if good else None,
    }
    for name in FIGURES:
        values = [math.nan if each[name] is None else float(each[name]) for each in good]
        found[name] = statistics.fmean(values) if values else None
        found[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return found
