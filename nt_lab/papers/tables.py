"""The tables of ``nt cost``, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from rich.table import Table
from rich.text import Text

from nt_lab.papers.costs import Line
from nt_lab.tables import narrow_table, si


def papers_tables(lines: Sequence[Line]) -> Iterator[Table]:
    """Return a table for each setting of the papers; see :mod:`nt_lab.papers.costs`."""
    for setting, same in groupby(lines, key=lambda line: line.setting):
        table = narrow_table(title=setting, title_justify="left", title_style="bold")
        names = ("weights", "active\nweights", "training\nFLOPs", "inference\nFLOPs", "at uniform\ndensity")
        for name in ("method, trained for", *names):
            table.add_column(name, justify="left" if name.startswith("method") else "right", no_wrap=True)
        notes: list[str] = []
        for line in same:
            mark = ""
            if line.published:
                notes.append(line.published)
                mark = f" [{len(notes)}]"
            absolute = [si(value) for value in (line.weights, line.active)]
            absolute += [si(value) for value in (line.flops_training, line.flops_inference)]
            ratios = [f"{ratio:.4f}×" for ratio in line.relative.values()]
            table.add_row(
                Text(f"{line.method}{mark}\n  {line.length}"),
                *(f"{a}\n{b}" for a, b in zip(absolute, ratios, strict=False)),
                f"\n{ratios[-1]}",
            )
        table.caption = Text("\n".join(f"[{number}] {note}" for number, note in enumerate(notes, 1)))
        yield table


def papers_markdown(lines: Sequence[Line]) -> str:
    """Return the same tables in Markdown, for the page of the documentation."""
    parts = []
    for setting, same in groupby(lines, key=lambda line: line.setting):
        parts.append(f"## {setting}\n\n{HEADER}\n" + "\n".join(map(_markdown_row, same)))
    return "\n\n".join(parts) + "\n"


HEADER: Final = (
    "| method | trained for | parameters | weights | active | training FLOPs | inference FLOPs "
    "| inference FLOPs at uniform density | published |\n" + "|---" * 2 + "|--:" * 6 + "|---|"
)


def _markdown_row(line: Line) -> str:
    relative = [f"{ratio:.4f}×" for ratio in line.relative.values()]
    training, inference = f"{si(line.flops_training)}, ", f"{si(line.flops_inference)}, "
    cells = [line.method, line.length, si(line.parameters), *relative[:2]]
    cells += [training + relative[2], inference + relative[3], relative[4], line.published]
    return f"| {' | '.join(cells)} |"
