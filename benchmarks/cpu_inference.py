"""Sparse inference on CPUs against the fastest dense runtime, in turn and in one process.

Three parts, of which ``--parts`` chooses some:

- ``wide_resnet``: NeuroTrails (Wide-ResNet-28-10, 100 classes, 32×32, split 4, M = 3, ERK) against a dense
  full ensemble of three, by batch size and threads;
- ``linear``: one layer of 4096 × 4096 against a dense product of oneDNN, of one token and of 128;
- ``llama``: LLaMA-130M's shape, 128 tokens, M = 3, S = 0.8, against a dense full ensemble of three.

Masks are random unless run folders are given: ``python benchmarks/cpu_inference.py RUN …`` measures those
instead, each against a dense full ensemble of its graph. Every ratio is the median of ratios turn by turn
against whichever of torch.compile (frozen), ONNX Runtime and OpenVINO is fastest, all in float32 with as many
threads. Needs ``pip install onnx onnxruntime openvino``; nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from _common import machine, print_table
from numpy.typing import NDArray

import nt_cpu
import nt_models
from nt_core import PRESETS, BlockGraph, EnsembleSpec, Independent, MultiHead, Static
from nt_core.checkpoint import Checkpoint, load_checkpoint
from nt_core.cost import cost
from nt_cpu.native import peak_flops
from nt_lab.serving.latency import Latency, interleaved
from nt_lab.serving.runtimes import RUNTIMES, Dense
from nt_lab.serving.serve import examples, untrained

MEMBERS: Final = 3
SPARSITIES: Final = (0.8, 0.9, 0.95, 0.99)
GOALS: Final = {0.8: 2.6, 0.9: 4.8, 0.95: 7.5, 0.99: 18.0}
Row = dict[str, Any]


def runtimes() -> list[str]:
    """Return the dense runtimes that are compared; all of them must be installed."""
    wanted = ["torch.compile", "onnxruntime", "openvino"]
    missing = [name for name in wanted if not RUNTIMES[name].present]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}")
    return wanted


def compare(
    part: str,
    dense: Checkpoint,
    sparse: dict[str, Checkpoint],
    *,
    batch: int,
    threads: int,
    seconds: float,
    more: dict[str, Callable[[NDArray[Any]], object]] | None = None,
) -> Iterator[Row]:
    """Measure sparse ensembles against a dense one, and yield a line for each of either."""
    inputs = examples(dense.spec, batch)
    with Dense(dense) as network:
        calls = {name: RUNTIMES[name].start(network, threads) for name in runtimes()} | (more or {})
        began = time.perf_counter()
        engines = {
            name: nt_cpu.compile(saved, batch=batch, threads=threads) for name, saved in sparse.items()
        }
        compiling = (time.perf_counter() - began) / len(engines)
        contenders = calls | {name: engine.heads for name, engine in engines.items()}
        found = interleaved(
            {name: lambda call=call: call(inputs) for name, call in contenders.items()},  # type: ignore[misc]
            batch=batch,
            seconds=seconds,
        )
    best = min(calls, key=lambda name: found[name].median)
    peak = peak_flops(threads)
    about: Row = {"part": part, "batch": batch, "threads": threads, "peak": peak, "fastest_dense": best}
    for name in calls:
        yield {
            **about,
            "what": name,
            **_figures(found[name], found[best], cost(dense.spec).flops_dense, peak),
        }
    for name, saved in sparse.items():
        program = engines[name].program
        assert program is not None
        active = sum(np.count_nonzero(value) for value in saved.values.values())
        yield {
            **about,
            "what": name,
            **_figures(found[name], found[best], _flops(saved), peak),
            "compile_seconds": compiling,
            "bytes_per_active_weight": (program.blob.nbytes + program.code.nbytes) / active,
        }


def _figures(latency: Latency, best: Latency, flops: int, peak: float | None) -> Row:
    share = None if peak is None else flops * latency.throughput / peak
    ratio = latency.times_faster(best)
    return {**latency.to_dict(), "times_faster": ratio, "flops": flops, "share_of_peak": share}


def _flops(saved: Checkpoint) -> int:
    return cost(saved.spec, {name: mask.count for name, mask in saved.masks.items()}).flops_inference


def wide_resnet(given: argparse.Namespace) -> Iterator[Row]:
    """Measure NeuroTrails against a dense full ensemble."""
    graph = nt_models.wide_resnet(depth=28, width=10, classes=100, size=32)
    structure = MultiHead(split=4, heads=MEMBERS)
    sparse = {
        f"S = {sparsity}": untrained(
            EnsembleSpec(graph=graph, structure=structure, topology=Static(sparsity=sparsity))
        )
        for sparsity in SPARSITIES
    }
    dense = untrained(EnsembleSpec(graph=graph, structure=Independent(count=MEMBERS)))
    for threads in given.threads:
        for batch in given.batches:
            yield from compare(
                "wide_resnet", dense, sparse, batch=batch, threads=threads, seconds=given.seconds
            )


def linear(given: argparse.Namespace) -> Iterator[Row]:
    """Measure one layer."""
    import torch

    graph = nt_models.mlp(inputs=4096, hidden=(), classes=4096)
    dense = untrained(EnsembleSpec(graph=graph))
    weight = next(torch.from_numpy(value) for value in dense.values.values() if value.ndim == 2)
    sparse = {
        f"S = {sparsity}": untrained(EnsembleSpec(graph=graph, topology=Static(sparsity=sparsity)))
        for sparsity in SPARSITIES[:3]
    }
    product, reorder = torch.ops.mkldnn._linear_pointwise, torch.ops.mkldnn._reorder_linear_weight
    for threads in given.threads:
        for tokens in (1, 128):
            torch.set_num_threads(threads)
            packed = reorder(weight, tokens)

            def one_dnn(inputs: NDArray[Any], packed: Any = packed) -> object:
                return product(torch.from_numpy(inputs), packed, None, "none", [], "")

            yield from compare(
                "linear",
                dense,
                sparse,
                batch=tokens,
                threads=threads,
                seconds=given.seconds,
                more={"oneDNN": one_dnn},
            )


def llama(given: argparse.Namespace) -> Iterator[Row]:
    """Measure a language model's shape, split as its preset is."""
    graph = nt_models.llama_130m(length=128)
    structure = PRESETS["neurotrails_lm"](graph, heads=MEMBERS).structure
    sparse = {
        "S = 0.8": untrained(EnsembleSpec(graph=graph, structure=structure, topology=Static(sparsity=0.8)))
    }
    dense = untrained(EnsembleSpec(graph=graph, structure=Independent(count=MEMBERS)))
    for threads in given.threads:
        yield from compare("llama", dense, sparse, batch=1, threads=threads, seconds=given.seconds)


