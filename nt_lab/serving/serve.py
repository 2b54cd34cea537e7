"""Serving of a trained ensemble on a CPU: predictions, and measurements of their latency."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import nt_cpu
from nt_core.checkpoint import Checkpoint, load_checkpoint
from nt_core.cost import Cost, cost
from nt_core.errors import CheckpointError, DataError
from nt_core.graph import Tokens
from nt_core.metrics import Metrics, evaluation_batch_size
from nt_core.spec import EnsembleSpec
from nt_core.topology import initial_masks, initial_values
from nt_core.training import Batches, Preprocessing
from nt_cpu.native import peak_flops
from nt_cpu.packed import is_packed
from nt_lab.data import load_test, spaced, trained_on
from nt_lab.runs.folder import write_csv
from nt_lab.serving import pictures
from nt_lab.serving.latency import Latency, interleaved
from nt_lab.serving.runtimes import RUNTIMES, Dense

SPARSE: Final = "nt_cpu"
"""Name of the sparse engine among runtimes."""

AGREEMENT: Final = 1e-4
"""Largest allowed difference between the probabilities of two runtimes."""


def open_engine(served: Path, *, batch: int = 64, threads: int = 1) -> nt_cpu.Engine:
    """Load a packed file, or compile a run's folder.

    Raises:
        CheckpointError: neither is found, or the file or run is damaged.
    """
    if is_packed(served):
        return nt_cpu.load(served, threads=threads)
    return nt_cpu.compile(served, batch=batch, threads=threads)


def data_of(engine: nt_cpu.Engine, served: Path, source: str | None) -> Batches:
    """Load the test examples of an ensemble, normalised as in its training.

    Args:
        engine: of a run.
        served: path from which the engine was loaded, for errors.
        source: of other data; None: the run's own data.

    Raises:
        CheckpointError: the ensemble has no record of ``nt train``, which holds the normalisation of inputs.
        DataError: the data does not fit, or has classes that the ensemble does not know.
    """
    data, normalisation = trained_on(engine.record, str(served))
    settings = data if source is None else data.elsewhere(source)
    own = settings.source == data.source
    return load_test(settings, engine.spec.graph, normalisation, engine.classes, own=own)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions of an ensemble for examples in order.

    Attributes:
        probabilities: (N, classes), of the ensemble.
        members: (M, N), the class that each member finds most likely.
        classes: names of the classes; those beyond them are named by their numbers.
        labels: (N,), the true classes; None: they are not known.
        files: (N,), names of the examples' files; None: the examples are those of a dataset.
        metrics: of the ensemble; None: without labels there are none.
    """

    probabilities: NDArray[np.float32]
    members: NDArray[np.int64]
    classes: Sequence[str] = ()
    labels: NDArray[np.int64] | None = None
    files: Sequence[str] | None = None
    metrics: Metrics | None = None

    def name(self, label: int) -> str | int:
        """Return the name of a class, or its number where that is its name."""
        found = self.classes[label] if label < len(self.classes) else str(label)
        return label if found == str(label) else found

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one line for each example."""
        best = self.probabilities.argmax(axis=-1)
        agree = (self.members == best).mean(axis=0)
        for number, found in enumerate(best.tolist()):
            file = {} if self.files is None else {"file": self.files[number]}
            label = {} if self.labels is None else {"label": self.name(int(self.labels[number]))}
            yield {
                "example": number,
                **file,
                **label,
                "prediction": self.name(found),
                "probability": float(self.probabilities[number, found]),
                "members_agreeing": float(agree[number]),
            }

    def whole_rows(self) -> Iterator[dict[str, Any]]:
        """Yield one line for each example, with the probability of each class by its name."""
        names = [str(self.name(label)) for label in range(self.probabilities.shape[-1])]
        for row, probabilities in zip(self.rows(), self.probabilities.tolist(), strict=True):
            yield {**row, "probabilities": dict(zip(names, probabilities, strict=True))}

    def write_csv(self, file: Path) -> None:
        """Write every line, and the probability of each class: ``p7``, or ``p_cat`` where it has a name.

        Raises:
            NeuroTrailsError: the file cannot be written.
        """
        names = [self.name(label) for label in range(self.probabilities.shape[-1])]
        columns = [f"p_{name}" if isinstance(name, str) else f"p{name}" for name in names]
        found = zip(self.rows(), self.probabilities.tolist(), strict=True)
        write_csv(file, [{**row, **dict(zip(columns, each, strict=True))} for row, each in found])


def predict(engine: nt_cpu.Engine, data: Batches) -> Predictions:
    """Predict labelled examples.

    Raises:
        DataError: the network reads text, whose examples are single tokens.
    """
    _expect_classifier(engine)
    size = evaluation_batch_size(engine.spec.members, engine.spec.graph.output_shape)
    probabilities, members, labels, metrics = [], [], [], []
    for inputs, truth in data.epoch(0, size):
        logits = engine.heads(inputs)
        metrics.append(Metrics.of(logits, truth, engine.aggregation))
        probabilities.append(engine.probabilities(logits))
        members.append(logits.argmax(axis=-1))
        labels.append(truth)
    return Predictions(
        probabilities=np.concatenate(probabilities),
        members=np.concatenate(members, axis=1),
        classes=engine.classes or (),
        labels=np.concatenate(labels),
        metrics=Metrics.sum(metrics),
    )


def predict_images(engine: nt_cpu.Engine, sources: Sequence[str], limit: int | None = None) -> Predictions:
    """Predict images without labels, which are resized and normalised as the training data were.

    Args:
        engine: of a run on images.
        sources: as for :func:`nt_lab.serving.pictures.find`.
        limit: largest number of images, evenly spaced; None: all.

    Raises:
        DataError: no images, an image that does not fit, or a network that does not read images.
        CheckpointError: the ensemble has no record of its preprocessing.
    """
    _expect_classifier(engine)
    if engine.preprocessing is None:
        raise CheckpointError(
            "nt predict: the model's record does not say how images are normalised; expected what nt train "
            "or save_run wrote"
        )
    files = pictures.find(sources)
    files = [files[place] for place in spaced(len(files), len(files) if limit is None else limit)]
    size = evaluation_batch_size(engine.spec.members, engine.spec.graph.output_shape)
    probabilities, members = [], []
    for start in range(0, len(files), size):
        raw = [pictures.read(name, engine.preprocessing) for name in files[start : start + size]]
        logits = engine.heads(engine.prepare(np.concatenate(raw)))
        probabilities.append(engine.probabilities(logits))
        members.append(logits.argmax(axis=-1))
    return Predictions(
        probabilities=np.concatenate(probabilities),
        members=np.concatenate(members, axis=1),
        classes=engine.classes or (),
        files=files,
    )


def _expect_classifier(engine: nt_cpu.Engine) -> None:
    if isinstance(engine.spec.graph.input, Tokens):
        raise DataError(
            "nt predict: expected a classifier of images or vectors, found a language model; use nt evaluate"
        )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurement of one runtime at one batch size.

    Attributes:
        runtime: a name of :data:`nt_lab.serving.runtimes.RUNTIMES`, or :data:`SPARSE`.
        latency: of the runtime.
        flops: executed for one example.
        peak: of the machine, in FLOP/s; None: not known.
        differs: the largest difference of a probability from the sparse engine's; None: not compared.
        times_slower: latency divided by the sparse engine's.
    """

    runtime: str
    latency: Latency
    flops: int
    peak: float | None
    differs: float | None
    times_slower: float

    @property
    def agrees(self) -> bool:
        """Whether the probabilities agree with the sparse engine's, or were not compared."""
        return self.differs is None or self.differs <= AGREEMENT

    @property
    def share_of_peak(self) -> float | None:
        """FLOP/s of the runtime divided by the machine's peak; None: the peak is not known."""
        return None if self.peak is None else self.flops * self.latency.throughput / self.peak

    def to_dict(self) -> dict[str, Any]:
        """Return the figures in types that JSON can hold."""
        names = ("runtime", "flops", "share_of_peak", "differs", "agrees", "times_slower")
        return {name: getattr(self, name) for name in names} | self.latency.to_dict()


