from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nt_lab.console import screen
from nt_lab.runs.progress import progress
from nt_lab.tables import compare_table


def shown(steps: int, per_epoch: int, *, terminal: bool = False, width: int = 120) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    epochs = -(-steps // per_epoch)
    with progress(console, "name [odd]") as report:
        report({"event": "start", "total_steps": steps, "total_epochs": epochs, "device": "cpu"})
        for step in range(1, steps + 1):
            report({"event": "step", "step": step})
            if step % per_epoch == 0 or step == steps:
                epoch = -(-step // per_epoch)
                figures = {"loss": 0.25, "accuracy": 0.5, "density": 0.2}
                report({"event": "epoch", "epoch": epoch, "step": step, **figures})
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_log_has_at_most_twelve_lines_and_ends_with_the_end(steps: int, per_epoch: int) -> None:
    lines = shown(steps, per_epoch).splitlines()
    assert 1 <= len(lines) <= 12
    assert lines[-1].endswith(f"step {steps}/{steps}  loss 0.250  accuracy 50.0 %  active 20.0 %")
    assert all(line.startswith("name [odd]  epoch ") for line in lines)


@pytest.mark.parametrize("steps", [1, 40])
def test_a_terminal_sees_a_bar(steps: int) -> None:
    text = shown(steps, 4, terminal=True)
    assert f"{steps}/{steps}" in text
    assert "accuracy 50.0 %" in text


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_terminal_keeps_the_total_and_the_time_left(width: int) -> None:
    text = shown(12_000, 1000, terminal=True, width=width)
    assert re.search(r" 12000/12000 +(\d\d:\d\d|--:--) ", text)
    assert "epoch 12/" in text
    assert ("accuracy 50.0 %" in text) == (width == 80)


def test_brackets_in_a_name_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    assert "name [odd] " in shown(1, 1, terminal=True)
    record = {"name": "[red]a[/] :smile:", "backend": "torch", "unit": "examples", "seconds": 1.0}
    figures = dict.fromkeys(
        ("accuracy", "nll", "perplexity", "ece", "disagreement", "weights_active", "flops_training"), 0.5
    )
    relative = dict.fromkeys(("weights_active", "flops_training", "flops_inference"), 1.0)
    line = {**record, **figures, "flops_inference": 1.0, "relative": relative}
    out = screen()
    with out.capture() as captured:
        out.print(compare_table([line]))
        out.print("run: runs/[red]a[/] :smile:")
    assert captured.get().count("[red]a[/] :smile:") == 2


def test_members_in_turn_are_told_apart() -> None:
    console = Console(file=io.StringIO(), width=120)
    with progress(console, "run") as report:
        report({"event": "resume", "trained": [1], "members": 3})
        for member in (2, 3):
            report({"event": "start", "total_steps": 2, "total_epochs": 1, "device": "cpu"})
            report({"event": "step", "step": 1})
            report({"event": "epoch", "epoch": 1, "step": 2, "loss": 0.5})
            report({"event": "member", "trained": (member,), "members": 3})
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "run  found finished members of an interrupted run: 1 of 3; going on with the others"
    assert lines[1:4] == [
        "run  epoch 0/1  step 1/2",
        "run  epoch 1/1  step 2/2  loss 0.500",
        "run  member 2 of 3 is finished",
    ]
    assert lines[4:6] == lines[1:3]
