"""Training of a run from a spec, data, a backend and a run folder."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import nt_core
from nt_core.files import plain, read_json, to_json, write_atomically
from nt_core.metrics import Metrics
from nt_core.random import expect_seed
from nt_core.runs import figures
from nt_core.spec import EnsembleSpec, FittedAverage, RunSpec
from nt_core.states import States
from nt_core.training import Report, Trained
from nt_lab.data import Split, load
from nt_lab.data.classes import expect_classes
from nt_lab.data.stream import Stream
from nt_lab.evaluation.evaluate import Evaluator
from nt_lab.runs.architectures import ARCHITECTURES
from nt_lab.runs.backends import Backend, choose
from nt_lab.runs.folder import CLASSES, RunFolder, row
from nt_lab.runs.interrupted import Progress
from nt_lab.runs.lock import locked
from nt_lab.runs.processes import expect_processes, rank

STREAM_EPOCHS: Final = 10
"""Number of tests during training on a stream, which has no epochs of its own."""

KEPT_EVENTS: Final = ("update", "epoch", "skipped", "member", "heads")
VERSIONS: Final = ("numpy", "datasets")
"""Packages whose versions are recorded with every run, in addition to the backend's packages."""


def train(
    run: RunSpec,
    folder: str | Path,
    *,
    device: str | None = None,
    trackers: Sequence[str] = (),
    overwrite: bool = False,
    resume: bool = False,
    report: Report = lambda _: None,
    backend: Callable[[], Backend] | None = None,
    save_every: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
    shard: bool = False,
    execution: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train the ensemble of a spec file and write the run's folder.

    An interrupted run of the same spec in the folder is resumed. Its result is bit for bit that of an
    uninterrupted run. If the interrupted run was complete except for the move of its files, its record is
    returned.

    Args:
        run: the spec, as it shall be recorded.
        folder: of the run.
        device: for the backend; None: the backend's choice.
        trackers: names of trackers, ``"tensorboard"`` say.
        overwrite: whether an earlier run in the folder may be replaced, and the states of an interrupted run
            that differs may be deleted.
        resume: whether an earlier run may be replaced by the interrupted run in the folder.
        report: receives the backend's records during training.
        backend: makes the backend, once everything else is checked; None: the choice of
            :func:`nt_lab.runs.backends.choose`.
        save_every: optimiser steps from one saved state to the next; None: five minutes.
        stopping: called after each step; True saves the state and ends the training.
        shard: divide the weights among the processes that ``torchrun`` started, instead of the batches alone.
        execution: fields of ``nt_torch.Execution``, for a backend that has execution options.

    Returns:
        The record beside the checkpoint, which ``nt_lab.runs.folder.row`` turns into a table row. Of several
        processes that ``torchrun`` started, the first writes the run; the others return an empty record.

    Raises:
        NeuroTrailsError: the spec, the data or the folder is unusable, another process trains into the
            folder, or the interrupted run in it differs (the message names the fields). An earlier run stays
            until the new one is complete.
        Stopped: ``stopping`` returned True; the same call resumes the training.
    """
    expect_seed(run.seed)
    spec = run.ensemble(ARCHITECTURES)
    spec.plan.total_steps(1, limit=spec.longest)  # an open-ended plan is an error before any data is loaded
    make_backend = backend or choose()  # a missing framework is one too
    target = RunFolder(Path(folder))
    if rank() > 0:  # train together with the first process, which writes the run
        if target.is_complete and not (overwrite or resume):
            return {}
        split, chosen, options = _prepared(run, spec, make_backend, shard, execution)
        states = States(folder, every=save_every, stopping=stopping)
        chosen.train(
            spec, run.training, split.train, test=split.test, device=device, states=states, **options
        )
        return {}
    with locked(target.path):
        if target.finish() and not overwrite and (record := target.record())["run"] == plain(run.to_dict()):
            report({"event": "finished"})
            return record
        with target.replacing(overwrite=overwrite or resume) as unfinished:
            split, chosen, options = _prepared(run, spec, make_backend, shard, execution)
            start: dict[str, Any] = {}

            def note(event: Mapping[str, Any]) -> None:
                if event["event"] == "start":
                    start.update(event)
                if event["event"] in KEPT_EVENTS:
                    unfinished.append(event)
                report(event)

            if not overwrite:
                _expect_begun_with(unfinished, split, run.data.source)
            before = Progress.of(
                unfinished,
                run,
                spec,
                chosen,
                every=save_every,
                stopping=stopping,
                execution=execution,
                overwrite=overwrite,
            )
            members = before.members
            if spec.turns != (spec,) and members:
                report({"event": "resume", "trained": sorted(members), "members": spec.members})
            unfinished.write_spec(run)
            _note_classes(unfinished, split)

            trained = chosen.train(
                spec,
                run.training,
                split.train,
                test=split.test,
                device=device,
                trackers=trackers,
                folder=target.path,
                report=note,
                members=members,
                states=before.states,
                **options,
            )
            saved = chosen.checkpoint(trained.model)
            fitted, metrics = _fitted(spec, chosen, trained, split)
            record = (
                _record(run, split, trained, metrics, figures(spec, saved), _where(chosen, start)) | fitted
            )
            unfinished.save(replace(saved, record=record))
        return record


def _prepared(
    run: RunSpec,
    spec: EnsembleSpec,
    make_backend: Callable[[], Backend],
    shard: bool,
    execution: Mapping[str, Any] | None,
) -> tuple[Split, Backend, dict[str, Any]]:
    """Return the data, the backend, and the arguments of its ``train``, which every process needs."""
    split = load(run.data, spec.graph, run.seed, stream_epoch=_stream_epoch(run), held_out=_held_out(spec))
    chosen = expect_processes(make_backend(), shard)
    sharded = {"shard": True} if shard else {}
    return split, chosen, {"seed": run.seed, **chosen.options(execution), **sharded}


def _expect_begun_with(unfinished: RunFolder, split: Split, source: str) -> None:
    """Check that an interrupted run goes on with the classes with which it began.

    Raises:
        DataError: the classes are others.
    """
    begun = unfinished.path / CLASSES
    if begun.exists():
        names = read_json(begun, "was it edited?").get("classes")
        expect_classes(split.classes, names and tuple(names), f"data {source!r}")


def _note_classes(unfinished: RunFolder, split: Split) -> None:
    """Write the names of the classes with which a run begins."""
    write_atomically(unfinished.path / CLASSES, to_json({"classes": split.classes}).encode())


def _held_out(spec: EnsembleSpec) -> float | None:
    return spec.aggregation.held_out if isinstance(spec.aggregation, FittedAverage) else None


def _fitted(
    spec: EnsembleSpec, backend: Backend, trained: Trained[Any], split: Split
) -> tuple[dict[str, Any], Metrics]:
    """Fit the aggregation, if the spec declares a fitted one.

    Returns:
        The entries of the record about the fit, and the metrics on the test set.
    """
    assert trained.metrics is not None
    if not isinstance(spec.aggregation, FittedAverage):
        return {}, trained.metrics
    assert split.held_out is not None
    evaluator = Evaluator(backend=backend, model=trained.model, spec=spec, aggregation=spec.mean)
    found = evaluator.fit(split.held_out, spec.aggregation)
    metrics = replace(evaluator, aggregation=found).metrics(split.test)
    return {"fitted": found.model_dump(mode="json")}, metrics


def _stream_epoch(run: RunSpec) -> int | None:
    """Return the number of a stream's sequences in one epoch, that of whole optimiser steps."""
    steps = run.plan.steps
    return None if steps is None else math.ceil(steps / STREAM_EPOCHS) * run.training.batch_size


def _record(
    run: RunSpec,
    split: Split,
    trained: Trained[Any],
    metrics: Metrics,
    cost: Mapping[str, Any],
    where: Mapping[str, Any],
) -> dict[str, Any]:
    endless, normalisation = isinstance(split.train, Stream), split.normalisation
    nulls = split.train.nulls.count if isinstance(split.train, Stream) else 0
    record = {
        "name": run.name,
        "run": run.to_dict(),
        "seed": run.seed,
        "steps": trained.steps,
        "epochs": None if endless else trained.examples / (len(split.train) - trained.dropped),
        "examples": trained.examples,
        "seconds": trained.seconds,
        "metrics": metrics.to_record(),
        "cost": cost,
        "data": {
            "source": run.data.source,
            "unit": "examples" if normalisation else "tokens",
            "classes": split.classes,
            "normalisation": normalisation and normalisation.model_dump(mode="json"),
            "preprocessing": split.preprocessing and split.preprocessing.model_dump(mode="json"),
            "train_examples": None if endless else len(split.train),
            "test_examples": len(split.test),
            "held_out_examples": 0 if split.held_out is None else len(split.held_out),
            **({"null_examples": nulls} if nulls else {}),
        },
        **({"skipped": trained.skipped} if trained.skipped else {}),
        **({"dropped": trained.dropped} if trained.dropped else {}),
        **where,
    }
    return dict(plain(record))


def _where(backend: Backend, start: Mapping[str, Any]) -> dict[str, Any]:
    """Return the backend, engine, device and versions of a run."""
    engine = {} if backend.engine is None else {"engine": backend.engine}
    return {
        "backend": backend.name,
        **engine,
        "device": start.get("device"),
        "versions": versions(backend.packages),
    }


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of the packages that computed a result.

    Args:
        packages: of the backend; a package that was not imported is left out, because it computed nothing.

    Example:
        >>> versions()["neurotrails"] == nt_core.__version__
        True
    """
    found = {"neurotrails": nt_core.__version__, "python": platform.python_version()}
    for name in (*VERSIONS, *packages):
        version = getattr(sys.modules.get(name), "__version__", None)  # tensorflow has several distributions
        if version is not None:
            found[name] = str(version)
    return found


def result(record: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """Return a finished run's table row, and its folder."""
    counted = {"skipped": record["skipped"]} if "skipped" in record else {}
    return row(record) | counted | {"folder": str(folder)}
