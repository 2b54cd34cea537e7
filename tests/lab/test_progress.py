from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nt_lab.progress import progress


def shown(steps: int, per_epoch: int, *, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
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
