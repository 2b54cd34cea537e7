"""Consoles and messages of the command line; rich is imported when something is printed."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH: Final = 110
"""Width without a terminal, in columns, because tables in a log need not be cut at 80."""


def screen(*, stderr: bool = False) -> Console:
    """Return the console for tables (stdout) or for messages (stderr).

    Brackets and colons in names are no markup there.
    """
    from rich.console import Console

    found = Console(stderr=stderr, markup=False, emoji=False)
    if found.is_terminal or "COLUMNS" in os.environ:
        return found
    return Console(stderr=stderr, markup=False, emoji=False, width=PLAIN_WIDTH)


class Lasting:
    """A text stream whose reader may go away: what is written afterwards is lost, and nothing ends by it.

    Args:
        stream: the stream, ``sys.stdout`` say.

    Example:
        >>> read, write = os.pipe()
        >>> os.close(read)
        >>> stream = Lasting(os.fdopen(write, "w"))
        >>> stream.write("nobody reads this"), stream.flush()
        (17, None)
        >>> stream.close()
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text."""
        try:
            self._stream.write(text)
        except OSError:
            self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush the written text."""
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        """Lead the file descriptor nowhere, for the text in the buffer and for libraries that write to it."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()


@contextmanager
def lasting() -> Iterator[None]:
    """Go on where the readers of stdout and stderr go away: ``head``, a closed terminal, a full disk."""
    before = sys.stdout, sys.stderr
    ours = [stream and Lasting(stream) for stream in before]  # None: it was closed before the start
    sys.stdout, sys.stderr = (cast("TextIO", stream) for stream in ours)
    try:
        yield
    finally:
        for stream in filter(None, ours):
            stream.flush()
        sys.stdout, sys.stderr = before


def print_json(value: Any) -> None:
    """Print one JSON value on stdout, without colours or wrapping."""
    import typer

    from nt_core.files import to_json

    typer.echo(to_json(value, indent=2))


def show_error(error: Exception, *, traceback: bool) -> None:
    """Print a user's mistake as one panel on stderr."""
    from rich.panel import Panel
    from rich.text import Text

    out = screen(stderr=True)
    if traceback:
        out.print_exception()
        return
    title = type(error).__name__.removesuffix("Error").removeprefix("NeuroTrails")
    out.print(Panel(Text(str(error)), title=f"{title} error".strip(), title_align="left", border_style="red"))


def show_note(text: str) -> None:
    """Print a line on stderr."""
    say(screen(stderr=True), text)


def say(out: Console, text: str, *, wrap: bool = False) -> None:
    """Print text as it is, because brackets in names are no markup; a long line is wrapped if asked for."""
    out.print(text, markup=False, highlight=False, soft_wrap=not wrap)


def plain_warnings() -> None:
    """Print a warning of this package as one line, without its place in the code, for users of commands."""
    usual = warnings.formatwarning

    def in_one_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category.__name__ == "NeuroTrailsWarning":
            return f"warning: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = in_one_line


def quiet_libraries() -> None:
    """Keep other libraries' messages out of logs; must run before those libraries are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not screen(stderr=True).is_terminal:
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
