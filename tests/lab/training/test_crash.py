"""Whatever stops a training, at any moment: it goes on, and comes to the same end."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nt_core.checkpoint import load_checkpoint
from nt_core.states import States
from nt_core.testing.resumption import expect_same
from nt_lab.runs.folder import FILES, STATES, UNFINISHED, RunFolder

# Processes import what they run by its name.
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from forked import forkserver
from killed import RUNS, child, child_asked_to_stop, child_without_room, train

KILLS = 100
"""In all, over every run."""

processes = forkserver()


def history(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in event.items() if k != "seconds"} for event in RunFolder(folder).history()]


def last_state(folder: Path) -> int:
    """The step of the last state that a run can go on from; 0: there is none."""
    found = [States(each).latest() for each in (folder / UNFINISHED / STATES).glob("*")]
    return max((state.step for state in found if state is not None), default=0)


def kill_until_complete(preset: str, folder: Path, every: int, rng: random.Random) -> int:
    """Kill a run at random moments until one attempt comes to its end; return how often it was killed."""
    patience = 0.4
    for kills in range(KILLS):
        before = last_state(folder)
        process = processes.Process(target=child, args=(preset, folder, every))
        process.start()
        process.join(rng.uniform(0.02, patience))
        if process.exitcode == 0:
            return kills
        assert process.exitcode is None, "it cannot go on"
        process.kill()
        process.join()
        if (folder / "config.json").exists():  # it had come to its end
            return kills
        after, complete = last_state(folder), (folder / UNFINISHED / "config.json").exists()
        assert complete or after >= before or preset == "dst_ensemble"
        if after <= before:  # a busy machine needs longer to begin
            patience *= 1.1
    raise AssertionError(f"{preset}: no end in {KILLS} attempts")


def test_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    rng, kills, number = random.Random(0), 0, 0
    wanted = {preset: train(preset, tmp_path / preset) for preset in RUNS}
    while kills < KILLS:
        preset, number = list(RUNS)[number % len(RUNS)], number + 1
        folder = tmp_path / f"killed{number}"
        kills += kill_until_complete(preset, folder, rng.choice([1, 2, 7]), rng)
        assert history(folder) == history(tmp_path / preset)
        found, whole = load_checkpoint(folder), load_checkpoint(tmp_path / preset)
        expect_same(dict(found.values), dict(whole.values))
        assert found.masks == whole.masks
        expect_same(found.record["metrics"], json.loads(json.dumps(wanted[preset]["metrics"])))
        assert {path.name for path in folder.rglob("*") if path.is_file()} == {*FILES}


def expect_the_same_run(folder: Path, wanted: Path) -> None:
    assert history(folder) == history(wanted)
    expect_same(dict(load_checkpoint(folder).values), dict(load_checkpoint(wanted).values))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    process = processes.Process(target=child_asked_to_stop, args=("neurotrails", tmp_path / "run"))
    process.start()
    while not (tmp_path / "run.ready").exists():
        assert process.is_alive(), "it ended before it began"
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 1
    assert (tmp_path / "run.stopped").exists()
    assert last_state(tmp_path / "run") > 0
    train("neurotrails", tmp_path / "run")
    train("neurotrails", tmp_path / "whole")
    expect_the_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_full_disk_leaves_the_last_state(tmp_path: Path) -> None:
    process = processes.Process(target=child_without_room, args=("neurotrails", tmp_path / "run"))
    process.start()
    process.join()
    assert process.exitcode == 1
    assert (tmp_path / "run.error").exists()
    assert last_state(tmp_path / "run") == 35
    train("neurotrails", tmp_path / "run")
    train("neurotrails", tmp_path / "whole")
    expect_the_same_run(tmp_path / "run", tmp_path / "whole")
