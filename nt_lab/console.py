"""Consoles and messages of the command line; rich is imported when something is printed."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH: Final = 110
"""Width without a terminal, in columns, because tables in a log need not be cut at 80."""


def screen(*, stderr: bool = False) -> Console:
    """Return the console for tables (stdout) or for messages (stderr)."""
    from rich.console import Console

    found = Console(stderr=stderr)
    if found.is_terminal or "COLUMNS" in os.environ:
        return found
    return Console(stderr=stderr, width=PLAIN_WIDTH)


def print_json(value: Any) -> None:
    """Print one JSON value on stdout, without colours or wrapping."""
    import typer

    from nt_lab.runs.folder import to_json

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
    screen(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


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
