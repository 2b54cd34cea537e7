"""Evaluation of a finished run on its test split or on other data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nt_core.checkpoint import aggregation_of, classes_of
from nt_core.errors import DataError
from nt_core.metrics import Aggregation, Fitted, Metrics, aggregate, evaluation_batch_size, fit
from nt_core.spec import EnsembleSpec, FittedAverage
from nt_core.training import Batches, Data
from nt_lab.data import Normalisation, load_test, trained_on
from nt_lab.runs.backends import Backend, choose
from nt_lab.runs.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """A trained ensemble that is ready to predict, in any backend.

    Attributes:
        backend: computes the predictions.
        model: of that backend.
        spec: of the model.
        aggregation: average over the members, as the spec declares it or as it was fitted.
    """

    backend: Backend
    model: Any
    spec: EnsembleSpec
    aggregation: Aggregation

    def metrics(self, data: Batches) -> Metrics:
        """Measure on labelled examples."""
        return self.backend.evaluate(self.model, data, aggregation=self.aggregation)

    def log_probabilities(self, data: Batches) -> NDArray[np.float64]:
        """Return the ensemble's predictions (N, C) for examples in order."""
        return np.concatenate([aggregate(logits, self.aggregation) for logits, _ in self._logits(data)])

    def fit(self, data: Batches, wanted: FittedAverage) -> Fitted:
        """Fit the members' weights to examples that were held out of training."""
        logits, labels = zip(*self._logits(data), strict=True)
        return fit(np.concatenate(logits, axis=1), np.concatenate(labels), temperature=wanted.temperature)

    def _logits(self, data: Batches) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        size = evaluation_batch_size(self.spec.members, self.spec.graph.output_shape)
        for inputs, labels in data.epoch(0, size):
            yield self.backend.predict(self.model, inputs), labels


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A finished run whose model is loaded.

    Attributes:
        record: of the trainer.
        evaluator: of the run's model.
    """

    record: Mapping[str, Any]
    evaluator: Evaluator

    @property
    def data(self) -> Data:
        """Settings of the run's training and test data."""
        return trained_on(self.record, "run")[0]

    @property
    def normalisation(self) -> Normalisation | None:
        """Normalisation of the run's inputs; None: the inputs are tokens."""
        return trained_on(self.record, "run")[1]

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the run's classes; None: none are recorded."""
        return classes_of(self.record)

    def test_split(self, **changes: Any) -> Batches:
        """Load the run's test data, normalised as in training, with classes matched by name.

        Args:
            changes: fields of :class:`nt_core.training.Data` to replace.

        Raises:
            DataError: the data does not fit, or has classes that the run does not know.
        """
        if "source" not in changes and self.record["data"].get("source", "") is None:
            raise DataError("the run's record does not say what it was trained on; give a source with --data")
        data = self.data.elsewhere(changes.get("source", self.data.source))
        settings = Data(**{**data.model_dump(), **changes})
        return load_test(
            settings,
            self.evaluator.spec.graph,
            self.normalisation,
            self.classes,
            own=settings.source == self.data.source,
        )


def open_run(
    folder: str | Path, *, device: str | None = None, backend: Callable[[], Backend] | None = None
) -> OpenRun:
    """Load a run.

    Args:
        folder: of the run.
        device: for the backend; None: the backend's choice.
        backend: makes the backend, which need not be the one that trained the run; None: the choice of
            :func:`nt_lab.runs.backends.choose`.

    Raises:
        CheckpointError: the folder holds no run, or a damaged one.
    """
    record = RunFolder(Path(folder)).record()
    chosen = (backend or choose())()
    model = chosen.load(folder, device=device)
    aggregation = aggregation_of(model.spec, record)
    evaluator = Evaluator(backend=chosen, model=model, spec=model.spec, aggregation=aggregation)
    return OpenRun(record=record, evaluator=evaluator)


def evaluate(
    folder: str | Path,
    *,
    data: Mapping[str, Any] | None = None,
    device: str | None = None,
    backend: Callable[[], Backend] | None = None,
) -> Metrics:
    """Evaluate a run on its test split, normalised as in training; nothing is written.

    Args:
        folder: of the run.
        data: fields of :class:`nt_core.training.Data` to replace, ``{"source": …}`` say.
        device: as for :func:`open_run`.
        backend: as for :func:`open_run`.

    Raises:
        CheckpointError: the folder holds no run, or a damaged one.
        DataError: the data does not fit.
    """
    run = open_run(folder, device=device, backend=backend)
    return run.evaluator.metrics(run.test_split(**(data or {})))
