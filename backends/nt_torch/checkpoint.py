"""Conversion between a PyTorch module and the portable checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nt_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nt_core.masks import Mask
from nt_core.metrics import Metrics
from nt_core.runs import versions, write_run
from nt_core.training import Preprocessing, Trained, Training
from nt_torch.network.model import Ensemble, as_numpy, fast_layout, find_device, unwrap
from nt_torch.processes.group import from_main


def checkpoint(model: nn.Module, record: Mapping[str, Any] | None = None) -> Checkpoint:
    """Return a model as a checkpoint in memory; :func:`save` writes one to a folder.

    Args:
        model: of ``nt_torch.compile``, perhaps wrapped; every process must call this for a sharded model.
        record: further values of the checkpoint: seed, steps, metrics, ….

    Example:
        >>> import nt_core, nt_models, nt_torch
        >>> spec = nt_core.PRESETS["static"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> saved = checkpoint(nt_torch.compile(spec))
        >>> sum(mask.count for mask in saved.masks.values())
        35
    """
    ensemble = unwrap(model)
    masks = {}
    for name in ensemble.masked:
        active = ensemble.mask(name)
        assert active is not None
        masks[name] = Mask.from_dense(np.asarray(as_numpy(active), np.bool_))
    values = {placed.name: as_numpy(ensemble.array(placed.name)) for placed in ensemble.spec.layout.weights}
    return Checkpoint(spec=ensemble.spec, values=values, masks=masks, record=record or {})


def save(folder: str | Path, model: nn.Module, record: Mapping[str, Any] | None = None) -> None:
    """Write a model as a checkpoint directory, which :func:`load` of either backend opens.

    Args:
        folder: made if it is not there; other files in it are left alone.
        model: compiled by ``nt_torch.compile``, perhaps wrapped. Of several processes all must call it, and
            the first one writes.
        record: plain values to keep with it: seed, steps, metrics, ….

    Raises:
        CheckpointError: as :func:`nt_core.checkpoint.save_checkpoint`.

    Example:
        >>> import tempfile
        >>> import nt_core, nt_models, nt_torch
        >>> spec = nt_core.PRESETS["static"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, nt_torch.compile(spec), record={"steps": 0})
        ...     load(folder).spec == spec
        True
    """
    saved = checkpoint(model, record)
    from_main(lambda: save_checkpoint(folder, saved))


def save_run(
    folder: str | Path,
    model: nn.Module | Trained[Any],
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
        model: compiled by ``nt_torch.compile``, perhaps wrapped; or what ``train`` returned, which knows its
            metrics, steps, examples and seconds. Of several processes all must call this.
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
        >>> import numpy as np, nt_core, nt_models, nt_torch
        >>> from nt_core.runs import FILES
        >>> spec = nt_core.PRESETS["static"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> model = nt_torch.compile(spec)
        >>> test = np.zeros((4, 8), np.float32), np.zeros(4, int)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_run(folder, model, metrics=nt_torch.evaluate(model, test), classes=["a", "b", "c"])
        ...     sorted(path.name for path in Path(folder).iterdir()) == sorted(FILES)
        True
    """
    own: nn.Module = model.model if isinstance(model, Trained) else model
    saved = checkpoint(own, record)
    device = str(next(own.parameters()).device)
    where = {"backend": "torch", "device": device, "versions": versions(torch)}
    from_main(
        lambda: write_run(
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
    )


def load(folder: str | Path, *, device: torch.device | str | None = "cpu") -> Ensemble:
    """Load the module of a checkpoint directory, in evaluation mode.

    Args:
        folder: written by :func:`save`, or by another backend.
        device: where it shall live; None: a GPU if there is one.

    Raises:
        CheckpointError: as :func:`nt_core.checkpoint.load_checkpoint`.
    """
    return restore(load_checkpoint(folder), device=device)


def restore(saved: Checkpoint, *, device: torch.device | str | None = "cpu") -> Ensemble:
    """Make the module of a checkpoint in memory, in evaluation mode."""
    with torch.device("meta"):
        model = Ensemble(saved.spec)
    model = model.to_empty(device=find_device(device))
    fill(model, saved)
    return fast_layout(model).eval()


@torch.no_grad()
def fill(model: Ensemble, saved: Checkpoint) -> None:
    """Copy a checkpoint's masks and values into a model of the same spec."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.num_batches_tracked is not None:
            module.num_batches_tracked.zero_()
    for name, value in saved.values.items():
        model.stored(name).copy_(torch.from_numpy(value))
    for name, mask in saved.masks.items():
        model.set_mask(name, mask)