def runs(given: argparse.Namespace) -> Iterator[Row]:
    """Measure trained ensembles against dense full ensembles of their graphs."""
    for folder in given.runs:
        saved = load_checkpoint(folder)
        graph: BlockGraph = saved.spec.graph
        dense = untrained(EnsembleSpec(graph=graph, structure=Independent(count=saved.spec.members)))
        for threads in given.threads:
            for batch in given.batches:
                sparse = {folder.name: saved}
                yield from compare(
                    str(folder.name), dense, sparse, batch=batch, threads=threads, seconds=given.seconds
                )


PARTS: Final[dict[str, Callable[[argparse.Namespace], Iterator[Row]]]] = {
    "wide_resnet": wide_resnet,
    "linear": linear,
    "llama": llama,
}


def show(rows: Sequence[Row]) -> None:
    """Print lines as a table."""
    print_table(
        ["what", "part", "batch", "threads", "median ms", "p95 ms", "× fastest dense", "of peak"],
        [cells(row) for row in rows],
    )


def cells(row: Row) -> list[str]:
    """Return a line of a table."""
    return [
        row["what"],
        row["part"],
        str(row["batch"]),
        str(row["threads"]),
        f"{row['median'] * 1e3:,.4g}",
        f"{row['p95'] * 1e3:,.4g}",
        f"{row['times_faster']:.2f}",
        f"{row['share_of_peak'] or 0:.0%}",
    ]


def write_tables(record: dict[str, Any], page: Path) -> None:
    """Put the figures between the marks of a page."""
    lines = [
        "| what | part | batch | threads | median ms | p95 ms | × fastest dense | of peak |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *("| " + " | ".join(cells(row)) + " |" for row in record["rows"]),
    ]
    about = ", ".join(f"{name} {value}" for name, value in record["machine"].items())
    text = page.read_text(encoding="utf-8") if page.exists() else "<!-- table -->\n<!-- end of table -->\n"
    before, _, rest = text.partition("<!-- table -->")
    after = rest.partition("<!-- end of table -->")[2]
    table = "\n".join(lines)
    page.write_text(
        f"{before}<!-- table -->\n\n{table}\n\n{record['date']}; {about}.\n\n<!-- end of table -->{after}",
        encoding="utf-8",
    )


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of runs, instead of parts")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each table, about")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    parser.add_argument(
        "--table", type=Path, help="put the figures of that file into this page, measure nothing"
    )
    given = parser.parse_args()
    if given.table:
        write_tables(json.loads(given.json.read_text(encoding="utf-8")), given.table)
        return
    rows: list[Row] = []
    for measure in [runs] if given.runs else [PARTS[part] for part in given.parts]:
        found = list(measure(given))
        show(found)
        print(flush=True)
        rows += found
    about = machine("torch", "onnxruntime", "openvino", "numpy") | {"load": os.getloadavg()[0]}
    print(json.dumps(about))
    if given.json:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        record = {"date": date, "machine": about, "rows": rows}
        given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
