"""Lock of a folder that one process at a time writes; the lock of a process that died holds nobody up."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from nt_core.errors import NeuroTrailsError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

LOCK: Final = ".lock"
"""The file in a folder that is locked; it names the process that holds the lock."""

NOT_SUPPORTED: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
"""Errors by which a file system tells that it has no locks."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it does not exist.

    The lock is the system's (``flock``), which ends with the process that holds it. Where the file system has
    none, the lock is the file, and that of a process of this machine that no longer runs counts for nothing.
    A folder that was made for the lock alone is deleted with it.

    Raises:
        NeuroTrailsError: another process holds the lock, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> with locked(folder):
        ...     with locked(folder):
        ...         pass
        Traceback (most recent call last):
        nt_core.errors.NeuroTrailsError: .../run: in use by process ...
        >>> folder.exists()
        False
    """
    made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path)
    except OSError as error:
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "expected a folder, found a file" if in_the_way else error.strerror
        raise NeuroTrailsError(
            f"{folder}: cannot be written ({reason}); choose another folder with --out"
        ) from None
    try:
        yield
    finally:
        _release(handle, path)
        with suppress(OSError):
            for each in made:
                each.rmdir()


def _acquire(path: Path) -> int:
    """Return the open file whose lock is held.

    Raises:
        NeuroTrailsError: another process holds it.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            free = _flock(handle)
            if free is None:
                free = not _lives(_holder(path))
            if not free:
                raise NeuroTrailsError(_in_use(path))
            if not _is_at(handle, path):  # its holder deleted it between our two calls
                os.close(handle)
                continue
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(_ourselves()).encode())
        except BaseException:
            with suppress(OSError):
                os.close(handle)
            raise
        return handle


def _release(handle: int, path: Path) -> None:
    """Delete the file while it is held, lest another process lock it in between; Windows deletes it later."""
    with suppress(OSError):
        path.unlink()
    os.close(handle)
    if os.name == "nt":  # pragma: no cover - Windows
        path.unlink(missing_ok=True)


def _flock(handle: int) -> bool | None:
    """Return whether the file's lock was free and is held now; None: the file system has no locks."""
    if fcntl is None:  # pragma: no cover - Windows
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        return None
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _ourselves() -> dict[str, Any]:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _holder(path: Path) -> Mapping[str, Any]:
    """Return the process that a lock's file names; empty if it names none."""
    try:
        found = json.loads(path.read_bytes()[:1000])
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lives(holder: Mapping[str, Any]) -> bool:
    """Return whether a process still runs, as far as this machine can tell."""
    pid, here = holder.get("pid"), holder.get("host") == socket.gethostname()
    if not here or not isinstance(pid, int) or os.name == "nt":  # where a signal of 0 ends a process
        return bool(holder)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's process
        return True
    return True


def _in_use(path: Path) -> str:
    holder = _holder(path)
    who = "another process"
    if {"host", "pid", "since"} <= holder.keys():
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    return (
        f"{path.parent}: in use by {who}; wait for its end or stop it, choose another folder with --out, or "
        f"delete {path} if that process is gone"
    )
