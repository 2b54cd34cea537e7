"""What the tests of crashes train in processes of their own, which they kill."""

from __future__ import annotations

import resource
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # which making an optimiser imports, and takes a second

import nt_models
from nt_core.errors import NeuroTrailsError
from nt_core.spec import RunSpec, read_spec
from nt_core.states import Stopped
from nt_core.testing.data import Blobs
from nt_lab.data import Normalisation, Split
from nt_lab.runs import signals
from nt_lab.runs.backends import choose
from nt_lab.training import train as lab

GRAPH = [
    "graph.name=mlp",
    "graph.inputs=6",
    "graph.hidden=[16,16]",
    "graph.classes=3",
    "training.batch_size=18",
]
choose("torch")()  # imports the backend before processes are forked
RUNS = {
    "neurotrails": ["topology.interval=3", "plan.steps=120", "topology.sparsity=0.5"],
    "dst_ensemble": ["topology.interval=3", "plan.steps=50", "plan.at_once=1", "topology.sparsity=0.5"],
    "edst": ["topology.interval=3", "plan.steps=90", "topology.sparsity=0.5"],
}


def run_of(preset: str) -> RunSpec:
    return read_spec(preset, nt_models.ARCHITECTURES, [*GRAPH, *RUNS[preset], "name=killed"])


def train(preset: str, folder: Path, **options: Any) -> dict[str, Any]:
    """Train on points in memory, so that a process has soon begun."""
    normalisation = Normalisation(mean=(0.0,), std=(1.0,))
    split = Split(train=Blobs(), test=Blobs(30, shuffle=False), normalisation=normalisation)
    with mock.patch("nt_lab.training.train.load", return_value=split):
        return lab.train(run_of(preset), folder, device="cpu", backend=choose("torch"), **options)


def child(preset: str, folder: Path, every: int) -> None:
    """Train as ``nt train`` does, until somebody kills it."""
    torch.set_num_threads(1)
    train(preset, folder, save_every=every)


def child_asked_to_stop(preset: str, folder: Path) -> None:
    """Train as ``nt train`` does; leave with its exit code when a signal asks to stop."""
    torch.set_num_threads(1)

    def report(event: Mapping[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 5:
            folder.with_suffix(".ready").touch()
        time.sleep(0.01)

    with signals.stopping(folder) as stopping:
        try:
            train(preset, folder, stopping=stopping, report=report)
        except Stopped:
            folder.with_suffix(".stopped").touch()
            raise


def child_without_room(preset: str, folder: Path) -> None:
    """Train until step 40, from when on no file can grow beyond a kilobyte."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(event: Mapping[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 40:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    try:
        train(preset, folder, save_every=7, report=fill)
    except NeuroTrailsError as error:
        folder.with_suffix(".error").touch()  # an empty file has room
        sys.exit(str(error))