def bench(
    served: Path,
    *,
    run: Path | None = None,
    batches: Sequence[int] = (1, 16, 64),
    threads: int = 1,
    runtimes: Sequence[str] = (),
    seconds: float = 10.0,
    report: Callable[[str], None] = lambda _: None,
) -> list[Measured]:
    """Measure the sparse engine and dense runtimes of the same ensemble, in turn and in one process.

    Args:
        served: a run's folder, or a packed file.
        run: the run that was packed, because a packed file does not hold dense weights. Without the run, the
            runtimes get an ensemble of the same spec with other values, and predictions are not compared.
        batches: examples of one call.
        threads: of each runtime.
        runtimes: names of :data:`nt_lab.serving.runtimes.RUNTIMES`; none: all installed runtimes.
        seconds: approximate length of the measurement for each batch size.
        report: receives a line before each slow part.

    Raises:
        CheckpointError: as :func:`open_engine`.
        DataError: a runtime is unknown or not installed, the run is of another spec, or a batch is empty.
    """
    chosen = choose_runtimes(runtimes)
    for batch in batches:
        if batch < 1:
            raise DataError(f"batches: expected at least 1 example, found {batch}")
    packed = nt_cpu.load(served, threads=threads) if is_packed(served) else None
    source = served if packed is None else run
    saved = None if source is None else load_checkpoint(source)
    if packed is not None and saved is not None and saved.spec != packed.spec:
        raise DataError(f"{source}: its spec is not that of {served}; expected the run that was packed")
    dense = saved or untrained((packed or open_engine(served)).spec)
    counts = None if saved is None else {name: mask.count for name, mask in saved.masks.items()}
    figures = cost(dense.spec, counts)
    found: list[Measured] = []
    with Dense(dense) as network:
        calls = {}
        for name in chosen:
            report(f"{name}: starting")
            calls[name] = RUNTIMES[name].start(network, threads)
        for batch in batches:
            report(f"batch {batch}: measuring")
            own = packed or nt_cpu.compile(dense, batch=batch, threads=threads)
            found += _measure(own, calls, figures, batch, seconds, compared=saved is not None)
    return found


