"""Atomic writing of files, and reading of text and JSON with errors that name the file."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from nt_core.errors import CheckpointError
from nt_core.files.parsing import ParseError, parse_json


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Give a temporary file beside ``path``, which replaces ``path`` at the successful end of the block.

    An old file at ``path`` stays until then, even if the machine stops. Afterwards the new file is on disk.
    Where ``path`` is a symbolic link, the file that it leads to is replaced, and the link stays.

    Raises:
        OSError: ``path`` is a folder, a pipe or a device, or cannot be written.
    """
    target = Path(os.path.realpath(path))
    _expect_replaceable(path)
    temporary = target.with_name(f"{_prefix(target)}{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def clear_temporaries(path: Path) -> None:
    """Delete the temporary files that killed writers of ``path`` left beside it."""
    for rest in path.parent.glob(f"{glob.escape(_prefix(path))}*.tmp"):
        rest.unlink(missing_ok=True)


LONGEST_NAME: Final = 200
"""Most bytes of a file's name in that of its temporary file; file systems allow 255 bytes in all."""


def _prefix(path: Path) -> str:
    """Return the beginning of the names of a file's temporary files."""
    name = os.fsencode(path.name)
    return f".{path.name}." if len(name) <= LONGEST_NAME else f".{hashlib.sha256(name).hexdigest()}."


def _expect_replaceable(path: Path) -> None:
    """Check that a path leads to a file or to nothing, because a renamed file would replace a device."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "expected a file, found a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "expected a file, found a pipe or a device", str(path))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically: it appears whole or not at all, even if the machine stops."""
    with atomically(path) as temporary:
        temporary.write_bytes(content)


def write_out(path: Path, content: bytes) -> None:
    """Write a file atomically, or pass the content on to a pipe or a device, ``/dev/stdout`` say."""
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(content)
    else:
        write_atomically(path, content)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where the system can."""
    if os.name == "nt":  # pragma: no cover - Windows opens no folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


MOST_JSON_BYTES: Final = 16 << 20
"""Largest size of a JSON file: some forty times the graph of a LLaMA of 80 blocks."""


def read_text(path: Path, most_bytes: int) -> str:
    """Read a text file from an untrusted source.

    Raises:
        OSError: the file cannot be read, is larger than ``most_bytes``, or is a pipe or a device, which may
            never end.
        UnicodeDecodeError: the file is not UTF-8.
    """
    expect_file(path)
    with path.open("rb") as file:
        # Python allocates the requested size before it reads.
        content = file.read(min(os.fstat(file.fileno()).st_size, most_bytes) + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"expected at most {most_bytes} bytes, found more")
    return content.decode()


def expect_file(path: Path) -> None:
    """Check that a path is a file or a folder; opening a folder as a file fails later with a clear error.

    Raises:
        OSError: the path is a pipe or a device, or cannot be examined.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "expected a file, found a pipe or a device")


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """Read a file that holds one JSON object, of at most 16 MiB.

    Args:
        path: of the file.
        hint: end of the error message where the file cannot be read, which names the expected folder.

    Raises:
        CheckpointError: the file cannot be read, or holds anything but a JSON object.
    """
    try:
        content = parse_json(read_text(path, MOST_JSON_BYTES))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {hint}") from None
    except (ParseError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON, perhaps truncated: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected one JSON object, found {type(content).__name__}; {hint}")
    return content
