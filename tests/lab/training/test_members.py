"""Runs whose members are made one after another, interrupted and taken up again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import nt_models
from nt_core import NeuroTrailsError, RunSpec, read_spec
from nt_core.checkpoint import Verbs, load_checkpoint, train_members
from nt_lab.runs.backends import Backend
from nt_lab.runs.folder import RunFolder, row
from nt_lab.training import train as lab

SMALL = ["graph.width=1", "plan.epochs=1", "training.batch_size=300", "name=small"]


def small(*overrides: str, preset: str = "dst_ensemble") -> RunSpec:
    return read_spec(preset, nt_models.ARCHITECTURES, [*SMALL, *overrides])


class Turns:
    """The fake backend, which trains members in turn until it is interrupted."""

    def __init__(self, backend: Backend, stop_at: int | None = None) -> None:
        self.fake, self.stop_at, self.trained = backend, stop_at, []  # type: ignore[var-annotated]

    def backend(self) -> Backend:
        return replace(self.fake, train=self.train)

    def train(self, spec: Any, training: Any, data: Any, **options: Any) -> Any:
        def one(part: Any, leave: Any, report: Any) -> Any:
            if len(self.trained) == self.stop_at:
                raise NeuroTrailsError("interrupted")
            self.trained.append(part.structure.numbers)
            return self.fake.train(part, training, data, **options | {"report": report})

        verbs = Verbs(
            train=one,
            checkpoint=self.fake.checkpoint,
            restore=lambda saved: saved.spec,
            evaluate=lambda model: self.fake.evaluate(self.fake.checkpoint(model), options["test"]),
            kept=lambda _: None,
        )
        return train_members(spec, verbs, options["members"], options["report"])


@pytest.fixture
def interrupted(tmp_path: Path, fake_backend: Any) -> Any:
    """A run that was interrupted after two of its three members."""
    turns = Turns(fake_backend(), stop_at=2)
    with pytest.raises(NeuroTrailsError, match="interrupted"):
        lab.train(small(), tmp_path / "run", backend=turns.backend)
    return tmp_path / "run", fake_backend


def test_finished_members_are_checkpoints(interrupted: Any) -> None:
    folder, _ = interrupted
    assert not (folder / "config.json").exists()
    found = sorted((folder / "unfinished" / "members").iterdir())
    assert [path.name for path in found] == ["head1", "head2"]
    assert [load_checkpoint(path).spec.structure.only for path in found] == [(1,), (2,)]  # type: ignore[union-attr]


def test_an_interrupted_run_goes_on_with_the_members_that_are_missing(interrupted: Any) -> None:
    folder, fake = interrupted
    turns, events = Turns(fake()), []  # type: ignore[var-annotated]
    record = lab.train(small(), folder, backend=turns.backend, report=events.append)
    assert turns.trained == [(3,)]
    assert events[0] == {"event": "resume", "trained": [1, 2], "members": 3}
    assert (record["steps"], record["examples"], record["seconds"]) == (5, 1437, 4.5)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "history.jsonl",
        "model.safetensors",
        "spec.yaml",
    ]
    history = RunFolder(folder).history()
    epochs = [event["trained"] for event in history if event["event"] == "epoch"]
    assert epochs == [[1], [2], [3]]
    whole = lab.train(small(), folder.parent / "whole", backend=Turns(fake()).backend)
    assert row(record) == row(whole)
    first, second = (load_checkpoint(path) for path in (folder, folder.parent / "whole"))
    assert first.masks == second.masks


@pytest.mark.parametrize("change", ["seed=1", "topology.sparsity=0.7", "training.batch_size=200"])
def test_a_run_of_another_spec_does_not_mix_members_up(interrupted: Any, change: str) -> None:
    folder, fake = interrupted
    field, value = change.split("=")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(NeuroTrailsError, match=rf"differs: {field}: saved \S+, asked {value}; .*--overwrite"):
        lab.train(small(change), folder, backend=Turns(fake()).backend)
    with pytest.raises(NeuroTrailsError, match=f"differs: {field}: "):
        lab.train(small(change), folder, backend=Turns(fake()).backend, resume=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    turns = Turns(fake())
    lab.train(small(change), folder, backend=turns.backend, overwrite=True)
    assert turns.trained == [(1,), (2,), (3,)]


def test_a_damaged_member_and_another_backends_are_trained_again(interrupted: Any) -> None:
    folder, fake = interrupted
    damaged = folder / "unfinished" / "members" / "head1" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    turns = Turns(fake(), stop_at=0)
    with pytest.raises(NeuroTrailsError, match="interrupted"):
        lab.train(small(), folder, backend=turns.backend)
    assert [path.name for path in damaged.parent.parent.iterdir()] == ["head2"]
    other = Turns(replace(fake(), name="other"))
    with pytest.raises(NeuroTrailsError, match="backend: saved 'fake', asked 'other'"):
        lab.train(small(), folder, backend=other.backend)
    lab.train(small(), folder, backend=other.backend, overwrite=True)
    assert other.trained == [(1,), (2,), (3,)]
