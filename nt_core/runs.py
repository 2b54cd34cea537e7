"""The folder of a run, which ``nt`` compares, evaluates, serves: its files, and the record in its checkpoint.

In go a checkpoint and what is known of its training; out comes a folder. This room imports ``checkpoint``,
``cost``, ``files``, ``metrics``, ``spec``, ``training``, and the ground.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from nt_core.checkpoint import (
    CONFIG,
    TENSORS,
    Checkpoint,
    classes_of,
    preprocessing_of,
    save_checkpoint,
)
from nt_core.cost import cost
from nt_core.errors import CheckpointError, DataError, NeuroTrailsError
from nt_core.files import plain, to_json, write_atomically
from nt_core.metrics import RECORDED, Metrics
from nt_core.spec import EnsembleSpec, RunSpec
from nt_core.spec.file import CHOICES
from nt_core.training import Data, Preprocessing, Trained, Training
from nt_core.version import __version__

HISTORY: Final = "history.jsonl"
SPEC: Final = "spec.yaml"
FILES: Final = (CONFIG, TENSORS, HISTORY, SPEC)
"""Files of a run folder; any other file in it is left alone."""


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """The data of a training, as far as whoever evaluates or serves the model needs to know them.

    Attributes:
        data: the source and its settings, from which ``nt evaluate`` loads the test split; None: not known.
        classes: names of the classes, in the order of the outputs; None: they have none.
        preprocessing: of raw examples; None: not known, or tokens.
        counts: further entries of the record: ``train_examples``, say.
    """

    data: Data | None = None
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    counts: Mapping[str, Any] | None = None

    @staticmethod
    def of(given: Any) -> TrainedOn:
        """Return the data of a training from one of the values by which people name them.

        Args:
            given: this class; what ``nt_lab.data.load`` returns; :class:`nt_core.training.Data`, its fields,
                or its source; None: not known.

        Raises:
            DataError: another value.

        Example:
            >>> TrainedOn.of("digits").data.source
            'digits'
        """
        if given is None or isinstance(given, TrainedOn):
            return given or TrainedOn()
        if isinstance(given, Data | str | Mapping):
            fields = {"source": given} if isinstance(given, str) else given
            return TrainedOn(data=fields if isinstance(fields, Data) else Data(**fields))
        found = getattr(given, "trained_on", None)
        if isinstance(found, TrainedOn):
            return found
        raise DataError(
            "data: expected a TrainedOn, what nt_lab.data.load returned, a Data or a source's name, found "
            f"{type(given).__name__}"
        )

    def record(self, unit: str) -> dict[str, Any]:
        """Return the entries of a run's record."""
        preprocessing = self.preprocessing and self.preprocessing.model_dump(mode="json")
        return {
            "source": self.data and self.data.source,
            "unit": unit,
            "classes": self.classes,
            "normalisation": preprocessing and preprocessing["normalisation"],
            "preprocessing": preprocessing,
            **(self.counts or {}),
        }


def figures(spec: EnsembleSpec, saved: Checkpoint) -> dict[str, Any]:
    """Return the cost of a trained ensemble by its final masks, as its record holds it."""
    counts = {placed.name: placed.weight.size for placed in spec.layout.sparsifiable}
    counts |= {name: mask.count for name, mask in saved.masks.items()}
    found = cost(spec, counts).to_dict()
    del found["layers"]
    return found


