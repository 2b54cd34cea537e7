"""Plots of sweeps and histories, with matplotlib, as PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nt_core.errors import NeuroTrailsError
from nt_core.files import write_atomically
from nt_core.metrics import FIGURES
from nt_lab.sweeps.records import FINISHED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours of Okabe and Ito, which colour-blind readers can tell apart."""

STYLE: Final[dict[Any, Any]] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "font.size": 10,
    "svg.hashsalt": "neurotrails",
    "svg.fonttype": "none",
}

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One quantity of a plot.

    Attributes:
        key: of the figure in a row.
        label: of the axis, with its unit.
        scale: factor of the figures.
        from_zero: whether the axis begins at 0.
    """

    key: str
    label: str
    scale: float = 1.0
    from_zero: bool = False


def _panel(name: str) -> Panel:
    figure = next(figure for figure in FIGURES if figure.name == name)
    if not figure.percent:
        return Panel(key=name, label=figure.title)
    return Panel(key=name, label=f"{figure.title} (%)", scale=100)


ACCURACY, PERPLEXITY, DISAGREEMENT = map(_panel, ("accuracy", "perplexity", "disagreement"))
FLOPS: Final = Panel(
    key="relative_flops_inference", label="inference FLOPs\n(× one dense network)", from_zero=True
)
SECOND: Final[Mapping[str, Panel]] = {"split": DISAGREEMENT, "heads": FLOPS}
"""Second panel, below accuracy, by the swept field."""

LABELS: Final[Mapping[str, str]] = {
    "split": "backbone length (counted blocks)",
    "heads": "members",
    "sparsity": "sparsity",
    "drop_fraction": "initial drop fraction",
    "interval": "steps between updates, ΔT",
}


def sweep_figure(rows: Rows, fields: Sequence[str]) -> Figure:
    """Draw accuracy, and the first field's second panel if it has one, over the values of the first field.

    Each combination of the other fields' values has a line. Points are means over seeds, bars are standard
    deviations, small dots are single runs.

    Args:
        rows: of :func:`nt_lab.sweeps.records.table`; unfinished runs are left out.
        fields: the swept fields.

    Raises:
        NeuroTrailsError: no run finished.
    """
    rows = [row for row in rows if row["status"] == FINISHED]
    if not rows:
        raise NeuroTrailsError("plot: expected at least one finished run, found none")
    first = ACCURACY if rows[0]["unit"] == "examples" else PERPLEXITY
    panels = [first, *(panel for field, panel in SECOND.items() if field == fields[0])]
    figure, axes = _panels(len(panels))
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(", ".join(f"{name} {row[name]}" for name in fields[1:]), []).append(row)
    scale = _Scale.of([row[fields[0]] for row in rows])
    for panel, ax in zip(panels, axes, strict=True):
        for number, (label, group) in enumerate(groups.items()):
            shift = 0.0 if scale.numbers else 0.1 * (number - (len(groups) - 1) / 2)
            places = [scale.place(row[fields[0]]) + shift for row in group]
            _draw_points(ax, panel, group, places, joined=scale.numbers, colour=_colour(number), label=label)
        ax.set_ylabel(panel.label)
        if panel.from_zero:
            ax.set_ylim(bottom=0)
    axes[-1].set_xlabel(LABELS.get(fields[0], fields[0]))
    scale.set_on(axes[-1])
    if len(groups) > 1:
        _legend(figure, axes[0])
    return figure


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Positions of values on the x axis: numbers at their value, names at equal distances."""

    values: tuple[Any, ...]
    numbers: bool

    @staticmethod
    def of(values: Sequence[Any]) -> _Scale:
        distinct = tuple({repr(value): value for value in values}.values())
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        return _Scale(values=tuple(sorted(distinct)) if numbers else distinct, numbers=numbers)

    def place(self, value: Any) -> float:
        return float(value) if self.numbers else float(self.values.index(value))

    def set_on(self, ax: Axes) -> None:
        if self.numbers and self.values[0] > 0 and self.values[-1] / self.values[0] >= 50:
            ax.set_xscale("log")
        if len(self.values) <= 12:
            ax.set_xticks([self.place(value) for value in self.values], list(map(str, self.values)))
            ax.minorticks_off()
        if max(len(str(value)) for value in self.values) > 10:
            ax.tick_params("x", rotation=20)


