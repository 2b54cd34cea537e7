"""A sweep's runs as trials of Ray Tune, on one machine or a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nt_core.errors import NeuroTrailsError
from nt_lab.sweeps.grid import Job
from nt_lab.sweeps.records import Execute


def expect_ray() -> None:
    """Check that Ray Tune is installed.

    Raises:
        NeuroTrailsError: Ray Tune is not installed; the message gives the command that installs it.
    """
    if find_spec("ray") is None or find_spec("ray.tune") is None:
        raise NeuroTrailsError("--runner ray: Ray Tune is not installed; pip install 'neurotrails[ray]'")


def run_jobs_with_ray(
    jobs: Sequence[Job],
    out: Path,
    execute: Execute,
    *,
    at_once: int | None = None,
    gpus: float = 0.0,
    report: Callable[[Job, str | None], None] = lambda *_: None,
) -> dict[str, str]:
    """Run jobs as trials; the twin of :func:`nt_lab.sweeps.records.run_jobs`.

    A trial's training is a process of its own that writes its run's folder, which every machine must see
    under the same path. Tune chooses machine and time of each trial. Tune's own files are in ``out/ray``. The
    trials run on the cluster that ``RAY_ADDRESS`` names, else on this machine.

    Args:
        jobs: the jobs to run.
        out: the sweep's folder.
        execute: trains one job; it is pickled.
        at_once: largest number of trials at a time; None: as many as Ray has resources for.
        gpus: number that each trial reserves.
        report: receives each job with its error or None, after all jobs have ended.

    Returns:
        Name of each failed job → reason.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    import ray
    from ray import tune

    here, target = os.getcwd(), out.resolve()

    def trial(config: dict[str, Any]) -> dict[str, Any]:
        os.chdir(here)  # Ray gives each trial a folder of its own, but paths in specs are relative to ours
        return {"error": execute(jobs[config["job"]], target / jobs[config["job"]].name)}

    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        with redirect_stdout(sys.stderr):  # stdout is for tables and JSON
            found = tune.Tuner(
                tune.with_resources(trial, {"cpu": 1, "gpu": gpus}),
                param_space={"job": tune.grid_search(list(range(len(jobs))))},
                tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
                run_config=tune.RunConfig(name="ray", storage_path=str(target), verbose=0),
            ).fit()
    finally:
        if ours:
            ray.shutdown()
    errors: dict[str, str] = {}
    for job, result in zip(jobs, (found[place] for place in range(len(found))), strict=True):
        error = str(result.error) if result.error else (result.metrics or {})["error"]
        if error is not None:
            errors[job.name] = error
        report(job, error)
    return errors
