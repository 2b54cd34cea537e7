"""A backend that trains nothing, and small datasets in folders."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import hypothesis
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from PIL import Image

from nt_core import EnsembleSpec, initial_masks, initial_values
from nt_core.checkpoint import Checkpoint, load_checkpoint
from nt_core.metrics import Metrics
from nt_core.training import Trained
from nt_lab.runs.backends import BACKENDS, ENGINE_VARIABLE, Backend

hypothesis.settings.register_profile(
    "tests", hypothesis.settings.get_profile("patient"), derandomize=True, max_examples=50
)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what datasets caches out of the user's home, and its bars out of stderr."""
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")


def fake_checkpoint(spec: EnsembleSpec) -> Checkpoint:
    values = dict(initial_values(spec.layout, 0))
    masks = dict(initial_masks(spec.topology, spec.layout, 0))
    for name, mask in masks.items():
        values[name] = values[name] * mask.dense()
    return Checkpoint(spec=spec, values=values, masks=masks)


def measure(spec: EnsembleSpec, data: Any, aggregation: Any = None) -> Metrics:
    """Logits that are right for even labels in the first member, and a hash of the pixels elsewhere."""
    parts = []
    for inputs, labels in data.epoch(0, 64):
        logits = predict(spec, inputs)
        logits[0] = 0.0
        logits[0, np.arange(len(labels)), labels - labels % 2] = 2.0
        parts.append(Metrics.of(logits, labels, aggregation or spec.mean))
    return Metrics.sum(parts)


def predict(spec: EnsembleSpec, inputs: Any) -> Any:
    """Logits (M, B, C) that are a hash of the pixels."""
    logits = np.zeros((spec.members, len(inputs), spec.graph.output_shape[-1]))
    for member in range(spec.members):
        guess = (np.abs(inputs).sum(axis=tuple(range(1, inputs.ndim))) * member).astype(int)
        logits[member, np.arange(len(inputs)), guess % logits.shape[-1]] = 1.0
    return logits


def fake_train(spec: EnsembleSpec, training: Any, data: Any, **options: Any) -> Trained[EnsembleSpec]:
    per_epoch = -(-len(data) // training.batch_size)
    total = spec.plan.total_steps(per_epoch)
    report, metrics = options["report"], measure(spec, options["test"])
    epochs = -(-total // per_epoch)
    report({"event": "start", "total_steps": total, "total_epochs": epochs, "device": "nowhere"})
    for step in range(1, total + 1):
        report({"event": "step", "step": step})
        if step % 5 == 0:
            report({"event": "update", "step": step, "pruned": 3, "grown": 3, "active": 10})
        if step % per_epoch == 0 or step == total:
            done = -(-step // per_epoch)
            figures = {"loss": 1 / step, "density": 0.2, **metrics.summary(), **metrics.pairs()}
            report({"event": "epoch", "epoch": done, "step": step, **figures})
    seen = min(total * training.batch_size, epochs * len(data))
    return Trained(model=spec, examples=seen, steps=total, metrics=metrics, seconds=1.5)


VERBS: dict[str, Callable[..., Any]] = {
    "train": fake_train,
    "checkpoint": fake_checkpoint,
    "load": lambda folder, device: load_checkpoint(folder),
    "evaluate": lambda model, data, aggregation=None: measure(
        getattr(model, "spec", model), data, aggregation
    ),
    "predict": lambda model, inputs: predict(getattr(model, "spec", model), inputs),
}


def make_fake_backend() -> Backend:
    return Backend(name="fake", **VERBS)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make exactly these frameworks look installed, and the fake be every backend; Keras is not imported."""
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setenv(ENGINE_VARIABLE, "")  # set first, so that what the code under test sets is undone
    for name in BACKENDS:
        monkeypatch.setitem(sys.modules, f"nt_{name}", SimpleNamespace(**VERBS))

    def install(*packages: str) -> None:
        there = {*packages, *(f"nt_{name}" for name in BACKENDS)}

        def find_spec(package: str) -> ModuleSpec | None:
            return ModuleSpec(package, None, origin="here") if package in there else None

        monkeypatch.setattr("nt_lab.runs.backends.find_spec", find_spec)

    return install


@pytest.fixture
def fake_backend(install: Callable[..., None]) -> Callable[[], Backend]:
    """Put the fake in the place of every backend, on every engine."""
    install("torch", "accelerate", "keras", "tensorflow", "jax")
    return make_fake_backend


def pictures(count: int, *, size: int = 8, channels: int = 3, seed: int = 0) -> list[Image.Image]:
    shape = (count, size, size) if channels == 1 else (count, size, size, channels)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def make_dataset(count: int = 12, *, classes: int = 4, **how: Any) -> Dataset:
    columns = {"img": pictures(count, **how), "label": [i % classes for i in range(count)]}
    return Dataset.from_dict(columns, Features(img=datasets.Image(), label=ClassLabel(num_classes=classes)))


def store(folder: Path, **splits: Dataset) -> str:
    """Write splits as a folder of parquet files."""
    folder.mkdir(exist_ok=True)
    for name, split in splits.items():
        split.to_parquet(folder / f"{name}.parquet")
    return str(folder)


@pytest.fixture
def labelled() -> Callable[..., Dataset]:
    return make_dataset


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., str]:
    """Write splits into a folder and give its path."""
    return lambda **splits: store(tmp_path / "stored", **splits)


@pytest.fixture
def parquet(tmp_path: Path) -> str:
    """A folder with 12 colour images of 8×8 in 4 classes to train on, 5 to test on."""
    return store(tmp_path / "data", train=make_dataset(12), test=make_dataset(5, seed=1))


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """The same, as ``save_to_disk`` writes it."""
    DatasetDict(train=make_dataset(12), test=make_dataset(5, seed=1)).save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


@pytest.fixture
def image_folder(tmp_path: Path) -> str:
    """The same, as images in a folder for each class."""
    for split, dataset in (("train", make_dataset(12)), ("test", make_dataset(5, seed=1))):
        for i, example in enumerate(dataset):
            folder = tmp_path / "images" / split / f"class{example['label']}"
            folder.mkdir(parents=True, exist_ok=True)
            example["img"].save(folder / f"{i:03}.png")
    return str(tmp_path / "images")
