"""Tables of costs, comparisons and metrics for a terminal."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from nt_core.cost import Cost, LayerCost
from nt_core.metrics import IN_TABLES
from nt_core.structure import Layout, Part, part_label


def weights_table(cost: Cost, layout: Layout, *, all_heads: bool = False) -> Table:
    """Return the table of blocks and weights; of heads that are alike, only the first is shown.

    Heads are alike where each weight's active count differs by at most one, because whole connections need
    not divide evenly among heads. The totals count every head by its own counts.
    """
    table = narrow_table()
    for name in ("weight", "shape", "size", "active", "density", "mult.-\nadds", "share"):
        table.add_column(name, justify="left" if name == "weight" else "right", no_wrap=True)
    parts = {part: list(layers) for part, layers in groupby(cost.layers, key=lambda layer: layer.part)}
    heads = [part_label(head.name) for head in layout.heads]
    collapse = not all_heads and len(heads) > 1 and _alike([parts.get(head, []) for head in heads])
    for part in heads[1:] if collapse else ():
        parts[heads[0]] += parts.pop(part, [])
    for part, layers in parts.items():
        shown = layers
        if collapse and part in heads:
            shown = layers[: len(layers) // len(heads)]
            table.add_row(*_sum_cells(f"{len(heads)} heads, alike", layers, cost))
        table.add_row(*_sum_cells(part, shown, cost))
        for layer in shown:
            table.add_row(*_layer_cells(layer, cost), end_section=layer is shown[-1])
    table.add_row(*_sum_cells("total", cost.layers, cost))
    return table


def _alike(heads: Sequence[Sequence[LayerCost]]) -> bool:
    return all(
        len({layer.shape for layer in same}) == 1
        and max(layer.active for layer in same) - min(layer.active for layer in same) <= 1
        for same in zip(*heads, strict=True)
    )


def _layer_cells(layer: LayerCost, cost: Cost) -> Iterator[str | Text]:
    yield Text("  " + layer.name.partition("/")[2].removesuffix(".weight"))
    yield "×".join(map(str, layer.shape))
    yield from _figures([layer], cost)


def _sum_cells(title: str, layers: Sequence[LayerCost], cost: Cost) -> Iterator[Text]:
    for text in (title, "", *_figures(layers, cost)):
        yield Text(text, style="bold")


def _figures(layers: Iterable[LayerCost], cost: Cost) -> Iterator[str]:
    layers = list(layers)
    size, active, flops = (
        sum(getattr(layer, name) for layer in layers) for name in ("size", "active", "flops")
    )
    yield f"{size:,}"
    yield f"{active:,}"
    yield f"{active / max(size, 1):.4f}"
    yield si(flops / 2)
    yield f"{flops / max(cost.flops_inference, 1):.1%}"


def split_lines(cost: Cost, layout: Layout) -> list[str]:
    """Return the names of the blocks in the backbone and in each head."""
    lines = [f"blocks: {cost.blocks_counted} counted (stem and classifier are not)"]
    if layout.backbone:
        lines.append(f"{'backbone' if layout.heads else _shared(layout)}: {_blocks(layout.backbone)}")
    found: dict[str, list[str]] = {}
    for head in layout.heads:
        found.setdefault(_blocks(head), []).append(part_label(head.name))
    lines += [
        f"{f'each of {len(same)} heads' if len(same) == len(layout.heads) > 1 else ', '.join(same)}: {blocks}"
        for blocks, same in found.items()
    ]
    return lines


def _shared(layout: Layout) -> str:
    what = "rows" if layout.along == "rows" else "channels of input and output"
    return f"shared by {layout.members} members, each with {what} of its own"


def _blocks(part: Part) -> str:
    counted = [block.name for block in part.blocks if block.kind == "counted"]
    named = (
        f" ({counted[0]} … {counted[-1]})" if len(counted) > 2 else f" ({', '.join(counted)})" * bool(counted)
    )
    rest = [block.name for block in part.blocks if block.kind != "counted"]
    return " + ".join([f"{len(counted)} counted{named}", *rest])


def totals_table(cost: Cost, examples: float | None = None) -> Table:
    """Return the totals beside the totals of the single dense network.

    Args:
        cost: of the described ensemble.
        examples: number of examples over which training FLOPs are summed; None: of one example only.
    """
    relative = cost.relative_to_single_dense()
    table = narrow_table()
    for name in ("", "here", "single dense", "relative"):
        table.add_column(name, justify="left" if not name else "right")
    lines = (
        ("weights", f"{cost.weights_total:,}", f"{cost.single_weights:,}", "weights_total"),
        ("active weights", f"{cost.weights_active:,}", f"{cost.single_weights:,}", "weights_active"),
        ("inference FLOPs", si(cost.flops_inference), si(cost.single_flops), "flops_inference"),
        ("training FLOPs", si(cost.flops_training_step), si(3 * cost.single_flops), "flops_training_step"),
        (
            "FLOPs at uniform density",
            si(cost.density * cost.flops_dense),
            si(cost.single_flops),
            "flops_uniform_equivalent",
        ),
    )
    for name, here, single, key in lines:
        table.add_row(name, here, single, f"{relative[key]:.4f}")
    for name, here, single in _other_amounts(cost, examples):
        table.add_row(name, here, single, "")
    table.add_section()
    table.add_row("density", f"{cost.density:.6g}", "1", "")
    table.add_row("parameters", f"{cost.parameters_total:,}", "", "")
    for name, count in cost.parameters.items():
        if count:
            table.add_row(f"  {name}", f"{count:,}", "", "")
    table.add_row("FLOPs if executed densely", si(cost.flops_dense), "", "")
    if cost.flops_products:
        table.add_row("FLOPs of attention's products", si(cost.flops_products), "", "")
    example = f"one sequence of {cost.tokens:,} tokens" if cost.tokens else "one example"
    table.caption = f"FLOPs: for {example}; 2 × multiply-adds; training: forward and backward."
    return table


def _other_amounts(cost: Cost, examples: float | None) -> Iterator[tuple[str, str, str]]:
    """Return FLOPs for one token, and for a whole training: name, here, single dense."""
    if cost.tokens:
        for name, here, single in (
            ("inference", cost.flops_inference, cost.single_flops),
            ("training", cost.flops_training_step, 3 * cost.single_flops),
        ):
            yield f"{name} FLOPs, one token", si(here / cost.tokens), si(single / cost.tokens)
    if examples is not None:
        amount = f"{examples * cost.tokens:,.0f} tokens" if cost.tokens else f"{examples:,.0f} examples"
        whole = (cost.flops_training_step * examples, 3 * cost.single_flops * examples)
        yield f"training FLOPs, {amount}", si(whole[0]), si(whole[1])


@dataclass(frozen=True)
class Column:
    """A column of tables that compare runs.

    Attributes:
        title: of the column.
        key: of the figure in a row; a list has a line for each.
        unit: the runs that have it; None: all.
    """

    title: str
    key: str
    unit: str | None = None

    def cell(self, row: Mapping[str, Any]) -> str:
        """Return a row's figure."""
        found = row[self.key] if self.unit in (None, row["unit"]) else []
        return "\n".join(number(value) for value in (found if isinstance(found, list) else [found]))


