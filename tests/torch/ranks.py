"""What the tests of several processes run in each of them."""

from __future__ import annotations

import faulthandler
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

sys.path.insert(0, str(Path(__file__).parents[1]))

from forked import forkserver

SECONDS = 500
"""When ranks are taken to wait for each other for ever; no test comes near it, however busy the machine."""


def _start(
    rank: int,
    port: int,
    world: int,
    run: Callable[..., Any],
    arguments: Any,
    answer: Connection,
    stacks: Path,
) -> None:
    faulthandler.register(signal.SIGUSR1, stacks.joinpath(str(rank)).open("w"), all_threads=True)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1",
    }  # fmt: skip
    torch.set_num_threads(1)
    try:
        file, name = run
        answer.send((runpy.run_path(file)[name](rank, *arguments), None))
    except Exception as error:  # the test says what it expects
        answer.send((None, f"{type(error).__name__}: {error}"))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def in_processes(world: int, run: Callable[..., Any], *arguments: Any) -> list[tuple[Any, str | None]]:
    """Run a function in several processes that can talk; return each rank's answer, or its error.

    They find it by its file: pytest gives modules of tests names that nobody else can import.

    Raises:
        ChildProcessError: a process ended without an answer, or some did not answer in time; with the
            stacks of those that still ran.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = forkserver()
    found = run.__code__.co_filename, run.__name__
    with tempfile.TemporaryDirectory() as stacks:
        started = []
        for rank in range(world):
            here, there = context.Pipe(duplex=False)
            given = (rank, port, world, found, arguments, there, Path(stacks))
            started.append((context.Process(target=_start, args=given), here))
            started[-1][0].start()
            there.close()
        try:
            return _answers(started, Path(stacks))
        finally:
            for process, _ in started:
                process.join(10)
                process.kill()


def _answers(started: list[tuple[Any, Connection]], stacks: Path) -> list[tuple[Any, str | None]]:
    """What each process sent; a process that ends closes its pipe, so none is waited for in vain."""
    end = time.monotonic() + SECONDS
    answers: dict[int, tuple[Any, str | None]] = {}
    ended = []
    while waiting := [pipe for rank, (_, pipe) in enumerate(started) if rank not in answers]:
        ready = wait(waiting, max(end - time.monotonic(), 0))
        for rank, (process, pipe) in enumerate(started):
            if pipe in ready:
                try:
                    answers[rank] = pipe.recv()
                except EOFError:
                    process.join(10)
                    ended.append(f"rank {rank} ended with exit code {process.exitcode} and no answer")
        if ended or not ready:
            problems = ended or [f"{len(waiting)} ranks did not answer in {SECONDS} s"]
            raise ChildProcessError("\n".join([*problems, *_stacks(started, stacks)]))
    return [answers[rank] for rank in range(len(started))]


def _stacks(started: list[tuple[Any, Connection]], stacks: Path) -> list[str]:
    """Where each process is that still runs, which is then killed."""
    running = [rank for rank, (process, _) in enumerate(started) if process.is_alive()]
    for rank in running:
        if (stacks / str(rank)).exists():
            os.kill(started[rank][0].pid, signal.SIGUSR1)
    time.sleep(0.5)
    for rank in running:
        started[rank][0].kill()
    return [
        f"rank {path.name}:\n{path.read_text()}"
        for path in sorted(stacks.iterdir())
        if int(path.name) in running
    ]
