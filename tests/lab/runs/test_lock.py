"""One process at a time writes a folder; a process that died holds nobody up."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from nt_core import NeuroTrailsError
from nt_lab.runs import lock
from nt_lab.runs.lock import LOCK, locked


def kept_by_a_dead_process(folder: Path) -> int:
    """Leave a lock's file as a process leaves it that is killed."""
    pid = os.fork()
    if not pid:
        held = locked(folder)  # which would end with the last reference to it
        held.__enter__()
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@pytest.mark.parametrize("supported", [True, False], ids=["flock", "no flock"])
def test_the_second_is_told_who_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    if not supported:
        monkeypatch.setattr(lock, "_flock", lambda _: None)
    folder = tmp_path / "a" / "run"
    who = rf"run: in use by process {os.getpid()} on {socket.gethostname()} since \d{{4}}-\d\d-\d\d \d\d:\d\d"
    with locked(folder):
        for _ in range(2):
            with pytest.raises(NeuroTrailsError, match=who):
                locked(folder).__enter__()
        (folder / "mine").touch()
    assert [path.name for path in folder.iterdir()] == ["mine"]
    with locked(folder):
        pass


@pytest.mark.parametrize("supported", [True, False], ids=["flock", "no flock"])
def test_a_dead_process_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    if not supported:
        monkeypatch.setattr(lock, "_flock", lambda _: None)
    dead = kept_by_a_dead_process(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == dead
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_another_machines_process_may_live_where_the_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = {"host": "elsewhere", "pid": 1, "since": "yesterday"}
    (tmp_path / LOCK).write_text(json.dumps(elsewhere))
    with monkeypatch.context() as without:
        without.setattr(lock, "_flock", lambda _: None)
        with pytest.raises(
            NeuroTrailsError, match=r"process 1 on elsewhere since yesterday.*or delete \S+lock"
        ):
            locked(tmp_path).__enter__()
    with locked(tmp_path):  # with locks the system knows that it died
        pass


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("file", "expected a folder, found a file"),
        ("file/run", "expected a folder, found a file"),
        ("x" * 300, "File name too long"),
    ],
)
def test_what_cannot_be_a_folder(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NeuroTrailsError, match=rf"cannot be written \({said}\); choose another folder"):
        locked(tmp_path / name).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
