"""Conversion between a Keras model and the portable checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nt_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nt_core.masks import Mask
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