def _draw_points(
    ax: Axes, panel: Panel, rows: Rows, places: Sequence[float], *, joined: bool, colour: str, label: str
) -> None:
    """Draw means over the rows of each position, joined by a line where the axis has an order."""
    found: dict[float, list[float]] = {}
    for row, place in zip(rows, places, strict=True):
        if row[panel.key] is not None:
            found.setdefault(place, []).append(row[panel.key] * panel.scale)
    x = sorted(found)
    means = [float(np.mean(found[place])) for place in x]
    spreads = [float(np.std(found[place], ddof=1)) if len(found[place]) > 1 else 0.0 for place in x]
    if any(spreads):
        singles = [(place, value) for place in x for value in found[place]]
        ax.plot(*zip(*singles, strict=True), ".", color=colour, alpha=0.35, markersize=5)
    ax.errorbar(x, means, spreads if any(spreads) else None, color=colour, marker="o", markersize=4,
                capsize=3, linestyle="-" if joined else "none", label=label)  # fmt: skip


def history_figure(histories: Mapping[str, Rows], *, tokens: bool = False) -> Figure:
    """Draw accuracy, disagreement and the figures of topology updates, if any, over the steps of training.

    Args:
        histories: name of a run → its events, as :meth:`nt_lab.runs.folder.RunFolder.history` gives them.
        tokens: whether the runs are language models, whose figure is perplexity instead of accuracy.

    Raises:
        NeuroTrailsError: no run has an epoch.
    """
    curves = {
        panel: lines
        for panel, (event, figure) in CURVES.items()
        if (lines := {name: _curve(events, event, figure) for name, events in histories.items()})
        and any(len(line[0]) for line in lines.values())
    }
    curves.pop(ACCURACY if tokens else PERPLEXITY, None)
    if not curves:
        raise NeuroTrailsError("history: expected at least one epoch, found none")
    figure, axes = _panels(len(curves))
    for ax, (panel, lines) in zip(axes, curves.items(), strict=True):
        for number, (name, (steps, values)) in enumerate(lines.items()):
            ax.plot(steps, values * panel.scale, color=_colour(number), linewidth=1.5, label=name,
                    marker="o" if len(steps) <= 30 else None, markersize=3)  # fmt: skip
        ax.set_ylabel(panel.label)
    axes[-1].set_xlabel("optimiser step")
    if len(histories) > 1:
        _legend(figure, axes[0])
    return figure


def _legend(figure: Figure, ax: Axes) -> None:
    """Name the lines above the panels, where they hide nothing."""
    handles, labels = ax.get_legend_handles_labels()
    columns = 1 if max(map(len, labels)) > 24 else min(3, len(labels))
    figure.legend(handles, labels, loc="outside upper left", frameon=False, ncols=columns)


def _changed(event: Mapping[str, Any]) -> float | None:
    return event["pruned"] / event["active"] if event.get("active") else None


def _of(key: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda event: event.get(key)


CURVES: Final[Mapping[Panel, tuple[str, Callable[[Mapping[str, Any]], float | None]]]] = {
    ACCURACY: ("epoch", _of("accuracy")),
    PERPLEXITY: ("epoch", _of("perplexity")),
    DISAGREEMENT: ("epoch", _of("disagreement")),
    Panel(key="changed", label="replaced\n(% of active)", scale=100): ("update", _changed),
    Panel(key="exploration_rate", label="explored, R$_s$ (%)", scale=100): (
        "update",
        _of("exploration_rate"),
    ),
    Panel(key="head_overlap", label="mask overlap\nof heads (%)", scale=100): ("update", _of("head_overlap")),
}
"""Source of each panel of a history: the kind of event, and the figure in it."""


def _curve(
    events: Rows, kind: str, figure: Callable[[Mapping[str, Any]], float | None]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    found = [(event["step"], figure(event)) for event in events if event["event"] == kind and "step" in event]
    known = [(step, value) for step, value in found if value is not None]
    steps, values = zip(*known, strict=True) if known else ((), ())
    return np.array(steps), np.array(values, float)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise NeuroTrailsError("plots need matplotlib; pip install 'neurotrails[lab]'") from None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.5, 1.0 + 2.1 * count), layout="constrained")
        axes = figure.subplots(count, 1, sharex=True, squeeze=False)
    figure.align_ylabels()
    return figure, list(axes[:, 0])


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as ``STEM.png`` (150 dots an inch) and ``STEM.svg``, the same bytes for the same figure.

    Raises:
        NeuroTrailsError: the files cannot be written.
    """
    import matplotlib as mpl

    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(STYLE):
            for path in paths:
                kind, drawn = path.suffix[1:], io.BytesIO()
                undated = {"Date": None} if kind == "svg" else None
                figure.savefig(drawn, format=kind, dpi=150, metadata=undated)
                write_atomically(path, drawn.getvalue())
    except OSError as error:
        raise NeuroTrailsError(f"{stem.parent}: cannot be written ({error.strerror})") from None
    return paths
