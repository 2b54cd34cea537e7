"""Commands that serve a trained ensemble: export, predict, bench."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nt_lab import console
from nt_lab.cli.options import DataOption, JsonOption, RunArgument

EXIT_DISAGREES = 4

ServedArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A run's folder, or a file of nt export --to cpu.")
]
ThreadsOption = Annotated[int, typer.Option(min=1, max=1024, help="Number of threads for one batch.")]


class Target(StrEnum):
    """Formats to which an ensemble is exported."""

    cpu = "cpu"
    onnx = "onnx"


def export(
    run: RunArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; replaced if it exists.")],
    to: Annotated[
        Target,
        typer.Option(
            help=(
                "Format: cpu (the default): packed for nt_cpu, really sparse; onnx: dense, for other "
                "runtimes, with the extra onnx."
            )
        ),
    ] = Target.cpu,
    batch: Annotated[
        int,
        typer.Option(
            min=1, help="Usual batch size at inference, for a packed file, which takes any; 16 by default."
        ),
    ] = 16,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help=(
                "For onnx: take raw inputs, uint8 images or vectors in their units, and normalise them in "
                "the graph. A packed file takes both without it."
            ),
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a trained ensemble into one file, to serve it elsewhere."""
    from nt_core.errors import NeuroTrailsError
    from nt_lab.serving import exports

    if to == Target.cpu:
        if raw:
            raise NeuroTrailsError("--raw: a packed file takes raw inputs without it; leave it out")
        found = exports.to_cpu(run, file, batch=batch)
    else:
        found = exports.to_onnx(run, file, raw=raw)
    if as_json:
        console.print_json(found.to_dict())
        return
    console.say(console.screen(), found.sentence())


def predict(
    served: ServedArgument,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE…]",
            help=(
                "Images without labels: files, folders, patterns like 'shots/*.png', or - for one image on "
                "standard input. Without them the test split is predicted."
            ),
        ),
    ] = None,
    data: DataOption = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write every prediction as CSV, with all probabilities."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Largest number of examples, evenly spaced.")
    ] = None,
    threads: ThreadsOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Predict images, or a dataset's labelled test split, with the sparse engine."""
    console.quiet_libraries()
    from nt_core.errors import DataError
    from nt_lab import tables
    from nt_lab.data import limited
    from nt_lab.serving import serve as serving
    from nt_lab.serving.pictures import is_unlabelled

    if out is not None and not out.parent.is_dir():
        raise DataError(f"--out {out}: expected a file in a folder that exists; make {out.parent} first")
    engine = serving.open_engine(served, threads=threads)
    sources = [*(images or ()), *([data] if data is not None and is_unlabelled(data) else [])]
    if images and data is not None:
        raise DataError("nt predict: expected images or --data, found both; leave one out")
    if sources:
        found = serving.predict_images(engine, sources, limit)
    else:
        found = serving.predict(engine, limited(serving.data_of(engine, served, data), limit))
    if out is not None:
        found.write_csv(out)
    metrics = {} if found.metrics is None else found.metrics.to_record()
    if as_json:
        console.print_json(
            {**({"metrics": metrics} if metrics else {}), "predictions": [*found.whole_rows()]}
        )
        return
    from nt_lab.serving.tables import predictions_table

    screen = console.screen()
    screen.print(predictions_table(found))
    if metrics:
        screen.print("", tables.metrics_table(metrics))
    if out is not None:
        console.say(screen, f"predictions: {out}")


def bench(
    served: ServedArgument,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help=(
                "The run of a packed file, whose dense weights are compared; without it the dense "
                "runtimes get other weights, and predictions are not compared."
            ),
        ),
    ] = None,
    batches: Annotated[str, typer.Option(help="Examples of one call, comma-separated.")] = "1,16,64",
    threads: ThreadsOption = 1,
    runtimes: Annotated[
        str | None,
        typer.Option(help="Some of torch,torch.compile,onnxruntime,openvino; all installed if left out."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="Approximate seconds of measurement for each batch size.")
    ] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Measure the sparse engine and the installed dense runtimes, in turn and in one process."""
    console.quiet_libraries()
    from nt_core.errors import DataError
    from nt_lab.serving import serve as serving
    from nt_lab.serving.tables import bench_notes, bench_table

    try:
        sizes = [int(part) for part in batches.split(",")]
    except ValueError:
        raise DataError(f"--batches: expected numbers like 1,16,64, found {batches!r}") from None
    screen = console.screen(stderr=True)

    def say(line: str) -> None:
        if not as_json:
            console.say(screen, line, wrap=True)

    found = serving.bench(
        served,
        run=run,
        batches=sizes,
        threads=threads,
        runtimes=runtimes.split(",") if runtimes else (),
        seconds=seconds,
        report=say,
    )
    if as_json:
        console.print_json([line.to_dict() for line in found])
    else:
        shown = console.screen()
        shown.print(bench_table(found))
        for note in bench_notes(found, threads):
            console.say(shown, note, wrap=True)
    if not all(line.agrees for line in found):
        raise typer.Exit(EXIT_DISAGREES)
