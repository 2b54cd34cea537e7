"""Processes started by ``torchrun`` or ``accelerate launch``: this process's rank, and checks."""

from __future__ import annotations

import os

from nt_core.errors import NeuroTrailsError
from nt_lab.runs.backends import Backend


def rank() -> int:
    """Return this process's rank among the processes that ``torchrun`` or ``accelerate launch`` started.

    Example:
        >>> rank()
        0
    """
    return int(os.environ["RANK"]) if "LOCAL_RANK" in os.environ else 0


def restart_problem() -> str | None:
    """Return the reason why a restart by ``torchrun`` may hang; None: no reason is known.

    PyTorch 2.4 and later share one store between restarts. A restarted process may find there the address of
    a process that died (pytorch issue 135712).
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if rank() or not shared or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return None
    return (
        "torchrun: processes that it starts again may wait for ever for those that died (pytorch issue "
        "135712); set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun"
    )


def expect_processes(backend: Backend, shard: bool) -> Backend:
    """Return a backend, after a check that it can train in the processes that were started.

    Raises:
        NeuroTrailsError: the backend trains in one process only, or cannot shard.
    """
    if shard and backend.name != "torch":
        raise NeuroTrailsError(f"backend {backend.name}: it does not shard; leave --shard out, or use torch")
    count = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if count > 1 and backend.name == "keras":
        raise NeuroTrailsError(
            f"backend keras: expected one process, found {count}; start nt without torchrun (TensorFlow uses "
            "several devices by tf.distribute, in a script), or choose --backend torch"
        )
    return backend
