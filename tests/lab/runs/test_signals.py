"""The first signal asks a training to stop; whoever reads the log may go away."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nt_core.states import Stopped
from nt_lab import console
from nt_lab.runs.progress import progress
from nt_lab.runs.signals import ASKING, Interrupted, stopping


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ASKING}
    yield
    for number, handler in before.items():
        assert signal.getsignal(number) == handler
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)


def ask(number: signal.Signals, folder: Path) -> None:
    with stopping(folder) as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
        raise Stopped("stopped after step 1 of 2")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_and_is_told_by_the_exit_code(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", closed)  # the terminal is gone
    with pytest.raises(Interrupted, match=rf"go on with: nt train --resume {tmp_path}") as caught:
        ask(number, tmp_path)
    assert caught.value.exit_code == 128 + number


def test_nohup_is_heeded(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping(tmp_path) as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked()
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nothing_ends_where_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as out, monkeypatch.context() as changed:
        changed.setattr(sys, "stdout", out)
        changed.setattr(sys, "stderr", out)
        with console.lasting():
            sys.stdout.write("read")
            sys.stdout.flush()
            os.close(reader)
            with progress(console.screen(stderr=True), "run") as report:
                report({"event": "start", "total_steps": 2, "total_epochs": 2, "device": "cpu"})
                for step in (1, 2):
                    report({"event": "epoch", "epoch": step, "step": step, "loss": 0.5})
            console.print_json({"a": 1})
            sys.stdout.write("x" * 100_000)
        assert sys.stdout is out
        out.write("what is written afterwards is lost too")


def test_a_full_disk_behind_the_log_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as out, monkeypatch.context() as changed:
        changed.setattr(sys, "stdout", out)
        with console.lasting():
            sys.stdout.write("x" * 100_000)
            sys.stdout.flush()
            console.screen().print("text")


def test_a_stream_may_be_closed_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as changed:
        changed.setattr(sys, "stdout", None)
        with console.lasting():
            assert sys.stdout is None
