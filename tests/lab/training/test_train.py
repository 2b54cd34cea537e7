from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nt_models
from nt_core import CheckpointError, NeuroTrailsError, RunSpec, SpecError, read_spec
from nt_core.checkpoint import load_checkpoint
from nt_core.cost import cost
from nt_core.errors import NeuroTrailsWarning
from nt_core.metrics import Fitted
from nt_lab import console
from nt_lab.evaluation.evaluate import evaluate
from nt_lab.runs.backends import BACKENDS, Backend, choose
from nt_lab.runs.folder import FILES, UNFINISHED, RunFolder, row
from nt_lab.runs.interrupted import begun
from nt_lab.runs.processes import restart_problem
from nt_lab.training import train as lab

Make = Callable[[], Backend]
SMALL = ["graph.width=1", "plan.epochs=2", "training.batch_size=100", "name=small"]


def small(*overrides: str, preset: str = "neurotrails") -> RunSpec:
    return read_spec(preset, nt_models.ARCHITECTURES, [*SMALL, *overrides])


def test_a_run_folder_holds_everything(tmp_path: Path, fake_backend: Make) -> None:
    run = small("seed=3")
    record = lab.train(run, tmp_path / "run", backend=fake_backend)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "history.jsonl",
        "model.safetensors",
        "spec.yaml",
    ]
    assert RunFolder(tmp_path / "run").record() == record
    assert read_spec(tmp_path / "run" / "spec.yaml", nt_models.ARCHITECTURES) == run
    assert record["run"] == json.loads(json.dumps(run.to_dict()))
    assert record["seed"] == 3
    assert (record["epochs"], record["steps"], record["examples"]) == (2, 30, 2 * 1437)
    assert record["data"]["train_examples"] == 1437
    assert record["data"]["test_examples"] == 360
    assert (record["backend"], record["device"]) == ("fake", "nowhere")
    assert {"neurotrails", "python", "numpy"} <= set(record["versions"])
    assert np.shape(record["metrics"]["disagreement_matrix"]) == (3, 3)
    events = [entry["event"] for entry in RunFolder(tmp_path / "run").history()]
    assert events.count("epoch") == 2
    assert events.count("update") == 6
    assert set(events) == {"epoch", "update"}


def test_the_cost_is_that_of_the_masks_training_ended_with(tmp_path: Path, fake_backend: Make) -> None:
    run = small()
    record = lab.train(run, tmp_path, backend=fake_backend)
    figures = cost(run.ensemble(nt_models.ARCHITECTURES))
    line = row(record)
    assert line["weights_active"] == figures.weights_active
    assert line["flops_training"] == figures.flops_training_step * 2 * 1437
    assert line["relative"]["flops_training"] == pytest.approx(
        line["flops_training"] / (3 * figures.single_flops * 2 * 1437)
    )
    pruned = lab.train(small(preset="gradual_pruning"), tmp_path / "pruned", backend=fake_backend)
    masks = load_checkpoint(tmp_path / "pruned").masks
    assert pruned["cost"]["weights"]["active"] == sum(mask.count for mask in masks.values())


