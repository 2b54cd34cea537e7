"""Tables of sweeps, histories, corruptions and other datasets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nt_core.metrics import leading
from nt_lab.tables import columns, narrow_table, number, si


def points_table(points: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> Table:
    """Return one line for each point of a sweep: mean ± standard deviation over seeds.

    Args:
        points: of :func:`nt_lab.sweeps.records.points`.
        fields: the swept fields.
    """
    units = {point["unit"] for point in points}
    figures = columns(units)
    table = narrow_table(
        caption="±: standard deviation over seeds (n − 1). ×: relative to the single dense network."
    )
    for name in fields:
        table.add_column(Text(name), overflow="fold")
    titles = [figure.title for figure in figures]
    for name in ("runs", *titles, "training\nFLOPs", "inference\nFLOPs", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for point in points:
        runs = f"{point['runs']}" + f"\n{point['failed']} not" * bool(point["failed"])
        table.add_row(
            *(Text(str(point[name])) for name in fields),
            runs,
            *(_spread(point, figure.key) for figure in figures),
            *(_with_relative(point, key) for key in ("flops_training", "flops_inference")),
            "" if point["seconds"] is None else f"{point['seconds']:.1f}",
        )
    return table


def _spread(point: Mapping[str, Any], key: str) -> str:
    if point[key] is None:
        return "–"
    deviation = point[f"{key}_std"]
    return number(point[key]) + ("" if deviation is None else f"\n±{deviation:.4f}")


def _with_relative(point: Mapping[str, Any], key: str) -> str:
    return "–" if point[key] is None else f"{si(point[key])}\n{point[f'relative_{key}']:.2f}×"


HISTORY_LINES: Final = 20


def history_table(name: str, events: Sequence[Mapping[str, Any]], *, tokens: bool = False) -> Table:
    """Return a table of at most twenty epochs of a run, evenly spaced, always with the last epoch.

    Args:
        name: of the run.
        events: of :meth:`nt_lab.runs.folder.RunFolder.history`.
        tokens: whether the run is a language model.
    """
    epochs = [event for event in events if event["event"] == "epoch"]
    first = leading("tokens" if tokens else "examples").name
    table = narrow_table(title=Text(name), title_justify="left")
    for title in ("epoch", "step", "loss", first, "disagr.", "replaced"):
        table.add_column(title, justify="right")
    shown = range(len(epochs) - 1, -1, -max(1, math.ceil(len(epochs) / HISTORY_LINES)))
    for place in reversed(shown):
        epoch, since = epochs[place], epochs[place - 1]["step"] if place else 0
        replaced = [
            event["pruned"]
            for event in events
            if event["event"] == "update" and since < event["step"] <= epoch["step"]
        ]
        table.add_row(
            str(epoch["epoch"]),
            f"{epoch['step']:,}",
            *(
                "–" if epoch.get(key) is None else number(epoch[key])
                for key in ("loss", first, "disagreement")
            ),
            f"{sum(replaced):,}" if replaced else "",
        )
    return table


def ood_table(found: Mapping[str, Any]) -> Group:
    """Return the table of out-of-distribution detection; see :func:`nt_lab.evaluation.ood.measure_ood`."""
    share = found["outside"] / (found["inside"] + found["outside"])
    table = narrow_table()
    for title in ("AUROC", "AUPR", "FPR95"):
        table.add_column(title, justify="right")
    table.add_row(*(number(found[key]) for key in ("auroc", "aupr", "fpr95")))
    sets = f"{found['outside']:,} examples of {found['source']} among {found['inside']:,} of the test set"
    return Group(table, Text(f"{sets}, by 1 − max p.\nBy chance: AUROC 0.5, AUPR {share:.4f}, FPR95 0.95."))


def corruptions_table(found: Mapping[str, Any], clean: float) -> Table:
    """Return accuracy by corruption and severity; see :mod:`nt_lab.evaluation.corruptions`.

    Args:
        found: the measurements.
        clean: accuracy on the same examples, uncorrupted.
    """
    score = (
        "mCE is defined for ImageNet at 224 pixels and all five severities alone."
        if found["mce"] is None
        else f"mCE {found['mce'] * 100:.1f} % (AlexNet: 100 %)."
    )
    table = narrow_table(
        caption=f"{found['count']:,} examples, uncorrupted: {clean:.4f}. Strengths are ImageNet-C's. {score}"
    )
    table.add_column("accuracy at severity")
    for severity in found["severities"]:
        table.add_column(str(severity), justify="right")
    table.add_column("mean", justify="right")
    for name, values in found["accuracy"].items():
        table.add_row(name, *map(number, values), number(found["mean_accuracy"][name]))
    table.add_section()
    table.add_row("mean", *("" for _ in found["severities"]), number(found["mean"]))
    return table
