"""Arguments and options shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SpecArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="A YAML or JSON file, the name of a preset or an architecture, or my_model.py:graph.",
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(help="Preset of an architecture, single if left out; or replacement of a file's preset."),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a field: topology.sparsity=0.9; the value is read as YAML. Repeatable.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="Device: cpu, cuda, cuda:1, …; by default the best one.")
]
BackendOption = Annotated[
    str | None, typer.Option(help="Backend: torch or keras; by default the first of them that is installed.")
]
EngineOption = Annotated[
    str | None, typer.Option(help="Engine of Keras: tensorflow, jax or torch; an error with another backend.")
]
DataOption = Annotated[
    str | None,
    typer.Option(
        help=(
            "Source of the data: digits, text:PATH (a text file or a folder of them), a folder, or a "
            "dataset's name on the Hugging Face hub."
        )
    ),
]
