"""Setup of device, precision and processes for a training, by Hugging Face accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin

from nt_core import DataError
from nt_core.errors import nearest
from nt_core.training import Training
from nt_torch.network.model import find_device

PRECISIONS: Final = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def make_accelerator(
    training: Training, device: str | None, trackers: Sequence[str], folder: str | Path | None
) -> Accelerator:
    """Make the accelerator of a training.

    Raises:
        DataError: a device, tracker or precision is not available.
    """
    wanted = find_device(device) if device else None
    if wanted is not None and wanted.type == "cuda":
        torch.cuda.set_device(wanted)
    installed = [tracker.value for tracker in get_available_trackers()]
    for tracker in trackers:
        if tracker not in installed:
            raise DataError(
                f"tracker {tracker!r}: not installed, or unknown to accelerate{nearest(tracker, installed)}; "
                "install its package"
            )
    accelerator = Accelerator(
        cpu=wanted is not None and wanted.type == "cpu",
        mixed_precision=PRECISIONS[training.precision],
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=training.accumulation),
        log_with=list(trackers) or None,
        project_dir=folder,
    )
    if training.precision == "float16" and accelerator.device.type == "cpu":
        raise DataError("training.precision: float16 needs a GPU; use bfloat16 or float32 on a CPU")
    if trackers:
        accelerator.init_trackers("run")
    return accelerator


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Choose algorithms that reproduce the same bits, if ``wanted``."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(wanted or before, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@contextmanager
def accelerate_alone() -> Iterator[None]:
    """Reset accelerate's device and precision afterwards, unless the caller had set them already."""
    callers = bool(AcceleratorState._shared_state)
    try:
        yield
    finally:
        if not callers:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
