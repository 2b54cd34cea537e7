"""Interrupted work is gone on with or refused by name; nothing but --overwrite deletes it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import nt_models
from nt_core import CheckpointError, NeuroTrailsError
from nt_core.spec import RunSpec, read_spec
from nt_core.states import States, Stopped
from nt_core.states.file import read_state, write_state
from nt_core.testing.data import Blobs
from nt_core.testing.resumption import expect_same
from nt_lab.data import Normalisation, Split
from nt_lab.runs.backends import choose
from nt_lab.runs.folder import STATES, UNFINISHED, RunFolder
from nt_lab.runs.interrupted import begun
from nt_lab.runs.lock import locked
from nt_lab.training import train as lab
from nt_torch.network.measurement import MeasuredHeads

sys.path.insert(0, str(Path(__file__).parents[1]))

from killed import GRAPH

TORCH = choose("torch")


def run_of(*changes: str, preset: str = "neurotrails") -> RunSpec:
    fixed = [*GRAPH, "topology.interval=3", "topology.sparsity=0.5", "plan.steps=12", "name=run"]
    return read_spec(preset, nt_models.ARCHITECTURES, [*fixed, *changes])


def train(run: RunSpec, folder: Path, *, stop: int | None = None, **options: Any) -> list[int]:
    """Train on points in memory, save after each step, stop after some; return the steps that were taken."""
    taken: list[int] = []

    def report(event: Any) -> None:
        if event["event"] == "step":
            taken.append(event["step"])

    normalisation = Normalisation(mean=(0.0,), std=(1.0,))
    split = Split(train=Blobs(), test=Blobs(30, shuffle=False), normalisation=normalisation)
    options = {"backend": TORCH, **options}
    with mock.patch("nt_lab.training.train.load", return_value=split):
        lab.train(
            run,
            folder,
            device="cpu",
            save_every=1,
            report=report,
            stopping=lambda: len(taken) == stop,
            **options,
        )
    return taken


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A run that was interrupted at its fifth step."""
    with pytest.raises(Stopped):
        train(run_of(), tmp_path / "run", stop=5)
    return tmp_path / "run"


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    """Change what the saved states say about their training, in place."""
    for path in (folder / UNFINISHED / STATES).rglob("*.safetensors"):
        state = read_state(path)
        change(state.beside["origin"])
        change({"run": {**state.training["spec"], "training": state.training["training"]}})
        write_state(path, state)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        (["plan.steps=13"], {}, r"plan\.steps: saved 12, asked 13"),
        (
            ["seed=2", "training.batch_size=30"],
            {},
            r"training\.batch_size: saved 18, asked 30; seed: saved 0,",
        ),
        (["graph.hidden=[16,17]"], {}, r"graph\.hidden\[1\]: saved 16, asked 17"),
        ([], {"execution": {"heads": "batched"}}, r"execution\.heads: saved 'loop', asked 'batched'"),
        ([], {"backend": lambda: replace(TORCH(), name="other")}, "backend: saved 'torch', asked 'other'"),
    ],
)
def test_another_run_is_refused_by_name(
    interrupted: Path, changes: list[str], options: dict[str, Any], said: str, resume: bool
) -> None:
    before = content(interrupted)
    expected = rf"run: holds a run interrupted at step 5, which differs: {said}.*--resume.*--out.*--overwrite"
    with pytest.raises(NeuroTrailsError, match=expected):
        train(run_of(*changes), interrupted, resume=resume, **options)
    assert content(interrupted) == before
    assert train(run_of(), interrupted, resume=resume) == list(range(6, 13))


def test_what_is_asked_for_is_deleted(interrupted: Path) -> None:
    assert train(run_of("plan.steps=13"), interrupted, overwrite=True) == list(range(1, 14))
    assert RunFolder(interrupted).record()["steps"] == 13


def test_overwriting_goes_on_with_the_same_run(interrupted: Path) -> None:
    assert train(run_of(), interrupted, overwrite=True) == list(range(6, 13))


def test_states_of_turns_that_are_not_asked_for_any_more_stay(tmp_path: Path) -> None:
    run = run_of("plan.at_once=1", preset="dst_ensemble")
    with pytest.raises(Stopped):
        train(run, tmp_path, stop=5)
    before = content(tmp_path)
    with pytest.raises(NeuroTrailsError, match=r"plan\.at_once: saved 1, asked 3"):
        train(run_of("plan.at_once=3", preset="dst_ensemble"), tmp_path)
    assert content(tmp_path) == before


def test_a_state_of_an_older_version_lacks_new_fields(interrupted: Path) -> None:
    def age(origin: dict[str, Any]) -> None:
        del origin["run"]["training"]["non_finite"], origin["run"]["topology"]["scope"]
        origin.pop("execution", None)

    edit(interrupted, age)
    assert train(run_of(), interrupted) == list(range(6, 13))


def test_a_state_of_a_newer_version_has_fields_that_are_not_known(interrupted: Path) -> None:
    edit(interrupted, lambda origin: origin["run"]["training"].update(novel=3))
    with pytest.raises(NeuroTrailsError, match=r"training\.novel: saved 3, asked None"):
        train(run_of(), interrupted)


@pytest.mark.parametrize("cut", ["shorter", "missing"])
def test_a_history_shorter_than_its_state_is_an_error(interrupted: Path, cut: str) -> None:
    history = interrupted / UNFINISHED / "history.jsonl"
    size = history.stat().st_size
    if cut == "shorter":
        history.write_bytes(history.read_bytes()[:10])
    else:
        history.unlink()
    with pytest.raises(
        CheckpointError, match=rf"history\.jsonl: expected at least the {size} bytes.*restore"
    ):
        train(run_of(), interrupted)
    assert train(run_of(), interrupted, overwrite=True) == list(range(1, 13))
    assert b"\0" not in (interrupted / "history.jsonl").read_bytes()


def test_one_training_at_a_time(interrupted: Path) -> None:
    before = content(interrupted)
    with locked(interrupted), pytest.raises(NeuroTrailsError, match="in use by process"):
        train(run_of(), interrupted, overwrite=True)
    assert content(interrupted) == before


def test_measured_heads_are_part_of_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = __import__("nt_torch.training.train", fromlist=["train"])
    measured = []

    def measure(*_: Any) -> Any:
        measured.append(1)
        heads: Any = "batched" if len(measured) == 1 else "loop"
        return MeasuredHeads(heads=heads, seconds={})

    monkeypatch.setattr(trainer, "measure_heads", measure)
    asked = {"execution": {"heads": "auto"}}
    train(run_of(), tmp_path / "whole", **asked)
    measured.clear()
    with pytest.raises(Stopped):
        train(run_of(), tmp_path / "pieces", stop=5, **asked)
    run, _, _, execution = begun(tmp_path / "pieces", None, None)
    assert execution is not None
    assert execution["heads"] == "auto"
    assert train(run, tmp_path / "pieces", execution=execution, resume=True) == list(range(6, 13))
    assert measured == [1]
    wanted, found = (RunFolder(tmp_path / name) for name in ("whole", "pieces"))
    expect_same(found.history(), wanted.history())
    assert (found.path / "model.safetensors").read_bytes() == (wanted.path / "model.safetensors").read_bytes()
    assert not States(tmp_path / "pieces" / UNFINISHED / STATES).latest()
