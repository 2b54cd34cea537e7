"""The table of ``nt scale``, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from nt_core.cost import Scale
from nt_core.spec import EnsembleSpec
from nt_core.structure import Single
from nt_lab.tables import narrow_table, si

WRAPPINGS: Final = {"ddp": "DDP", "fsdp2": "FSDP2"}
COLUMNS: Final = (
    "ranks",
    "para-\nmeters",
    "gradi-\nents",
    "opti-\nmiser",
    "masks",
    "a step\nadds",
    "update\nadds",
    "peak",
    "left of\n{memory}",
    "host",
    "sent,\nstep",
    "sent,\nupdate",
    "calls,\nupdate",
)


def about(name: str, spec: EnsembleSpec, line: Scale, optimizer: str) -> str:
    """Return a sentence about the trained parameters, masks and dtype."""
    trained = spec.turns[0].layout
    heads = len(trained.heads)
    parts = f"{heads} {'head' if heads == 1 else 'heads'}" if heads else "members that share every block"
    parts += " and a backbone" * bool(heads and trained.backbone)
    single = sum(p.weight.size for p in Single().layout(spec.graph).weights if p.weight.trainable)
    masks = (
        f"{si(line.maskable)} with masks, {si(line.active)} of them active" if line.maskable else "no masks"
    )
    return (
        f"{name}: {si(line.parameters)} parameters in {parts} ({si(single)} in one dense network), {masks}; "
        f"{line.dtype}, {optimizer}; FSDP2 gathers {line.units}."
    )


def scale_table(lines: Sequence[Scale], memory: float) -> Table:
    """Return a line for each number of processes and each wrapping.

    Args:
        lines: of :func:`nt_core.cost.scale`.
        memory: of one device, in GB.
    """
    table = narrow_table(
        caption="For each process; GB are 10⁹ bytes. gradients: with DDP's buckets. a step, update: what "
        "they add for a moment. peak: activations left out. host: at an update. sent: by rings."
    )
    table.add_column("")
    for name in COLUMNS:
        table.add_column(name.format(memory=_gigabytes(memory)), justify="right", no_wrap=True)
    for line in lines:
        table.add_row(Text(WRAPPINGS[line.wrap]), *_cells(line, memory))
    return table


def scale_markdown(lines: Sequence[Scale], memory: float, sentence: str) -> str:
    """Return the same table in Markdown, for a page of the documentation."""
    names = [name.format(memory=_gigabytes(memory)).replace("-\n", "").replace("\n", " ") for name in COLUMNS]
    rows = [
        ["", *names],
        ["---", *["--:"] * len(names)],
        *([WRAPPINGS[line.wrap], *_cells(line, memory)] for line in lines),
    ]
    return f"{sentence}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cells(line: Scale, memory: float) -> list[str]:
    device, left = line.device, memory * 1e9 - line.device.peak
    sizes = (
        device.parameters,
        device.gradients + device.buckets,
        device.optimizer,
        device.masks,
        device.step,
        device.update,
        device.peak,
    )
    host = line.host.seen + line.host.update
    return [
        str(line.ranks),
        *map(size, sizes),
        size(left) if left >= 0 else "does not fit",
        *map(size, (host, line.step_sent, line.update_sent)),
        f"{line.messages.calls:,}",
    ]


def size(count: float) -> str:
    """Write a number of bytes.

    Example:
        >>> size(17_300_000_000), size(999)
        ('17.3 GB', '999 B')
    """
    text = si(count)
    return f"{text}B" if " " in text else f"{text} B"


def _gigabytes(memory: float) -> str:
    return f"{memory:g} GB"
