"""Files appear whole or not at all; links stay links, and devices devices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nt_core.files import atomically, clear_temporaries, write_atomically, write_out

LONG = "é" * 120 + "[*]"
"""243 bytes, to which nothing can be added."""


def fail_half_way(path: Path, error: BaseException, *, killed: bool = False) -> None:
    """Fail after half of a file; what a killed process has written stays."""
    with atomically(path) as temporary:
        pid = "1" if killed else str(os.getpid())
        temporary.with_name(temporary.name.replace(str(os.getpid()), pid)).write_bytes(b"half")
        raise error


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for content in (b"one", b"two"):  # the target does not exist at first
        link = tmp_path / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("disk") / "target")
        write_atomically(link, content)
        assert link.is_symlink()
        assert (tmp_path / "disk" / "target").read_bytes() == content
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["target"]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    for path, said in (
        (Path("/dev/null"), "a pipe or a device"),
        (tmp_path / "pipe", "a pipe or a device"),
        (tmp_path / "link", "a pipe or a device"),
        (tmp_path / "folder", "a folder"),
    ):
        with pytest.raises(OSError, match=f"expected a file, found {said}"):
            write_atomically(path, b"x")
    assert Path("/dev/null").is_char_device()
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "folder", "link"}


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    with pytest.raises(OSError, match="full"):
        fail_half_way(tmp_path / "file", OSError("full"))
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_any_name_that_the_system_allows(tmp_path: Path) -> None:
    write_atomically(tmp_path / LONG, b"x")
    for name in (LONG, "a[b]*"):
        with pytest.raises(KeyboardInterrupt):
            fail_half_way(tmp_path / name, KeyboardInterrupt(), killed=True)
        clear_temporaries(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [LONG]


def test_a_stream_is_written_to(tmp_path: Path) -> None:
    write_out(Path("/dev/null"), b"x")
    assert Path("/dev/null").is_char_device()
    write_out(tmp_path / "file", b"x")
    assert (tmp_path / "file").read_bytes() == b"x"
