"""Commands that measure finished runs, and that train many: evaluate, compare, sweep, history."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nt_lab import console
from nt_lab.cli.options import (
    BackendOption,
    DataOption,
    DeviceOption,
    EngineOption,
    JsonOption,
    PresetOption,
    RunArgument,
    SetOption,
    SpecArgument,
)

EXIT_SOME_FAILED = 3


def evaluate(
    run: RunArgument,
    data: DataOption = None,
    ood: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET", help="A dataset, as for --data, to tell from the test set by confidence."
        ),
    ] = None,
    corruptions: Annotated[
        bool,
        typer.Option(
            "--corruptions",
            help="Test on corrupted copies: 15 kinds, 5 severities; needs the extra robustness.",
        ),
    ] = False,
    severities: Annotated[
        str,
        typer.Option(help="Severities of corruptions, from 1 to 5, comma-separated; all of them by default."),
    ] = "1,2,3,4,5",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Largest number of examples of each dataset, evenly spaced.")
    ] = None,
    backend: BackendOption = None,
    engine: EngineOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a run on its test split, or on the test split of another dataset. Nothing is written."""
    console.quiet_libraries()
    from nt_lab import tables
    from nt_lab.data import limited
    from nt_lab.evaluation import evaluate as evaluation
    from nt_lab.runs import backends

    levels = _severities(severities)
    opened = evaluation.open_run(run, device=device, backend=backends.choose(backend, engine))
    whole = opened.test_split(**({} if data is None else {"source": data}))
    test = limited(whole, limit)
    found: dict[str, Any] = {"run": str(run)}
    stderr = console.screen(stderr=True)

    def say(line: str) -> None:
        if not as_json:
            console.say(stderr, line, wrap=True)

    if ood is not None:
        from nt_lab.evaluation.ood import measure_ood

        found["ood"] = measure_ood(opened, test, ood, limit=limit)
    if corruptions:
        from nt_lab.evaluation.corruptions import measure_corruptions

        found["corruptions"] = measure_corruptions(opened, whole, severities=levels, limit=limit, report=say)
    metrics = opened.evaluator.metrics(test)
    found |= metrics.to_record()
    if as_json:
        console.print_json(found)
        return
    from nt_lab.sweeps.tables import corruptions_table, ood_table

    screen = console.screen()
    screen.print(tables.metrics_table(found, opened.record["data"].get("unit", "examples")))
    if ood is not None:
        screen.print("", ood_table(found["ood"]))
    if corruptions:
        screen.print("", corruptions_table(found["corruptions"], found["accuracy"]))


def _severities(text: str) -> list[int]:
    from nt_core.errors import DataError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise DataError(f"--severities: expected some of 1 to 5, comma-separated, found {text!r}") from None


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders of runs.")],
    as_json: JsonOption = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as CSV too.")] = None,
) -> None:
    """Compare the metrics and costs of runs in one table."""
    from nt_lab import tables
    from nt_lab.runs.folder import RunFolder, flat, row, write_csv

    records = [RunFolder(run).record() for run in runs]
    rows = [row(record) for record in records]
    if csv is not None:
        write_csv(csv, [flat(row) for row in rows])
    if as_json:
        console.print_json(rows)
        return
    screen = console.screen()
    screen.print(tables.compare_table(rows))
    sources = list(dict.fromkeys(map(_source, records)))
    if len(sources) > 1:
        console.say(screen, f"The runs were tested on different data: {', '.join(sources)}.", wrap=True)


def _source(record: Mapping[str, Any]) -> str:
    """Return the source of a run's data, which a run of somebody's own loop need not know."""
    return record.get("data", {}).get("source", record["run"]["data"]["source"]) or "unknown"


def sweep(
    spec: SpecArgument,
    over: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "A field and its values: split, heads, sparsity, allocation, prune, grow, drop_fraction, "
                "interval, or any path that --set takes. Repeatable."
            )
        ),
    ] = None,
    values: Annotated[
        list[str] | None, typer.Option(help="The values of a field: 0.8,0.9. One for each --over.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of every point of the grid: 0,1,2.")] = "0",
    preset: PresetOption = None,
    overrides: SetOption = None,
    backend: BackendOption = None,
    engine: EngineOption = None,
    device: DeviceOption = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; 1 if left out.")] = None,
    runner: Annotated[
        str, typer.Option(help="Starter of the runs: processes on this machine (local), or Ray Tune (ray).")
    ] = "local",
    gpus: Annotated[float, typer.Option(min=0, help="GPUs that each run reserves, with --runner ray.")] = 0.0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The sweep's folder; sweeps/NAME if left out.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Train anew the runs there of another spec.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a grid of specs, each in its own process and folder; a stopped sweep is resumed."""
    from nt_lab.sweeps import run as sweep_run

    asked = sweep_run.Sweep(
        source=spec,
        over=tuple(over or ()),
        values=tuple(values or ()),
        seeds=seeds,
        overrides=tuple(overrides or ()),
        preset=preset,
        options={"backend": backend, "engine": engine, "device": device},
        jobs=jobs,
        runner=runner,
        gpus=gpus,
        overwrite=overwrite,
    )
    console.quiet_libraries()
    screen = console.screen(stderr=True)

    def say(line: str) -> None:
        if not as_json:
            console.say(screen, line)

    with console.lasting():
        found = sweep_run.run(asked, out, say)
        if as_json:
            console.print_json(found.to_dict())
        else:
            from nt_lab.sweeps.tables import points_table

            shown = console.screen()
            shown.print(points_table(found.points, found.fields))
            console.say(shown, f"files: {', '.join(map(str, found.files))}")
    if found.errors:
        raise typer.Exit(EXIT_SOME_FAILED)


def history(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders of runs.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Path of the plot, without .png and .svg; RUN/history of the first run if left out.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw accuracy, disagreement and the figures of topology updates over a training."""
    from nt_lab.runs.folder import RunFolder

    histories = {str(run): RunFolder(run).history() for run in runs}
    if as_json:
        console.print_json(histories)
        return
    from nt_lab.sweeps import plots
    from nt_lab.sweeps.tables import history_table

    tokens = RunFolder(runs[0]).record()["data"].get("unit") == "tokens"
    short = {run.name: histories[str(run)] for run in runs}
    drawn = short if len(short) == len(histories) else histories
    files = plots.save(plots.history_figure(drawn, tokens=tokens), out or runs[0] / "history")
    screen = console.screen()
    for name, events in histories.items():
        screen.print(history_table(name, events, tokens=tokens))
    console.say(screen, f"files: {', '.join(map(str, files))}")
