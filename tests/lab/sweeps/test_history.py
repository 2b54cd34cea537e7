from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from nt_core import NeuroTrailsError
from nt_lab.cli.main import app
from nt_lab.runs.backends import Backend
from nt_lab.sweeps.plots import history_figure, save
from nt_lab.sweeps.tables import HISTORY_LINES, history_table


def nt(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})


def test_a_history_is_drawn_and_listed(tmp_path: Path, fake_backend: Callable[[], Backend]) -> None:
    run = str(tmp_path / "run")
    nt("train", "neurotrails", "--set", "graph.width=1", "--epochs", "2", "--out", run)
    shown = nt("history", run)
    assert "disagr." in shown.stdout
    assert f"files: {run}/history.png, {run}/history.svg" in shown.stdout
    assert (tmp_path / "run/history.svg").read_text().count("disagreement") >= 1
    events = json.loads(nt("history", run, "--json").stdout)[run]
    epochs = [event for event in events if event["event"] == "epoch"]
    assert len(epochs[0]["disagreement_matrix"]) == 3
    assert epochs[0]["disagreement"] == pytest.approx(sum(map(sum, epochs[0]["disagreement_matrix"])) / 6)
    assert "is this a run" not in shown.stderr
    assert nt("history", str(tmp_path / "no")).exit_code == 2


def events(**update: float) -> list[dict[str, object]]:
    return [
        {"event": "update", "step": 5, "pruned": 2, "grown": 2, "active": 10, **update},
        {"event": "epoch", "epoch": 1, "step": 10, "loss": 1.0, "accuracy": 0.5, "disagreement": 0.1},
        {"event": "epoch", "epoch": 2, "step": 20, "loss": 0.5, "accuracy": 0.6, "disagreement": None},
    ]


def test_panels_are_what_a_history_has() -> None:
    def panels(**update: float) -> list[str]:
        return [ax.get_ylabel() for ax in history_figure({"a": events(**update), "b": events()}).axes]

    assert panels() == ["accuracy (%)", "disagreement (%)", "replaced\n(% of active)"]
    assert len(panels(exploration_rate=0.3, head_overlap=0.2)) == 5
    with pytest.raises(NeuroTrailsError, match="expected at least one epoch"):
        history_figure({"a": []})


def test_figures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, second = (save(history_figure({"a": events()}), tmp_path / name) for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_long_history_is_thinned() -> None:
    long = [
        {"event": "epoch", "epoch": i, "step": i, "loss": 0.0, "accuracy": 0.0, "disagreement": 0.0}
        for i in range(1, 102)
    ]
    table = history_table("a", long)
    assert table.row_count <= HISTORY_LINES
    assert list(table.columns[0].cells)[-1] == "101"
