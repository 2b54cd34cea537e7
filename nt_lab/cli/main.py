"""The command line ``nt``. Each command imports its own modules, so that help answers at once."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from nt_lab import console
from nt_lab.cli import analysis as cli_analysis
from nt_lab.cli import scale as cli_scale
from nt_lab.cli import serve as cli_serve
from nt_lab.cli.options import (
    BackendOption,
    DataOption,
    DeviceOption,
    EngineOption,
    JsonOption,
    PresetOption,
    SetOption,
    SpecArgument,
)

if TYPE_CHECKING:
    from nt_core import EnsembleSpec, RunSpec
    from nt_core.cost import Cost

EXIT_USER_ERROR = 2


class Commands(TyperGroup):
    """Group of commands that shows a user's mistake as one panel on stderr, exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            from nt_core.errors import NeuroTrailsError

            found = _about_file(error) if isinstance(error, OSError) else error
            if not isinstance(found, NeuroTrailsError):
                raise
            console.show_error(found, traceback=ctx.params.get("traceback", False))
            raise typer.Exit(EXIT_USER_ERROR) from None


def _about_file(error: OSError) -> Exception:
    """Return the error about a file that cannot be read or written; others are returned unchanged."""
    from nt_core.errors import NeuroTrailsError

    if error.strerror is None or (error.filename is None and error.errno != errno.ENOSPC):
        return error
    where = error.filename or "output"
    return NeuroTrailsError(
        f"{where}: cannot be read or written ({error.strerror}); choose another path, or make room"
    )