def test_evaluation_repeats_the_metrics_and_writes_nothing(tmp_path: Path, fake_backend: Make) -> None:
    record = lab.train(small("data.augment=crop"), tmp_path / "run", backend=fake_backend)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    metrics = evaluate(tmp_path / "run", backend=fake_backend)
    assert metrics.to_dict()["nll"] == record["metrics"]["nll"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_evaluation_uses_the_runs_normalisation_on_other_data(
    tmp_path: Path, fake_backend: Make, parquet: str
) -> None:
    run = small("graph.channels=3", "graph.classes=4", f"data.source={parquet}")
    lab.train(run, tmp_path / "run", backend=fake_backend)
    other = evaluate(tmp_path / "run", data={"test": "train[:7]"}, backend=fake_backend)
    assert other.count == 7


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (["plan.epochs=null"], SpecError, "neither epochs nor steps are given"),
        (["data.test=valid"], NeuroTrailsError, "data.test: no split 'valid'"),
        (["graph.classes=9"], NeuroTrailsError, "--set graph.classes=10 would fit"),
    ],
)
def test_an_error_before_training_leaves_no_trace(
    tmp_path: Path, fake_backend: Make, overrides: list[str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        lab.train(small(*overrides), tmp_path / "run", backend=fake_backend)
    assert not (tmp_path / "run").exists()


def test_a_training_that_fails_keeps_the_earlier_run(tmp_path: Path, fake_backend: Make) -> None:
    first = lab.train(small(), tmp_path, backend=fake_backend)

    def failing() -> Backend:
        def train(*args: Any, **options: Any) -> Any:
            options["report"]({"event": "epoch", "epoch": 1, "step": 1})
            raise KeyboardInterrupt

        return Backend(
            name="failing", train=train, checkpoint=train, load=train, evaluate=train, predict=train
        )

    with pytest.raises(NeuroTrailsError, match="holds a run already"):
        lab.train(small("seed=1"), tmp_path, backend=failing)
    with pytest.raises(KeyboardInterrupt):
        lab.train(small("seed=1"), tmp_path, backend=failing, overwrite=True)
    assert RunFolder(tmp_path).record() == first
    load_checkpoint(tmp_path)
    second = lab.train(small("seed=1"), tmp_path, backend=fake_backend, overwrite=True)
    assert RunFolder(tmp_path).record() == second != first


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_a_run_that_was_stopped_after_its_end_is_not_trained_again(
    tmp_path: Path, fake_backend: Make, moved: int
) -> None:
    def stop_moving() -> None:
        for name in FILES[: len(FILES) - moved]:
            (tmp_path / UNFINISHED).mkdir(exist_ok=True)
            (tmp_path / name).replace(tmp_path / UNFINISHED / name)

    events: list[Any] = []
    record = lab.train(small(), tmp_path, backend=fake_backend)
    stop_moving()
    assert lab.train(small(), tmp_path, backend=fake_backend, report=events.append) == record
    assert events == [{"event": "finished"}]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    stop_moving()
    with pytest.raises(NeuroTrailsError, match="holds a run already"):
        lab.train(small("seed=1"), tmp_path, backend=fake_backend)
    stop_moving()
    with pytest.raises(NeuroTrailsError, match="the run is complete; there is nothing to go on with"):
        begun(tmp_path, None, None)
    assert RunFolder(tmp_path).record() == record


def test_a_folder_that_cannot_be_written_is_an_error_before_training(
    tmp_path: Path, fake_backend: Make
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NeuroTrailsError, match=r"cannot be written .*choose another folder with --out"):
        lab.train(small(), tmp_path / "file", backend=fake_backend)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_damaged_run_is_an_error(tmp_path: Path, fake_backend: Make) -> None:
    lab.train(small(), tmp_path, backend=fake_backend)
    tensors = tmp_path / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated or altered"):
        evaluate(tmp_path, backend=fake_backend)


FITTED = ["aggregation={kind: fitted, held_out: 0.1}"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras on TensorFlow
@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_end_to_end(tmp_path: Path, name: str) -> None:
    try:
        backend = choose(name)
    except NeuroTrailsError as error:
        pytest.skip(str(error))
    if name == "torch":
        pytest.importorskip("torch").set_num_threads(1)
    run = small("plan={kind: one_run, steps: 4}", "topology.interval=2", "training.batch_size=16", *FITTED)
    record = lab.train(run, tmp_path, device="cpu", backend=backend)
    events = [entry["event"] for entry in RunFolder(tmp_path).history()]
    assert events.count("update") == 1  # the drop fraction is 0 at the last step
    metrics = evaluate(tmp_path, device="cpu", backend=backend)
    assert metrics.to_dict()["accuracy"] == record["metrics"]["accuracy"]
    np.testing.assert_allclose(metrics.nll, record["metrics"]["nll"], rtol=1e-5)
    masks = load_checkpoint(tmp_path).masks
    assert sum(mask.count for mask in masks.values()) == record["cost"]["weights"]["active"]
    assert set(BACKENDS[name].packages) <= set(record["versions"])


EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_example_specs_are_whole(path: Path) -> None:
    run = read_spec(path, nt_models.ARCHITECTURES)
    assert run.name == path.stem
    assert run.plan.total_steps(steps_per_epoch=10) > 0


def test_the_digits_examples_differ_in_the_method_alone() -> None:
    runs = [read_spec(path, nt_models.ARCHITECTURES) for path in sorted((EXAMPLES / "digits").glob("*.yaml"))]
    assert len(runs) == 3
    for run in runs[1:]:
        for field in ("graph", "plan", "training", "data", "seed", "aggregation"):
            assert getattr(run, field) == getattr(runs[0], field)


def test_a_fitted_aggregation_is_fitted_to_what_was_held_out(tmp_path: Path, fake_backend: Make) -> None:
    record = lab.train(small(*FITTED), tmp_path / "run", backend=fake_backend)
    assert (record["data"]["train_examples"], record["data"]["held_out_examples"]) == (1293, 144)
    assert record["run"]["aggregation"] == {"kind": "fitted", "held_out": 0.1, "temperature": True}
    fitted = Fitted(**record["fitted"])
    assert len(fitted.weights) == 3
    again = evaluate(tmp_path / "run", backend=fake_backend)
    assert again.nll == record["metrics"]["nll"]
    last = RunFolder(tmp_path / "run").history()[-1]
    assert last["nll"] != record["metrics"]["nll"]  # while they trained, members counted alike
    np.testing.assert_array_equal(last["disagreement_matrix"], record["metrics"]["disagreement_matrix"])


def test_a_run_without_a_fit_holds_nothing_out(tmp_path: Path, fake_backend: Make) -> None:
    record = lab.train(small(), tmp_path / "run", backend=fake_backend)
    assert "fitted" not in record
    assert record["data"]["held_out_examples"] == 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["aggregation.held_out=1.5"], r"aggregation\.held_out: input should be less than 1; found 1\.5"),
        (["aggregation.held_out=0.0001"], r"0\.0001 of 1437 training examples is 0; expected at least one"),
        (["graph={name: llama_tiny}", "data.source=text:x"], "the graph reads tokens; use mean_prob"),
    ],
)
def test_what_cannot_be_held_out_is_an_error(
    tmp_path: Path, fake_backend: Make, overrides: list[str], said: str
) -> None:
    with pytest.raises(NeuroTrailsError, match=said):
        lab.train(small("aggregation=fitted", *overrides), tmp_path / "run", backend=fake_backend)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_several_processes_are_not_for_keras(
    tmp_path: Path, fake_backend: Any, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    run = read_spec("single", nt_models.ARCHITECTURES, ["graph.width=1", "plan.epochs=1"])
    with pytest.raises(NeuroTrailsError, match="backend keras: expected one process, found 2"):
        lab.train(run, tmp_path / "run", backend=lambda: replace(fake_backend(), name="keras"))
    assert not (tmp_path / "run").exists()


def test_a_rank_that_no_launcher_gave_writes_its_run(
    tmp_path: Path, fake_backend: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    run = read_spec("single", nt_models.ARCHITECTURES, ["graph.width=1", "plan.epochs=1"])
    assert lab.train(run, tmp_path / "run", backend=fake_backend)["name"] == "single"


@pytest.mark.parametrize(
    ("store", "restarts", "rank", "warned"),
    [
        ("True", "3", "0", True),
        ("True", "3", "1", False),
        ("True", "0", "0", False),
        ("False", "3", "0", False),
    ],
)
def test_restarts_that_may_hang_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, store: str, restarts: str, rank: str, warned: bool
) -> None:
    for name, value in (
        ("LOCAL_RANK", rank),
        ("RANK", rank),
        ("TORCHELASTIC_USE_AGENT_STORE", store),
        ("TORCHELASTIC_MAX_RESTARTS", restarts),
    ):
        monkeypatch.setenv(name, value)
    problem = restart_problem()
    assert (problem is not None) == warned
    assert problem is None or "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun" in problem


def test_a_seed_that_no_framework_reads_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    run = small(f"seed={2**64}", f"data.source={tmp_path / 'nothing'}")
    with pytest.raises(SpecError, match=r"seed: expected a whole number from 0 to 2\*\*64 - 1"):
        lab.train(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_examples_left_out_are_in_record_and_history(tmp_path: Path) -> None:
    """1437 digits in batches of 359 leave one over, which batch normalisation cannot be trained on."""
    graph = "graph={name: mlp, inputs: [1, 8, 8], hidden: [4], classes: 10, norm: true}"
    run = small(graph, "training.batch_size=359", "plan.epochs=1", preset="single")
    told: list[Any] = []
    record = lab.train(run, tmp_path, backend=choose("torch"), device="cpu", report=told.append)
    assert (record["dropped"], record["epochs"], record["steps"], record["examples"]) == (1, 1.0, 4, 1436)
    assert [e["dropped"] for e in RunFolder(tmp_path).history() if e["event"] == "epoch"] == [1]
    assert [e for e in told if e["event"] == "dropped"] == [{"event": "dropped", "examples": 1, "of": 1437}]


def test_held_out_examples_are_those_that_are_evaluated(tmp_path: Path, fake_backend: Make) -> None:
    record = lab.train(small("data.held_out=0.1"), tmp_path, backend=fake_backend)
    assert (record["data"]["train_examples"], record["data"]["test_examples"]) == (1293, 144)
    assert evaluate(tmp_path, backend=fake_backend).to_dict()["nll"] == record["metrics"]["nll"]
    other = lab.train(small("data.held_out=0.1", "seed=9"), tmp_path / "other", backend=fake_backend)
    assert other["data"]["test_examples"] == 144


def test_warnings_are_one_line_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", usual := warnings.formatwarning)
    console.plain_warnings()
    assert warnings.formatwarning("few examples", NeuroTrailsWarning, "a.py", 1) == "warning: few examples\n"
    assert warnings.formatwarning("old", UserWarning, "a.py", 1) == usual("old", UserWarning, "a.py", 1)