def columns(units: Container[str]) -> list[Column]:
    """Return the columns of the figures that runs of some units have.

    Example:
        >>> [column.title for column in columns({"examples"})]
        ['accuracy', 'NLL', 'ECE', 'disagr.']
    """
    shown = [figure for figure in IN_TABLES if figure.unit is None or figure.unit in units]
    return [Column(figure.heading, figure.name, figure.unit) for figure in shown]


def number(value: float | None) -> str:
    """Write a figure with four decimals; None means a figure beyond the range of floats.

    Example:
        >>> number(0.5), number(None)
        ('0.5000', '∞')
    """
    return "∞" if value is None or math.isinf(value) else f"{value:.4f}"


def compare_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return one line for each run; see :func:`nt_lab.runs.folder.row`.

    Where the runs come from different backends, the backend is printed below the run's name, because a
    separate column would leave no room for names on a terminal of 80 columns. Language models have
    perplexities, of the ensemble and of each member, in place of accuracy and ECE.
    """
    units = {row["unit"] for row in rows}
    figures = columns(units)
    if "tokens" in units:
        figures.insert(1 + ("examples" in units), Column("of each\nmember", "member_perplexity", "tokens"))
    mixed = len({row["backend"] for row in rows}) > 1
    table = narrow_table(
        caption="×: relative to the single dense network (training FLOPs: trained on as many examples). "
        + "ECE: 15 bins. " * ("examples" in units)
        + "perpl.: perplexity. " * ("tokens" in units)
        + "disagr.: prediction disagreement, mean over pairs of members. seconds: of training."
    )
    table.add_column("run\nbackend" if mixed else "run", overflow="fold")
    inference = "infer-\nence\nFLOPs" if mixed else "inference\nFLOPs"
    titles = [figure.title for figure in figures]
    for name in (*titles, "active\nweights", "training\nFLOPs", inference, "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        relative = row["relative"]
        table.add_row(
            Text(f"{row['name']}\n{row['backend'] or 'unknown'}" if mixed else row["name"]),
            *(figure.cell(row) for figure in figures),
            *(
                f"{si(row[n])}\n{relative[n]:.2f}×"
                for n in ("weights_active", "flops_training", "flops_inference")
            ),
            f"{row['seconds']:.1f}",
        )
    return table


def metrics_table(metrics: Mapping[str, Any], unit: str = "examples") -> Table:
    """Return an ensemble's metrics, its members' and their pairwise disagreement.

    Args:
        metrics: as ``nt evaluate --json`` gives them.
        unit: of which they are means; for ``tokens`` perplexity stands in the place of accuracy.
    """
    shown = [figure for figure in IN_TABLES if not figure.leads or figure.unit == unit]
    table = narrow_table(caption=f"{metrics['count']:,} {unit}")
    table.add_column("")
    for figure in shown:
        table.add_column(figure.title, justify="right")
    members = len(metrics["disagreement_matrix"])
    for place in range(members if members > 1 else 0):
        pairs = "  ".join(f"{pair:.4f}" for pair in metrics["disagreement_matrix"][place])
        own = {figure: metrics[figure.of_members][place] for figure in shown if figure.of_members}
        cells = [number(own[figure]) if figure in own else "" for figure in shown]
        table.add_row(f"member {place + 1}", *cells[:-1], pairs)
    table.add_section()
    cells = [number(metrics[figure.name]) for figure in shown]
    table.add_row("ensemble" if members > 1 else "network", *cells)
    return table


def narrow_table(**options: Any) -> Table:
    """Return a table without lines between columns, to fit a terminal of 80 columns."""
    return Table(box=SIMPLE_HEAD, show_edge=False, padding=0, caption_justify="left", **options)


def si(value: float) -> str:
    """Return a number with three digits and a prefix.

    Example:
        >>> si(999), si(7_165_000_000), si(12_300)
        ('999', '7.17 G', '12.3 k')
    """
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 999.5:
            return f"{value:.3g} {prefix}".rstrip()
        value /= 1000
    return f"{value:.3g} Z"
