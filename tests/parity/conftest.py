"""Runs each backend and engine once, in a process of its own, over the same inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
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
    """Give what a backend computes for a task; at the first, all backends compute it, two at a time."""
    root, found = tmp_path_factory.mktemp("parity"), {}

    def compute(name: str, task: str) -> Mapping[str, Any]:
        backend, engine = BACKENDS[name]
        subprocess.run(
            [sys.executable, str(WORKER), backend, task, str(root / name)],
            env=os.environ | {"KERAS_BACKEND": engine or "tensorflow"},
            check=True,
            timeout=600,
        )
        with np.load(root / name / f"{task}.npz") as arrays:
            return dict(arrays)

    def load(name: str, task: str) -> Mapping[str, Any]:
        if task not in found:
            with ThreadPoolExecutor(2) as pool:
                computed = pool.map(compute, BACKENDS, [task] * len(BACKENDS))
                found[task] = dict(zip(BACKENDS, computed, strict=True))
        return found[task][name]

    return load
