"""Starts each backend and engine once, in a process of its own, which computes one task after another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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
Worker = tuple[Path, "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Worker]]:
    """Start the process of each backend; most of its time goes into importing."""
    root = tmp_path_factory.mktemp("parity")
    with ExitStack() as stack:
        yield {name: stack.enter_context(started(*how, root / name)) for name, how in BACKENDS.items()}


@contextmanager
def started(backend: str, engine: str, folder: Path) -> Iterator[Worker]:
    """Start a process that computes each task it reads, until there are no more."""
    with subprocess.Popen(
        [sys.executable, str(WORKER), backend, str(folder)],
        env=os.environ | {"KERAS_BACKEND": engine or "tensorflow"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        yield folder, process


@pytest.fixture(scope="session")
def computed(workers: dict[str, Worker]) -> Load:
    """Give what a backend computes for a task; at the first, all backends compute it, two at a time."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}

    def compute(name: str, task: str) -> Mapping[str, Any]:
        folder, process = workers[name]
        assert process.stdin is not None
        assert process.stdout is not None
        print(task, file=process.stdin)
        assert process.stdout.readline() == f"{task}\n", f"{name}: its process ended"
        with np.load(folder / f"{task}.npz") as arrays:
            return dict(arrays)

    def load(name: str, task: str) -> Mapping[str, Any]:
        if task not in found:
            with ThreadPoolExecutor(2) as pool:
                computed = pool.map(compute, BACKENDS, [task] * len(BACKENDS))
                found[task] = dict(zip(BACKENDS, computed, strict=True))
        return found[task][name]

    return load