def write_run(
    folder: str | Path,
    saved: Checkpoint,
    *,
    trained: Trained[Any] | None = None,
    metrics: Metrics | Mapping[str, Any] | None = None,
    data: Any = None,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    name: str | None = None,
    training: Training | None = None,
    seed: int = 0,
    steps: int | None = None,
    examples: int | None = None,
    seconds: float | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    where: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a trained ensemble as a run, although ``nt train`` did not train it.

    Args:
        folder: made if it is not there; other files in it are left alone.
        saved: the ensemble; its record is kept beside the run's.
        trained: what a trainer returned, of which the next ones are taken where they are left out.
        metrics: on the test set.
        data: what it was trained on; see :meth:`TrainedOn.of`.
        classes: names of the classes; None: those in ``data``.
        preprocessing: of raw examples; None: that in ``data``.
        name: of the run in tables; None: the folder's.
        training: the recipe, as far as it was one; None: the default one.
        seed: of the training.
        steps: optimiser steps taken; 0 where nothing is told.
        examples: training examples seen, from which tables tell the FLOPs of the training.
        seconds: of training.
        history: a record for each epoch, in order: its metrics, and ``epoch`` and ``step``, which are counted
            where they are left out; or other events. Without any, the history is its end.
        where: backend, engine, device, and versions.
        overwrite: whether an earlier run in the folder may be replaced.

    Raises:
        DataError: a metric is missing, or something else that is told is of another kind.
        CheckpointError: as :func:`nt_core.checkpoint.save_checkpoint`.
        NeuroTrailsError: the folder holds a run already, or cannot be written.
    """
    folder = Path(folder)
    measured = _metrics(trained.metrics if metrics is None and trained is not None else metrics)
    counts = {"steps": steps, "examples": examples, "seconds": seconds}
    counts = {key: getattr(trained, key, 0) if told is None else told for key, told in counts.items()}
    given = TrainedOn.of(data)
    trained_on = replace(
        given,
        classes=given.classes if classes is None else tuple(classes),
        preprocessing=preprocessing or given.preprocessing,
    )
    run = _run_spec(saved.spec, name or folder.resolve().name, training, trained_on.data, seed)
    tokens = len(saved.spec.graph.output_shape) > 1
    record = {
        **saved.record,
        "name": run.name,
        "run": run.to_dict(),
        "seed": seed,
        "epochs": None,
        **counts,
        "metrics": measured,
        "cost": figures(saved.spec, saved),
        "data": trained_on.record("tokens" if tokens else "examples"),
        **(where or {}),
    }
    _expect_fits(saved.spec, record)
    events = _events(history, measured, int(counts["steps"] or 0))
    whole = replace(saved, record=plain(record))
    _expect_free(folder, overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)  # so that the old config never stands beside new files
        write_atomically(folder / SPEC, run.to_yaml().encode())
        write_atomically(folder / HISTORY, "".join(to_json(event) + "\n" for event in events).encode())
    except OSError as error:
        raise NeuroTrailsError(f"{folder}: cannot be written ({error.strerror}); choose another") from None
    save_checkpoint(folder, whole)


def versions(*packages: Any) -> dict[str, str]:
    """Return the versions of the library, of Python, and of some imported packages."""
    found = {package.__name__: str(package.__version__) for package in packages}
    return {"neurotrails": __version__, "python": platform.python_version(), **found}


def _metrics(given: Metrics | Mapping[str, Any] | None) -> dict[str, Any]:
    if isinstance(given, Metrics):
        return given.to_record()
    if not isinstance(given, Mapping):
        raise DataError(
            f"metrics: expected what evaluate returns for the test set, found {type(given).__name__}"
        )
    missing = [figure.name for figure in RECORDED if figure.name not in given]
    if missing:
        raise DataError(f"metrics: expected {', '.join(missing)}, too; give what evaluate returned")
    return dict(given)


def _expect_fits(spec: EnsembleSpec, record: Mapping[str, Any]) -> None:
    """Check that classes and preprocessing are of the ensemble.

    Raises:
        CheckpointError: they are not.
    """
    names, outputs = classes_of(record), spec.graph.output_shape[-1]
    if names is not None and len(names) > outputs:
        raise CheckpointError(f"classes: {len(names)} names for {outputs} classes; leave some out")
    preprocessing_of(spec, record)


def _run_spec(
    spec: EnsembleSpec, name: str, training: Training | None, data: Data | None, seed: int
) -> RunSpec:
    choices = {choice: getattr(spec, choice) for choice in CHOICES}
    return RunSpec(
        name=name,
        graph=spec.graph.to_dict(),
        training=training or Training(),
        data=data or Data(),
        seed=seed,
        **choices,
    )


def _events(
    history: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any], steps: int
) -> list[dict[str, Any]]:
    """Return a history's events; epochs are counted, and their steps are evenly spaced, where not given."""
    given = history or [{figure.name: metrics[figure.name] for figure in RECORDED}]
    events: list[dict[str, Any]] = []
    epochs = sum(each.get("event", "epoch") == "epoch" for each in given)
    done = 0
    for each in given:
        event = {"event": "epoch", **each}
        if event["event"] == "epoch":
            done += 1
            event = {"epoch": done, "step": round(steps * done / epochs), **event}
        events.append(plain(event, "history"))
    return events


def _expect_free(folder: Path, overwrite: bool) -> None:
    present = [name for name in FILES if (folder / name).exists()]
    if present and not overwrite:
        raise NeuroTrailsError(
            f"{folder}: holds a run already ({', '.join(present)}); choose another folder, or overwrite=True"
        )
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder, found a file; choose another")
