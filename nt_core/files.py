"""Files: written whole or not at all, and read with errors that name them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nt_core.errors import CheckpointError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all, even if the machine stops."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: of the file.
        hint: the end of the error where it cannot be read: what folder this should be.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {hint}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON, perhaps truncated: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected one JSON object, found {type(content).__name__}; {hint}")
    return content