app = typer.Typer(
    cls=Commands,
    name="nt",
    help="Sparse multi-head ensembles: describe, train, evaluate, compare, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


@contextmanager
def _stopping(folder: Path) -> Iterator[Callable[[], bool]]:
    """End the command with the code that shells expect, once a signal has stopped the training."""
    from nt_lab.runs import signals

    try:
        with signals.stopping(folder) as stopping:
            yield stopping
    except signals.Interrupted as interrupted:
        console.show_note(str(interrupted))
        raise typer.Exit(interrupted.exit_code) from None


def _version(wanted: bool) -> None:
    if wanted:
        from nt_core import __version__

        typer.echo(f"neurotrails {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", envvar="NT_TRACEBACK", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Sparse multi-head ensembles: describe, train, evaluate, compare, serve."""


@app.command()
def describe(
    spec: SpecArgument,
    preset: PresetOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print the spec, spelled out.")] = False,
    all_heads: Annotated[
        bool, typer.Option("--all", help="List every head, also where they are alike.")
    ] = False,
    examples: Annotated[
        float | None, typer.Option(min=0, help="Number of examples over which training FLOPs are summed.")
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(min=0, help="The same in tokens, for a language model.")
    ] = None,
) -> None:
    """Show the ensemble of a spec: blocks, weights, split, cost."""
    from nt_core.cost import cost

    run, ensemble = _read(spec, overrides or [], preset)
    if as_yaml:
        typer.echo(run.to_yaml(), nl=False)
        return
    figures = cost(ensemble)
    amount = _examples(figures, examples, tokens)
    if as_json:
        whole = None if amount is None else figures.flops_training_step * amount
        about = {"name": run.name, "spec": run.to_dict(), "flops_training": whole}
        console.print_json({**about, **figures.to_dict()})
        return
    from rich.text import Text

    from nt_lab import tables

    screen = console.screen()
    screen.print(Text.assemble((run.name, "bold"), f": {_choices(run)}"))
    layout = ensemble.result.layout
    for line in tables.split_lines(figures, layout):
        screen.print(line, highlight=False)
    screen.print(tables.weights_table(figures, layout, all_heads=all_heads))
    screen.print(tables.totals_table(figures, amount))


@app.command("cost")
def papers_cost(
    as_json: JsonOption = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
) -> None:
    """Show the cost of the papers' methods, from their graphs alone."""
    from dataclasses import asdict

    from nt_lab.papers import costs as papers
    from nt_lab.papers import tables as papers_tables

    lines = papers.lines()
    if as_markdown:
        typer.echo(papers_tables.papers_markdown(lines), nl=False)
        return
    if as_json:
        console.print_json([asdict(line) for line in lines])
        return
    screen = console.screen()
    for table in papers_tables.papers_tables(lines):
        screen.print(table, "")


app.command()(cli_scale.scale)


@app.command()
def train(
    spec: Annotated[
        str | None, typer.Argument(metavar="SPEC", help="As for describe; left out with --resume.")
    ] = None,
    preset: PresetOption = None,
    data: DataOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Keys every random choice; short for --set seed=SEED.")
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            help=(
                "Passes over the data, instead of the plan's epochs or steps; 20 for a preset or an "
                "architecture named alone."
            )
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help=(
                "Optimiser steps, instead of epochs: a stream has no other length. 1000 for a language "
                "model named alone."
            )
        ),
    ] = None,
    backend: BackendOption = None,
    engine: EngineOption = None,
    device: DeviceOption = None,
    overrides: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder; runs/NAME if left out.")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help=(
                "Replace a run in the folder, once the new one is complete; an interrupted run there that "
                "differs is deleted."
            ),
        ),
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Resume the interrupted run in this folder with its own options."),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps from one saved state to the next; five minutes if left out."),
    ] = None,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard", help="Divide weights, masks and optimiser state among torchrun's processes (FSDP2)."
        ),
    ] = False,
    track: Annotated[
        list[str] | None,
        typer.Option(help="A tracker: tensorboard, or with torch any that accelerate knows. Repeatable."),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="How PyTorch computes heads: loop (the default), batched, or auto, which measures both."
        ),
    ] = None,
    activation_checkpointing: Annotated[
        bool,
        typer.Option(
            "--activation-checkpointing",
            help="Compute blocks again in the backward pass: less memory, more time (PyTorch).",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a spec and keep the run in a folder; an interrupted run there is resumed.

    Ctrl-C, SIGTERM and SIGHUP save the state and stop; a second signal stops at once.
    """
    from nt_core import Tokens
    from nt_core.errors import NeuroTrailsError
    from nt_core.metrics import leading
    from nt_lab.runs import architectures
    from nt_lab.runs.interrupted import begun

    execution = _execution(heads, activation_checkpointing)
    shortcuts = {"data.source": data, "seed": seed, **_plan(epochs, steps)}
    changes = [f"{key}={json.dumps(value)}" for key, value in shortcuts.items() if value is not None]
    if resume is not None:
        _expect_alone(spec=spec, preset=preset, out=out, overrides=overrides, **shortcuts)
        run, backend, engine, execution = begun(resume, backend, engine, execution)
        out = resume
    elif spec is None:
        raise NeuroTrailsError("train: expected a SPEC, or --resume RUN; nt presets lists what there is")
    else:
        run = architectures.read_to_train(spec, [*(overrides or []), *changes], preset)
    ensemble = run.ensemble(architectures.ARCHITECTURES)
    console.quiet_libraries()
    from nt_lab import tables
    from nt_lab.runs import backends, processes
    from nt_lab.runs.progress import progress
    from nt_lab.training import train as lab

    folder = out or Path("runs") / run.name
    settings: dict[str, Any] = {
        "backend": backends.choose(backend, engine),
        "device": device,
        "trackers": track or (),
        "overwrite": overwrite,
        "resume": resume is not None,
        "save_every": save_every,
        "shard": shard,
        "execution": execution,
    }
    if problem := processes.restart_problem():
        typer.echo(f"warning: {problem}", err=True)
    with console.lasting(), _stopping(folder) as stopping:
        settings["stopping"] = stopping
        if processes.rank() > 0:
            lab.train(run, folder, **settings)
            return
        if as_json:
            console.print_json(lab.result(lab.train(run, folder, **settings), folder))
            return
        shown = leading("tokens" if isinstance(ensemble.graph.input, Tokens) else "examples").name
        with progress(console.screen(stderr=True), run.name, shown) as report:
            record = lab.train(run, folder, report=report, **settings)
        screen = console.screen()
        screen.print(tables.compare_table([lab.result(record, folder)]))
        screen.print(f"run: {folder}", highlight=False, markup=False, soft_wrap=True)


for _command in (
    cli_analysis.evaluate,
    cli_analysis.compare,
    cli_analysis.sweep,
    cli_analysis.history,
    cli_serve.export,
    cli_serve.predict,
    cli_serve.bench,
):
    app.command()(_command)


@app.command()
def presets() -> None:
    """List the presets, which are names for combinations of choices."""
    from rich.table import Table

    from nt_core import PRESETS

    table = Table("preset", "what it stands for", box=None, pad_edge=False)
    for name, make in PRESETS.items():
        table.add_row(name, (make.__doc__ or "").partition("\n")[0])
    console.screen().print(table)


@app.command()
def schema() -> None:
    """Print the JSON Schema of spec files."""
    from nt_core.spec import json_schema

    console.print_json(json_schema())


def _read(spec: str, overrides: Sequence[str], preset: str | None) -> tuple[RunSpec, EnsembleSpec]:
    from nt_lab.runs import architectures

    run = architectures.read(spec, overrides, preset)
    return run, run.ensemble(architectures.ARCHITECTURES)


def _expect_alone(**given: Any) -> None:
    """Check that no option of the interrupted run is given again.

    Raises:
        NeuroTrailsError: an option is given; the message names the first.
    """
    from nt_core.errors import NeuroTrailsError

    for name, value in given.items():
        if value:
            raise NeuroTrailsError(
                f"--resume: goes on with what the run was begun with, but {name}={value!r} was given too; "
                "leave it out"
            )


def _plan(epochs: float | None, steps: int | None) -> dict[str, Any]:
    """Return overrides of the plan's epochs and steps; the spec reports an error if both are given."""
    return {} if epochs is None and steps is None else {"plan": {"epochs": epochs, "steps": steps}}


def _execution(heads: str | None, activation_checkpointing: bool) -> Mapping[str, Any] | None:
    """Return the wanted execution options; None: the backend's defaults."""
    asked = {} if heads is None else {"heads": heads}
    return asked | ({"activation_checkpointing": True} if activation_checkpointing else {}) or None


def _examples(figures: Cost, examples: float | None, tokens: float | None) -> float | None:
    """Return the number of examples over which training FLOPs are summed; None: of one example only."""
    from nt_core.errors import NeuroTrailsError

    if examples is not None and tokens is not None:
        raise NeuroTrailsError("--examples and --tokens: expected one of them, found both; leave one out")
    if tokens is None:
        return examples
    if figures.tokens is None:
        raise NeuroTrailsError("--tokens: the network reads no tokens; use --examples")
    return tokens / figures.tokens


def _choices(run: RunSpec) -> str:
    graph = (run.graph.get("origin") or run.graph).get("name", "graph")
    plan = "" if run.plan.kind == "one_run" else f"{run.plan.kind}, "
    aggregation = getattr(run.aggregation, "kind", run.aggregation)
    return f"{graph}, {run.structure.kind}, {run.topology.summary}, {plan}{aggregation}"
