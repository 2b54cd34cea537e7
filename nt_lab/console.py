"""Consoles and messages of the command line; rich is imported when something is printed."""

from __future__ import annotations

import os
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


def quiet_libraries() -> None:
    """Keep other libraries' messages out of logs; must run before those libraries are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not screen(stderr=True).is_terminal:
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
