"""Processes forked from one server for all tests of a run, which has imported what they need."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.context import ForkServerContext
from typing import Final

PRELOADED: Final = [
    "accelerate",
    "datasets",
    "nt_lab.cli.main",
    "nt_lab.training.train",
    "nt_torch",
    "pytest",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "typer.testing",
]


def forkserver() -> ForkServerContext:
    """Return what starts processes, and hears when they end."""
    # Whoever started the tests may have blocked it; the server would inherit that, and hear of no end.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context
