"""Progress of a training: bars on a terminal, about ten lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from nt_core.metrics import FIGURES
from nt_core.training import Report

LINES: Final = 10


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


WRITE: Final[Mapping[str, Callable[[float], str]]] = {
    "loss": "{:.3f}".format,
    **{figure.name: _percent if figure.percent else "{:.3f}".format for figure in FIGURES},
    "density": _percent,
    "skipped": "{:,} batches".format,
}


@contextmanager
def progress(console: Console, name: str, figure: str = "accuracy") -> Iterator[Report]:
    """Show a training's records as they come.

    Args:
        console: shows a bar if it is a terminal, else a line about every tenth of the training.
        name: of the run.
        figure: the metric shown for tests: ``accuracy`` or ``perplexity``.

    Example:
        >>> import io
        >>> console = Console(file=io.StringIO())
        >>> with progress(console, "demo") as report:
        ...     report({"event": "start", "total_steps": 1, "total_epochs": 1, "device": "cpu"})
        ...     report({"event": "epoch", "epoch": 1, "step": 1, "loss": 0.5})
        >>> console.file.getvalue().split()
        ['demo', 'epoch', '1/1', 'step', '1/1', 'loss', '0.500']
    """
    if not console.is_terminal:
        yield Lines(console, name, figure)
        return
    with Progress(*_columns(), console=console, transient=True, expand=True) as bars:
        yield Bar(bars, name, figure)


def _columns() -> tuple[ProgressColumn, ...]:
    """Return a bar's columns; where a terminal is narrow, the name and the figures are cut, but no count."""
    return (
        _text("{task.description}", style="bold", ratio=1, min_width=6),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
        _text("{task.fields[epoch]}{task.fields[figures]}", ratio=6),
    )


def _text(text: str, style: str = "none", **options: Any) -> TextColumn:
    column = Column(no_wrap=True, overflow="ellipsis", **options)
    return TextColumn(text, style=style, markup=False, table_column=column)


class Bar:
    """Records as a progress bar over steps."""

    def __init__(self, bars: Progress, name: str, figure: str = "accuracy") -> None:
        self._bars, self._figure = bars, figure
        self._task = bars.add_task(name, total=None, epoch="", figures="starting")
        self._epochs = 0

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Show one record."""
        match record["event"]:
            case "start":
                self._epochs = record["total_epochs"]
                self._bars.update(self._task, total=record["total_steps"], completed=0, figures="")
            case "member" | "resume" | "resumed" | "finished" | "dropped":
                self._bars.console.print(about_members(record), markup=False, highlight=False)
            case "step":
                self._bars.update(self._task, completed=record["step"])
            case "epoch":
                epoch = f"epoch {record['epoch']}/{max(self._epochs, record['epoch'])}  "
                self._bars.update(self._task, epoch=epoch, figures=figures(record, self._figure))


class Lines:
    """Records as lines, about ten in all for any length of training."""

    def __init__(self, console: Console, name: str, figure: str = "accuracy") -> None:
        self._console, self._name, self._figure = console, name, figure
        self._steps, self._epochs, self._shown = 0, 0, 0
        self._latest: dict[str, Any] = {"epoch": 0}

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Show one record, if it is time."""
        match record["event"]:
            case "start":
                self._steps, self._epochs, self._shown = record["total_steps"], record["total_epochs"], 0
                self._latest = {"epoch": 0}
            case "member" | "resume" | "resumed" | "finished" | "dropped":
                text = f"{self._name}  {about_members(record)}"
                self._console.print(text, markup=False, highlight=False)
                if record["event"] == "resumed":
                    self._latest = {"epoch": record["epoch"]}
                    self._shown = LINES * record["step"] // max(self._steps, 1)
            case "skipped":
                self._latest["skipped"] = record["skipped"]
            case "epoch":
                self._latest |= record
                self._show(record["step"])
            case "step" if self._epochs < LINES and record["step"] < self._steps:
                self._show(record["step"])

    def _show(self, step: int) -> None:
        tenth = LINES * step // max(self._steps, 1)
        if tenth > self._shown:
            self._shown = tenth
            epoch = self._latest["epoch"]
            epochs = max(self._epochs, epoch)  # more than planned where batches were skipped
            line = f"{self._name}  epoch {epoch}/{epochs}  step {step}/{self._steps}"
            text = f"{line}  {figures(self._latest, self._figure)}".rstrip()
            self._console.print(text, markup=False, highlight=False)


def about_members(record: Mapping[str, Any]) -> str:
    """Return the message of a record about finished members, a state that was found, or examples left out.

    Example:
        >>> about_members({"event": "member", "trained": (2,), "members": 3})
        'member 2 of 3 is finished'
        >>> about_members({"event": "resume", "trained": [1, 2], "members": 3})
        'found finished members of an interrupted run: 1, 2 of 3; going on with the others'
        >>> about_members({"event": "resumed", "step": 40})
        'found the state of an interrupted run; going on after step 40'
        >>> about_members({"event": "finished"})
        'found a run of this spec that was stopped after its end; it is complete now'
        >>> about_members({"event": "dropped", "examples": 1, "of": 1437})
        'the last 1 of 1437 examples of each epoch is too few for batch normalisation and left out'
    """
    if record["event"] == "dropped":
        verb = "is" if record["examples"] == 1 else "are"
        left = f"the last {record['examples']} of {record['of']} examples of each epoch"
        return f"{left} {verb} too few for batch normalisation and left out"
    if record["event"] == "finished":
        return "found a run of this spec that was stopped after its end; it is complete now"
    if record["event"] == "resumed":
        return f"found the state of an interrupted run; going on after step {record['step']}"
    numbers = ", ".join(map(str, record["trained"]))
    if record["event"] == "member":
        return f"member {numbers} of {record['members']} is finished"
    return (
        f"found finished members of an interrupted run: {numbers} of {record['members']}; "
        "going on with the others"
    )


def figures(record: Mapping[str, Any], figure: str = "accuracy") -> str:
    """Return a record's figures of the training, in a line.

    Example:
        >>> figures({"loss": 0.25, "accuracy": 0.5, "density": 0.2, "skipped": 3})
        'loss 0.250  accuracy 50.0 %  active 20.0 %  skipped 3 batches'
    """
    names = {"loss": "loss", figure: figure, "density": "active", "skipped": "skipped"}
    return "  ".join(f"{name} {WRITE[key](record[key])}" for key, name in names.items() if key in record)
