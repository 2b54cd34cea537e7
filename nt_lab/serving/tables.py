"""Tables of predictions and of their latency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Final

from rich.table import Table
from rich.text import Text

from nt_lab.serving.runtimes import RUNTIMES
from nt_lab.serving.serve import AGREEMENT, SPARSE, Measured, Predictions
from nt_lab.tables import narrow_table, si

SHOWN: Final = 5
"""Number of predictions that are shown; a file holds all of them."""


def predictions_table(found: Predictions) -> Table:
    """Return a table of the first predictions."""
    rows = list(islice(found.rows(), SHOWN))
    rest = len(found.probabilities) - len(rows)
    table = narrow_table(caption=f"and {rest:,} more; --out FILE writes them all" if rest else None)
    named = [name for name in ("file", "label", "prediction") if name in rows[0]]
    first = ["example"] if found.files is None else []
    for name in (*first, *named, "probability", "members agreeing"):
        table.add_column(name, justify="left" if name == "file" else "right", overflow="fold")
    for row in rows:
        table.add_row(
            *(Text(str(row[name])) for name in (*first, *named)),
            f"{row['probability']:.4f}",
            f"{row['members_agreeing']:.0%}",
        )
    return table


def bench_table(found: Sequence[Measured]) -> Table:
    """Return a table of each runtime's latency at each batch size."""
    table = narrow_table()
    table.add_column("runtime", no_wrap=True)
    for name in ("mean ms", "median", "p95", "examples/s", "FLOPs", "of peak", "× nt_cpu", "agrees"):
        table.add_column(name, justify="right", no_wrap=True)
    for batch, lines in groupby(found, key=lambda line: line.latency.batch):
        table.add_row(Text(f"batch {batch}", style="bold"))
        for line in lines:
            table.add_row(*_cells(line))
        table.add_section()
    return table


def _cells(line: Measured) -> Iterator[str | Text]:
    yield f"  {line.runtime}"
    yield from (f"{getattr(line.latency, name) * 1e3:.3g}" for name in ("mean", "median", "p95"))
    yield f"{line.latency.throughput:,.4g}"
    yield si(line.flops)
    yield "" if line.share_of_peak is None else f"{line.share_of_peak:.0%}"
    yield f"{line.times_slower:.2f}"
    good = line.differs is None or line.agrees
    yield ("yes" if line.agrees else "") if good else Text(f"no: {line.differs:.1e}", style="red")


def bench_notes(found: Sequence[Measured], threads: int) -> Iterator[str]:
    """Yield notes on the table: threads, versions, runtimes that are not installed, agreement."""
    peak = found[0].peak
    measured = "" if peak is None else f", which does {si(peak)}FLOP/s in registers"
    yield f"{threads} thread{'s' * (threads > 1)} of this machine{measured}; FLOPs of one example"
    used = dict.fromkeys(line.runtime for line in found if line.runtime != SPARSE)
    if used:
        versions = ", ".join(f"{RUNTIMES[name].packages[0]} {RUNTIMES[name].version}" for name in used)
        yield f"dense runtimes: {', '.join(dict.fromkeys(versions.split(', ')))}"
    missing = [name for name in RUNTIMES if name not in used and not RUNTIMES[name].present]
    if missing:
        yield f"not installed: {', '.join(missing)}"
    if used and all(line.differs is None for line in found):
        yield "not compared: a packed file has no dense weights; give its run with --run"
    elif used:
        yield f"agrees: no probability differs by more than {AGREEMENT:g} from nt_cpu's"
