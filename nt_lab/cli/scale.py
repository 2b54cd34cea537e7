"""The command ``nt scale``: memory and communication volume of each of many processes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from nt_lab import console
from nt_lab.cli.options import JsonOption, PresetOption, SetOption, SpecArgument


class Wrapping(StrEnum):
    """Wrapping: the way in which processes share a model."""

    ddp = "ddp"
    fsdp2 = "fsdp2"


class Gathered(StrEnum):
    """Units that FSDP2 gathers at a time."""

    parts = "parts"
    blocks = "blocks"


class Numbers(StrEnum):
    """Precision of the weights and of the arithmetic."""

    float32 = "float32"
    mixed = "mixed"
    bfloat16 = "bfloat16"


def scale(
    spec: SpecArgument,
    preset: PresetOption = None,
    overrides: SetOption = None,
    ranks: Annotated[
        str, typer.Option(help="Numbers of processes, one process for each device, comma-separated.")
    ] = "8",
    wrap: Annotated[Wrapping | None, typer.Option(help="One wrapping; both if left out.")] = None,
    units: Annotated[
        Gathered,
        typer.Option(help="Units that FSDP2 gathers at a time: backbone and heads, or their blocks."),
    ] = Gathered.blocks,
    dtype: Annotated[
        Numbers | None,
        typer.Option(
            help=(
                "Numbers: float32, bfloat16, or mixed: float32 weights and bfloat16 arithmetic. By default "
                "mixed where the spec trains in half precision, else float32."
            )
        ),
    ] = None,
    memory: Annotated[float, typer.Option(min=0, help="Memory of one device, in GB.")] = 80,
    as_json: JsonOption = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
) -> None:
    """Show memory and communication volume of each process for training a spec in PyTorch, by arithmetic."""
    from nt_core.cost import scale as work_out
    from nt_core.cost import state_tensors
    from nt_lab.papers import scale as scale_tables
    from nt_lab.runs import architectures

    run = architectures.read(spec, overrides or [], preset)
    ensemble = run.ensemble(architectures.ARCHITECTURES)
    computed = Numbers.float32 if run.training.precision == "float32" else Numbers.mixed
    lines = [
        work_out(
            ensemble,
            ranks=count,
            wrap=each.value,
            dtype=(dtype or computed).value,
            states=state_tensors(run.training.optimizer),
            units=units.value,
        )
        for each in ([wrap] if wrap else Wrapping)
        for count in _counts(ranks)
    ]
    if as_json:
        console.print_json([line.to_dict() for line in lines])
        return
    about = scale_tables.about(run.name, ensemble, lines[0], run.training.optimizer.kind)
    if as_markdown:
        typer.echo(scale_tables.scale_markdown(lines, memory, about), nl=False)
        return
    screen = console.screen()
    console.say(screen, about, wrap=True)
    screen.print(scale_tables.scale_table(lines, memory))


def _counts(text: str) -> list[int]:
    from nt_core.errors import SpecError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SpecError(f"--ranks: expected numbers of processes, 8,64 say, found {text!r}") from None
