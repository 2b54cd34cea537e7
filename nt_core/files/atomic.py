"""Files: written whole or not at all, and read with errors that name them."""

from __future__ import annotations

import errno
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
    """Give a file to write beside ``path``, which takes its place once the block has ended well.

    What was at ``path`` stays until then, even if the machine stops; afterwards the new file is on disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def clear_temporaries(path: Path) -> None:
    """Delete what writers of ``path`` left beside it that were killed."""
    for rest in path.parent.glob(f".{path.name}.*.tmp"):
        rest.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all, even if the machine stops."""
    with atomically(path) as temporary:
        temporary.write_bytes(content)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder outlast a stop of the machine, where the system can."""
    if os.name == "nt":  # pragma: no cover - Windows opens no folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


MOST_JSON_BYTES: Final = 16 << 20
"""How large a file of JSON may be: some forty times the graph of a LLaMA of 80 blocks."""


def read_text(path: Path, most_bytes: int) -> str:
    """Read a file of text that anybody may have made.

    Raises:
        OSError: it cannot be read, is larger, or is no file but a pipe or a device, which may never end.
        UnicodeDecodeError: it is not UTF-8.
    """
    expect_file(path)
    with path.open("rb") as file:
        # Python makes room for all that is asked for, before it reads.
        content = file.read(min(os.fstat(file.fileno()).st_size, most_bytes) + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"expected at most {most_bytes} bytes, found more")
    return content.decode()


def expect_file(path: Path) -> None:
    """Raise unless a path is a file, or a folder, which cannot be opened as one.

    Raises:
        OSError: it is a pipe or a device, or cannot be looked at.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "expected a file, found a pipe or a device")


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """Read a file that holds one JSON object, of at most 16 MiB.

    Args:
        path: of the file.
        hint: the end of the error where it cannot be read: what folder this should be.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
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
