"""Draws the README's picture from the committed results: ``python docs/images/draw.py``.

Left: accuracy against inference FLOPs, from ``docs/results/cifar10/*.json``. Right: the speed-up of sparse
inference over the fastest dense runtime, from ``docs/results/cpu-inference.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator, MultipleLocator, NullLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS: Final = Path(__file__).parents[1] / "results"
PICTURE: Final = Path(__file__).with_name("results.svg")

STYLE: Final[dict[Any, Any]] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "axes.axisbelow": True,
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "svg.hashsalt": "neurotrails",
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A group of methods that share a look.

    The colours are from the palette of Okabe and Ito, because colour-blind readers can tell them apart.

    Attributes:
        label: in the legend.
        colour: of points and their names.
        marker: of points, so that colour is not the only difference.
    """

    label: str
    colour: str
    marker: str


NEUROTRAILS: Final = Kind(label="NeuroTrails", colour="#D55E00", marker="o")
ENSEMBLE: Final = Kind(label="another ensemble", colour="#0072B2", marker="s")
SPARSE: Final = Kind(label="one sparse network", colour="#009E73", marker="^")
DENSE: Final = Kind(label="one dense network", colour="#000000", marker="D")

POINTS: Final[tuple[tuple[str, Kind, str, tuple[float, float], str], ...]] = (
    ("single", DENSE, "16 epochs", (7, 3), "left"),
    ("single_equal_flops", DENSE, "48 epochs", (7, -3), "left"),
    ("full_ensemble", ENSEMBLE, "full ensemble", (0, 8), "center"),
    ("treenet", ENSEMBLE, "TreeNet", (0, -13), "center"),
    ("batch_ensemble", ENSEMBLE, "BatchEnsemble", (5, -13), "center"),
    ("fission", ENSEMBLE, "Network Fission", (0, 7), "center"),
    ("static", ENSEMBLE, "static masks", (7, 1), "left"),
    ("dst_ensemble", ENSEMBLE, "DST ensemble", (7, -9), "left"),
    ("edst", ENSEMBLE, "EDST, 29 epochs", (7, -3), "left"),
    ("neurotrails", NEUROTRAILS, "16 epochs", (5, -12), "left"),
    ("neurotrails_extended", NEUROTRAILS, "29 epochs", (-7, -3), "right"),
    ("neurotrails_equal_flops", NEUROTRAILS, "70 epochs", (-7, -3), "right"),
    ("gradual_pruning", SPARSE, "gradual pruning", (0, 7), "center"),
    ("magnitude_pruning", SPARSE, "pruning", (7, -1), "left"),
    ("deep_r", SPARSE, "DEEP R", (0, 7), "center"),
    ("mest", SPARSE, "MEST", (-7, -3), "right"),
    ("chts", SPARSE, "CHTs", (-7, -3), "right"),
    ("set", SPARSE, "SET", (-6, 3), "right"),
    ("rigl", SPARSE, "RigL", (-7, -6), "right"),
    ("snip", SPARSE, "SNIP", (4, -12), "left"),
    ("snfs", SPARSE, "SNFS", (0, -13), "center"),
    ("grasp", SPARSE, "GraSP", (7, -3), "left"),
)
"""For each point: method, kind, label, the label's offset in typographic points, and its alignment."""


def results(method: str) -> list[Mapping[str, Any]]:
    """Return the results of one method on CIFAR-10, one for each seed."""
    return [
        json.loads(path.read_text()) for path in sorted((RESULTS / "cifar10").glob(f"{method}-[0-9].json"))
    ]


def draw_accuracy(axes: Axes) -> None:
    """Draw accuracy against inference FLOPs; bars are standard deviations where there are several seeds."""
    for method, kind, name, offset, align in POINTS:
        runs = results(method)
        accuracy = [100 * run["metrics"]["accuracy"] for run in runs]
        flops = runs[0]["cost"]["relative_to_single_dense"]["flops_inference"]
        deviation = np.std(accuracy, ddof=1) if len(runs) > 1 else None
        axes.errorbar(
            flops,
            np.mean(accuracy),
            deviation,
            fmt=kind.marker,
            color=kind.colour,
            markersize=5,
            elinewidth=1,
        )
        axes.annotate(
            name,
            (flops, float(np.mean(accuracy))),
            offset,
            textcoords="offset points",
            ha=align,
            color=kind.colour,
        )
    mimo = results("mimo")[0]
    axes.annotate(
        f"MIMO {100 * mimo['metrics']['accuracy']:.0f} %",
        (mimo["cost"]["relative_to_single_dense"]["flops_inference"], 52),
        (0, 18),
        textcoords="offset points",
        ha="center",
        color=ENSEMBLE.colour,
        arrowprops={"arrowstyle": "->", "color": ENSEMBLE.colour},
    )
    for kind in (NEUROTRAILS, ENSEMBLE, SPARSE, DENSE):
        axes.plot([], [], kind.marker, color=kind.colour, markersize=5, label=kind.label)
    axes.legend(loc="lower right", frameon=True, framealpha=1, edgecolor="0.85", handletextpad=0.2)
    axes.set(xscale="log", xlim=(0.14, 4.6), ylim=(52, 74), ylabel="accuracy (%)")
    axes.set_xlabel("FLOPs of a prediction (× one dense network, log scale)")
    axes.xaxis.set_major_locator(FixedLocator([0.2, 0.33, 0.5, 0.66, 1, 2, 3]))
    axes.yaxis.set_major_locator(MultipleLocator(5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title("Accuracy on CIFAR-10 after 16 epochs,\nor as many as the label says")


def draw_speed(axes: Axes) -> None:
    """Draw the speed-up of sparse inference, one bar for each sparsity."""
    rows = json.loads((RESULTS / "cpu-inference.json").read_text())["rows"]
    times = {
        row["what"].removeprefix("S = "): row["times_faster"]
        for row in rows
        if (row["part"], row["batch"], row["threads"]) == ("wide_resnet", 16, 1)
        and row["what"].startswith("S")
    }
    labels = [f"{100 * float(sparsity):.0f} %" for sparsity in times]
    bars = axes.bar(labels, list(times.values()), color=NEUROTRAILS.colour, width=0.6)
    axes.bar_label(bars, fmt="%.1f×", padding=2)
    axes.axhline(1, color=DENSE.colour, linewidth=1)
    axes.annotate(
        "1 = the dense networks\nin the fastest runtime",
        (0.5, 1),
        (-0.4, 13),
        arrowprops={"arrowstyle": "-", "color": "0.5", "shrinkB": 0, "relpos": (0.5, 0)},
    )
    axes.grid(visible=False, axis="x")
    axes.set(ylim=(0, 28), xlabel="sparsity", ylabel="speed-up (times)")
    axes.set_title("Inference on one CPU thread: three\nsparse heads, three dense networks")


def draw(path: Path) -> None:
    """Write the picture, the same bytes each time with one version of matplotlib."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(9, 4.4), width_ratios=(2.2, 1), layout="constrained", facecolor="white"
        )
        draw_accuracy(left)
        draw_speed(right)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


if __name__ == "__main__":
    draw(PICTURE)
