"""Training in a process of its own: a job as JSON on stdin, its outcome as the last line on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from nt_core.errors import NeuroTrailsError
from nt_core.files import write_atomically
from nt_core.spec import RunSpec

LOG: Final = "error.txt"
"""The file in a failed run's folder that holds its whole stderr."""


def run_alone(
    run: RunSpec,
    folder: Path,
    options: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
) -> str | None:
    """Train in a new process, whose failure does not end this process.

    Args:
        run: the run to train.
        folder: of the run; an earlier complete run there is replaced.
        options: ``backend``, ``engine`` and ``device``, as on the command line.
        environment: variables to add to this process's own.
        overwrite: whether an interrupted run there that differs is deleted.

    Returns:
        None, or the reason of the failure in a line or two; ``error.txt`` in the folder then holds the whole
        stderr.
    """
    job = {"run": run.to_dict(), "folder": str(folder), "overwrite": overwrite, **options}
    done = subprocess.run(
        [sys.executable, "-m", "nt_lab.training.worker"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    log = folder / LOG
    log.unlink(missing_ok=True)
    error = _outcome(done)
    if error is not None:
        with suppress(OSError):  # which the error may be about
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(log, (done.stderr or error).encode())
    return error


def _outcome(done: subprocess.CompletedProcess[str]) -> str | None:
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}" + ", perhaps for want of memory" * (
            done.returncode == -9
        )
    if done.returncode > 0:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    error: str | None = json.loads(done.stdout.splitlines()[-1])["error"]
    return error


def main() -> None:
    """Train the job on stdin; a user's mistake is an outcome, a defect is a traceback.

    Example:
        >>> main  # doctest: +ELLIPSIS
        <function main at ...>
    """
    from nt_lab import console

    console.quiet_libraries()
    from nt_lab.runs import backends, signals
    from nt_lab.training import train

    job = json.load(sys.stdin)
    error = None
    try:
        with signals.stopping(Path(job["folder"])) as stopping:
            train.train(
                RunSpec(**job["run"]),
                job["folder"],
                device=job["device"],
                overwrite=job["overwrite"],
                resume=True,
                backend=backends.choose(job["backend"], job["engine"]),
                stopping=stopping,
            )
    except (NeuroTrailsError, signals.Interrupted) as mistake:
        error = str(mistake)
    sys.stdout.write(f"\n{json.dumps({'error': error})}\n")


if __name__ == "__main__":
    main()
