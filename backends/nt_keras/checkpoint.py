"""Conversion between a Keras model and the portable checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from nt_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nt_core.masks import Mask
from nt_core.metrics import Metrics
from nt_core.runs import versions, write_run
from nt_core.training import Preprocessing, Trained, Training
from nt_keras.compile import Ensemble, fill
from nt_keras.engines.devices import on_device
from nt_keras.network.model import expect_network


def checkpoint(model: Ensemble, record: Mapping[str, Any] | None = None) -> Checkpoint:
    """Return a model as a checkpoint in memory; :func:`save` writes one to a folder.

    Args:
        model: of ``nt_keras.compile``.
        record: further values of the checkpoint: seed, steps, metrics, ….

    Example:
        >>> import nt_core, nt_models, nt_keras
        >>> spec = nt_core.PRESETS["static"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> saved = checkpoint(nt_keras.compile(spec))
        >>> sum(mask.count for mask in saved.masks.values())
        35
    """
    expect_network(model)
    masks = {}
    for name in model.masked:
        active = model.mask(name)
        assert active is not None
        masks[name] = Mask.from_dense(active)
    values = {placed.name: model.array(placed.name) for placed in model.spec.layout.weights}
    return Checkpoint(spec=model.spec, values=values, masks=masks, record=record or {})


def save(folder: str | Path, model: Ensemble, record: Mapping[str, Any] | None = None) -> None:
    """Write a model as a checkpoint directory, which :func:`load` of either backend opens.

    Args:
        folder: made if it is not there; other files in it are left alone.
        model: compiled by ``nt_keras.compile``.
        record: plain values to keep with it: seed, steps, metrics, ….

    Raises:
        CheckpointError: as :func:`nt_core.checkpoint.save_checkpoint`.

    Example:
        >>> import tempfile
        >>> import nt_core, nt_models, nt_keras
        >>> spec = nt_core.PRESETS["static"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, nt_keras.compile(spec), record={"steps": 0})
        ...     load(folder).spec == spec
        True
    """
    saved = checkpoint(model, record)
    save_checkpoint(folder, saved)


def save_run(
    folder: str | Path,
    model: Ensemble | Trained[Any],
    *,
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
    record: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model that a loop of one's own trained as a run, for every command of ``nt`` that takes one.

    Args:
        folder: made if it is not there; other files in it are left alone.
        model: compiled by ``nt_keras.compile``; or what ``train`` returned, which knows its metrics,
            steps, examples and seconds.
        metrics: on the test set, as ``evaluate`` returns them.
        data: what the model was trained on, from which ``nt evaluate`` loads the test split: what
            ``nt_lab.data.load`` returned, which knows classes and preprocessing; or a
            :class:`nt_core.training.Data`, its fields, or the name of a source.
        classes: names of the classes, in the order of the outputs; None: those in ``data``.
        preprocessing: of raw examples, without which others' examples cannot be evaluated; None: that in
            ``data``.
        name: of the run in tables; None: the folder's.
        training: the recipe, as far as it was one.
        seed: of the training.
        steps: optimiser steps taken.
        examples: training examples seen, from which tables tell the FLOPs of the training.
        seconds: of training.
        history: a record for each epoch, in order, its metrics say; see :func:`nt_core.runs.write_run`.
        record: further plain values to keep with it.
        overwrite: whether an earlier run in the folder may be replaced.

    Raises:
        DataError: there are no metrics, or something that is told is of another kind.
        CheckpointError: as :func:`save`.
        NeuroTrailsError: the folder holds a run already, or cannot be written.

    Example:
        >>> import tempfile
        >>> import numpy as np, nt_core, nt_models, nt_keras
        >>> from nt_core.runs import FILES
        >>> spec = nt_core.PRESETS["static"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> model = nt_keras.compile(spec)
        >>> test = np.zeros((4, 8), np.float32), np.zeros(4, int)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_run(folder, model, metrics=nt_keras.evaluate(model, test), classes=["a", "b", "c"])
        ...     sorted(path.name for path in Path(folder).iterdir()) == sorted(FILES)
        True
    """
    own: Ensemble = model.model if isinstance(model, Trained) else model
    saved = checkpoint(own, record)
    where = {"backend": "keras", "engine": keras.backend.backend(), "versions": versions(keras)}
    write_run(
        folder,
        saved,
        trained=model if isinstance(model, Trained) else None,
        metrics=metrics,
        data=data,
        classes=classes,
        preprocessing=preprocessing,
        name=name,
        training=training,
        seed=seed,
        steps=steps,
        examples=examples,
        seconds=seconds,
        history=history,
        where=where,
        overwrite=overwrite,
    )


def load(folder: str | Path, *, device: str | None = "cpu") -> Ensemble:
    """Load the model of a checkpoint directory, which any backend may have written.

    Args:
        folder: written by :func:`save`, or by another backend.
        device: where it shall live; None: where Keras puts it.

    Raises:
        CheckpointError: as :func:`nt_core.checkpoint.load_checkpoint`.
    """
    return restore(load_checkpoint(folder), device=device)


def restore(saved: Checkpoint, *, device: str | None = "cpu") -> Ensemble:
    """Make the model of a checkpoint in memory."""
    dtype = next((str(value.dtype) for value in saved.values.values()), "float32")
    with on_device(device):
        model = Ensemble(saved.spec, dtype=dtype)
        fill(model, saved.values.items(), saved.masks.items())
    return model
