from __future__ import annotations

import csv
import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nt_models
from nt_core import CheckpointError, EnsembleSpec, NeuroTrailsError, initial_values
from nt_core.checkpoint import Checkpoint, save_checkpoint
from nt_core.files import plain, to_json
from nt_lab.runs.folder import FILES, UNFINISHED, RunFolder, flat, row, write_csv


def fill(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir() if file.is_file()}


def stop_half_way(run: RunFolder, error: type[BaseException], *, overwrite: bool) -> None:
    with run.replacing(overwrite=overwrite) as unfinished:
        unfinished.append({"event": "epoch"})
        raise error


def whole(text: str) -> dict[str, str]:
    return dict.fromkeys(FILES, text)


def test_a_new_run_appears_when_it_is_complete(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a" / "b")
    with run.replacing(overwrite=False) as unfinished:
        fill(unfinished.path, "new")
        assert not (run.path / "config.json").exists()
    assert content(run.path) == whole("new")
    assert not (run.path / UNFINISHED).exists()


def test_a_run_is_not_replaced_unless_told(tmp_path: Path) -> None:
    fill(tmp_path, "old")
    with pytest.raises(NeuroTrailsError, match=r"holds a run already .*--overwrite"):
        RunFolder(tmp_path).replacing(overwrite=False).__enter__()
    assert content(tmp_path) == whole("old")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_fails_loses_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    fill(tmp_path, "old")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(error):
        stop_half_way(RunFolder(tmp_path), error, overwrite=True)
    assert content(tmp_path) == whole("old") | {"notes.txt": "mine"}
    assert RunFolder(tmp_path / UNFINISHED).history() == [{"event": "epoch"}]
    with RunFolder(tmp_path).replacing(overwrite=True) as unfinished:
        unfinished.forget(lambda _: False)
        assert not unfinished.path.exists()
        fill(unfinished.path, "new")
    assert content(tmp_path) == whole("new") | {"notes.txt": "mine"}


@given(st.integers(0, len(FILES) - 1))
def test_a_run_stopped_while_it_moved_is_moved_on(
    tmp_path_factory: pytest.TempPathFactory, moved: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    fill(folder, "old")
    fill(folder / UNFINISHED, "new")
    for name in FILES[::-1][:moved]:
        (folder / UNFINISHED / name).replace(folder / name)
    with pytest.raises(NeuroTrailsError, match="holds a run"):
        RunFolder(folder).replacing(overwrite=False).__enter__()
    assert content(folder) == whole("new")


def test_a_first_run_that_was_stopped_does_not_block_the_next(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        stop_half_way(RunFolder(tmp_path), RuntimeError, overwrite=False)
    with RunFolder(tmp_path).replacing(overwrite=False) as unfinished:
        fill(unfinished.path, "new")
    assert content(tmp_path) == whole("new")


def test_history_is_one_object_per_line_and_survives_a_cut(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    records = [{"event": "update", "step": np.int64(5)}, {"event": "epoch", "loss": np.float32(0.5)}]
    for record in records:
        run.append(record)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert lines == ['{"event": "update", "step": 5}', '{"event": "epoch", "loss": 0.5}']
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"event": "ep')
    assert len(run.history()) == 2


def test_reading_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read .*is this a run's folder\?"):
        RunFolder(tmp_path).record()
    with pytest.raises(CheckpointError, match=r"history\.jsonl: cannot be read"):
        RunFolder(tmp_path).history()
    save_checkpoint(tmp_path, untrained(record={"name": "x"}))
    with pytest.raises(CheckpointError, match="its record lacks cost, examples, metrics"):
        RunFolder(tmp_path).record()


def untrained(record: dict[str, Any]) -> Checkpoint:
    spec = EnsembleSpec(graph=nt_models.mlp(inputs=3, hidden=(2,), classes=2))
    return Checkpoint(spec=spec, values=dict(initial_values(spec.layout, 0)), masks={}, record=record)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_json_is_strict_whatever_the_numbers(value: Any) -> None:
    def no_constant(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(to_json(value), parse_constant=no_constant) == plain(value)


def test_numpy_values_become_plain() -> None:
    value = {1: np.float64(math.nan), "b": (np.arange(2), np.bool_(True))}
    assert to_json(value) == '{"1": null, "b": [[0, 1], true]}'


def test_a_table_as_csv(tmp_path: Path) -> None:
    cost = {
        "weights": {"active": 5},
        "flops": {"inference": 20, "training_step": 60.0},
        "relative_to_single_dense": {
            "weights_active": 0.5,
            "flops_inference": 0.4,
            "flops_training_step": 0.25,
        },
    }
    metrics = {"accuracy": 0.9, "nll": 0.3, "perplexity": 1.3, "ece": 0.02, "disagreement": 0.1}
    line = row({"name": "a,b", "metrics": metrics, "cost": cost, "examples": 100, "seconds": 2.0})
    write_csv(tmp_path / "table.csv", [flat(line), flat(line)])
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert rows[0]["name"] == "a,b"
    assert float(rows[0]["flops_training"]) == 6000
    assert float(rows[0]["relative_flops_training"]) == 0.25
    with pytest.raises(NeuroTrailsError, match="cannot be written"):
        write_csv(tmp_path / "no" / "table.csv", [flat(line)])


def test_a_full_disk_leaves_no_half_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_csv(tmp_path / "table.csv", [{"a": 1}])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NeuroTrailsError, match=r"table\.csv: cannot be written \(No space left on device\)"):
        write_csv(tmp_path / "table.csv", [{"a": 2}] * 1000)
    assert (tmp_path / "table.csv").read_text().split() == ["a", "1"]
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_what_a_killed_write_left_goes_with_its_run(tmp_path):
    run = RunFolder(tmp_path / "run")
    with run.replacing(overwrite=False) as unfinished:
        fill(unfinished.path, "new")
        for name in FILES:
            (unfinished.path / f".{name}.123.tmp").write_bytes(b"half")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {*FILES}
