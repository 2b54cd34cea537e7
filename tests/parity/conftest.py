"""Runs each backend and engine once, in a process of its own, over the same inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORKER = Path(__file__).with_name("worker.py")
BACKENDS = {
    "numpy": ("numpy", ""),
    "torch": ("torch", ""),
    "keras-tensorflow": ("keras", "tensorflow"),
    "keras-jax": ("keras", "jax"),
    "keras-torch": ("keras", "torch"),
}
"""Name → backend and Keras' engine."""

Load = Callable[[str, str], Mapping[str, Any]]


@pytest.fixture(scope="session")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Compute a task with a backend, once; (name, task) → its arrays."""
    root, found = tmp_path_factory.mktemp("parity"), {}

    def compute(name: str, task: str) -> Mapping[str, Any]:
        if (name, task) not in found:
            backend, engine = BACKENDS[name]
            subprocess.run(
                [sys.executable, str(WORKER), backend, task, str(root / name)],
                env=os.environ | {"KERAS_BACKEND": engine or "tensorflow"},
                check=True,
                timeout=600,
            )
            with np.load(root / name / f"{task}.npz") as arrays:
                found[name, task] = dict(arrays)
        return found[name, task]

    return compute
