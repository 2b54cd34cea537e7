"""``nt``, also as ``python -m nt_lab``."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command line.

    Example:
        >>> from nt_lab.__main__ import main
        >>> main  # doctest: +ELLIPSIS
        <function main at ...>
    """
    try:
        from nt_lab import console
        from nt_lab.cli.main import app
    except ModuleNotFoundError as error:
        raise SystemExit(f"nt needs {error.name}: pip install 'neurotrails[lab]'") from None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × or ─ shall not end a training
    console.plain_warnings()
    app(prog_name="nt")


if __name__ == "__main__":
    main()