def choose_runtimes(names: Sequence[str]) -> list[str]:
    """Return the dense runtimes to measure.

    Raises:
        DataError: one is unknown or not installed.

    Example:
        >>> choose_runtimes(["torch"]), choose_runtimes(["torch", "onnxruntime"])
        (['torch'], ['torch', 'onnxruntime'])
    """
    for name in names:
        if name not in RUNTIMES:
            raise DataError(f"runtime {name!r}: expected some of {', '.join(RUNTIMES)}")
        if not RUNTIMES[name].present:
            missing = " ".join(RUNTIMES[name].packages)
            raise DataError(f"runtime {name!r}: not installed; pip install {missing}")
    return list(names) or [name for name, runtime in RUNTIMES.items() if runtime.present]


def untrained(spec: EnsembleSpec, seed: int = 0) -> Checkpoint:
    """Return an untrained ensemble, because latency does not depend on the values of weights."""
    masks = dict(initial_masks(spec.topology, spec.layout, seed))
    values = {
        name: np.where(masks[name].dense(), value, 0) if name in masks else value
        for name, value in initial_values(spec.layout, seed)
    }
    return Checkpoint(spec=spec, values=values, masks=masks)


def examples(spec: EnsembleSpec, count: int, seed: int = 0) -> NDArray[Any]:
    """Return random inputs (count, …)."""
    rng = np.random.default_rng(seed)
    shape = (count, *spec.layout.input_shape)
    if isinstance(spec.graph.input, Tokens):
        return rng.integers(spec.graph.input.vocabulary, size=shape)
    return rng.standard_normal(shape, dtype=np.float32)


def raw_examples(preprocessing: Preprocessing, count: int, seed: int = 0) -> NDArray[Any]:
    """Return random raw inputs (count, …): pixels, or vectors in the units of the training data."""
    rng = np.random.default_rng(seed)
    shape = (count, *preprocessing.shape)
    if preprocessing.units == "bytes":
        return rng.integers(256, size=shape, dtype=np.uint8)
    normalisation = preprocessing.normalisation
    vectors: NDArray[Any] = rng.standard_normal(shape) * np.array(normalisation.std) + normalisation.mean
    return vectors.astype(np.float32)


def _measure(
    engine: nt_cpu.Engine,
    calls: Mapping[str, Callable[[NDArray[Any]], NDArray[np.float32]]],
    figures: Cost,
    batch: int,
    seconds: float,
    *,
    compared: bool,
) -> Iterator[Measured]:
    inputs = examples(engine.spec, batch)
    truth = engine.probabilities(engine.heads(inputs))
    contenders = {SPARSE: engine.heads, **calls}
    latencies = interleaved(
        {name: lambda call=call: call(inputs) for name, call in contenders.items()},  # type: ignore[misc]
        batch=batch,
        seconds=seconds,
    )
    peak = peak_flops(engine.threads)
    for name, latency in latencies.items():
        sparse = name == SPARSE
        differs = np.abs(engine.probabilities(contenders[name](inputs)) - truth).max()
        yield Measured(
            runtime=name,
            latency=latency,
            flops=(figures.flops_inference if sparse else figures.flops_dense) + figures.flops_products,
            peak=peak,
            differs=float(differs) if compared and not sparse else None,
            times_slower=latencies[SPARSE].times_faster(latency),
        )
