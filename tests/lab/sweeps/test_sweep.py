from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from typer.testing import CliRunner, Result

from nt_core import NeuroTrailsError, Single
from nt_lab.cli.main import app
from nt_lab.runs.backends import Backend
from nt_lab.runs.folder import RunFolder
from nt_lab.sweeps import run as sweep_run
from nt_lab.sweeps.grid import COUNTS, Job, grid
from nt_lab.sweeps.plots import sweep_figure
from nt_lab.sweeps.records import FIGURES, points
from nt_lab.sweeps.run import Sweep
from nt_lab.training import train as lab
from nt_lab.training import worker

Make = Callable[[], Backend]
FAST = ("graph.width=1", "plan={kind: one_run, steps: 2}")


def sweep(over: str, values: str, seeds: str = "0", source: str = "neurotrails", **how: Any) -> Sweep:
    return Sweep(source=source, over=(over,), values=(values,), seeds=seeds, overrides=FAST, **how)


def nt(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})


@pytest.fixture
def execute(fake_backend: Make) -> Callable[[Job, Path], str | None]:
    """Train in this process with the fake; sparsity 0.9 fails, as an error of the user's would."""

    def execute(job: Job, folder: Path) -> str | None:
        if job.point.get("sparsity") == 0.9:
            return "no sparsity so high"
        lab.train(job.run, folder, backend=fake_backend)
        return None

    return execute


def quiet(_: str) -> None: ...


def test_a_grid_is_every_combination_and_seed() -> None:
    jobs = grid("neurotrails", ["split", "graph.width"], ["1,2", "1"], "3,4", overrides=FAST)
    assert [job.name for job in jobs] == [
        f"split={split},graph.width=1,seed={seed}" for split in (1, 2) for seed in (3, 4)
    ]
    assert [job.run.structure.split for job in jobs] == [1, 1, 2, 2]
    assert [job.run.seed for job in jobs] == [3, 4, 3, 4]
    assert all(job.run.name == job.name for job in jobs)


@pytest.mark.parametrize(
    ("source", "field", "values", "path"),
    [
        ("neurotrails", "heads", (2, 4), ("structure", "heads")),
        ("full_ensemble", "heads", (2, 4), ("structure", "count")),
        ("batch_ensemble", "heads", (2, 4), ("structure", "count")),
        ("neurotrails", "drop_fraction", (0.2, 0.3), ("topology", "drop_fraction", "start")),
        ("neurotrails", "interval", (5, 10), ("topology", "interval")),
        ("neurotrails", "training.optimizer.lr", (0.1, 5e-4), ("training", "optimizer", "lr")),
    ],
)
def test_short_names_and_paths_reach_their_field(
    source: str, field: str, values: tuple[Any, ...], path: tuple[str, ...]
) -> None:
    jobs = grid(source, [field], [",".join(map(str, values))], "0", overrides=FAST)
    for job, value in zip(jobs, values, strict=True):
        found: Any = job.run
        for step in path:
            found = getattr(found, step)
        assert found == value


def test_criteria_and_mappings_are_values_too() -> None:
    jobs = grid("neurotrails", ["prune"], ["magnitude,{kind: soft_magnitude, temperature: 2}"], "0")
    assert [job.run.topology.prune.kind for job in jobs] == ["magnitude", "soft_magnitude"]
    assert jobs[0].name == "prune=magnitude,seed=0"
    assert jobs[1].name.startswith("prune=kind-soft_magnitude-temperature-2-")
    assert not set(jobs[1].name) & set('/\\:{}" ')


def test_a_name_is_no_longer_than_a_folders() -> None:
    fields = [
        "training.optimizer.weight_decay",
        "training.optimizer.momentum",
        "topology.drop_fraction.start",
    ]
    fields += ["training.learning_rate.warmup", "topology.drop_fraction.until", "training.clip_norm"]
    values = ["0.1", "0.2", "0.3", "0.1", "0.75", "1.5", "100"]
    jobs = grid("neurotrails", [*fields, "training.batch_size"], values, "0,1", overrides=FAST)
    assert len({job.name for job in jobs}) == 2
    assert all(len(job.name) == 200 for job in jobs)
    assert jobs[0].name.startswith("training.optimizer.weight_decay=0.1,training.optimizer.momentum=0.2,")


@pytest.mark.parametrize(
    ("over", "values", "seeds", "said"),
    [
        ("sparcity", "0.8", "0", "--over: no field 'sparcity'; did you mean 'sparsity'?"),
        ("topology.sparcity", "0.8", "0", "topology.sparcity: unknown key; did you mean 'sparsity'?"),
        ("topolgy.sparsity", "0.8", "0", "--over: no field 'topolgy.sparsity'; did you mean 'topology'?"),
        ("seed", "0,1", "0", "seeds are --seeds 0,1,2"),
        ("sparsity", "", "0", "--values of sparsity: expected at least one, found none"),
        ("sparsity", "0.8,,0.9", "0", "is no list of YAML values"),
        ("sparsity", "0.8,0.8", "0", "--values of sparsity: one stands twice"),
        ("sparsity", "0.8,1.5", "0", "sparsity=1.5,seed=0: neurotrails: topology.sparsity"),
        ("heads", "2,none", "0", "heads=none,seed=0: neurotrails: structure.heads"),
        ("sparsity", "0.8", "", "--seeds: expected at least one, found none"),
        ("sparsity", "0.8", "a", "--seeds: expected integers of at least 0, found 'a'"),
        ("sparsity", "0.8", "-1", "--seeds: expected integers of at least 0, found -1"),
    ],
)
def test_mistakes_are_found_before_any_run(
    tmp_path: Path, fake_backend: Make, over: str, values: str, seeds: str, said: str
) -> None:
    result = nt("sweep", "neurotrails", "--over", over, "--values", values, "--seeds", seeds,
                "--set", "plan={kind: one_run, epochs: 1}", "--out", str(tmp_path / "sweep"))  # fmt: skip
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "sweep").exists()


def test_what_no_grid_can_be_made_of_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NeuroTrailsError, match="found 2 fields and 1 lists of values"):
        grid("neurotrails", ["split", "heads"], ["1"], "0")
    with pytest.raises(NeuroTrailsError, match="found 0 fields"):
        grid("neurotrails", [], [], "0")
    with pytest.raises(NeuroTrailsError, match="a field stands twice"):
        grid("neurotrails", ["sparsity", "topology.sparsity"], ["0.8", "0.9"], "0")
    assert not set(COUNTS) & set(Single.model_fields)
    with pytest.raises(NeuroTrailsError, match="the structure 'single' has one member"):
        grid("single", ["heads"], ["2"], "0")
    (tmp_path / "open.yaml").write_text("preset: neurotrails")
    with pytest.raises(NeuroTrailsError, match="split=1,seed=0: plan: neither epochs nor steps"):
        grid(str(tmp_path / "open.yaml"), ["split"], ["1"], "0")


def test_a_failed_run_does_not_stop_the_others_and_finished_ones_are_kept(
    tmp_path: Path, execute: Any, fake_backend: Make
) -> None:
    asked, said = sweep("sparsity", "0.9,0.8", seeds="0,1"), []
    found = sweep_run.run(asked, tmp_path, said.append, execute)
    assert said[0] == "4 runs, 0 of them finished already"
    assert said[1] == "1/4  sparsity=0.9,seed=0  failed: no sparsity so high"
    assert [row["status"] for row in found.rows] == ["failed"] * 2 + ["finished"] * 2
    assert set(found.errors) == {"sparsity=0.9,seed=0", "sparsity=0.9,seed=1"}
    folder = tmp_path / "sparsity=0.8,seed=1"
    assert RunFolder(folder).record()["seed"] == 1
    before = (folder / "config.json").stat().st_mtime_ns

    ran = []

    def again(job: Job, folder: Path) -> str | None:
        ran.append(job.name)
        lab.train(job.run, folder, backend=fake_backend)
        return None

    found = sweep_run.run(asked, tmp_path, quiet, again)
    assert ran == ["sparsity=0.9,seed=0", "sparsity=0.9,seed=1"]
    assert (folder / "config.json").stat().st_mtime_ns == before
    assert not found.errors
    assert {row["status"] for row in found.rows} == {"finished"}


def test_runs_of_another_spec_or_backend_are_not_taken_for_finished(tmp_path: Path, execute: Any) -> None:
    sweep_run.run(sweep("split", "1"), tmp_path, quiet, execute)
    other = Sweep(
        source="neurotrails", over=("split",), values=("1",), overrides=(*FAST, "aggregation=fitted")
    )
    with pytest.raises(NeuroTrailsError, match="holds a run whose aggregation is another"):
        sweep_run.run(other, tmp_path, quiet, execute)
    keras = sweep("split", "1", options={"backend": "keras"})
    with pytest.raises(NeuroTrailsError, match="whose backend is fake, not keras"):
        sweep_run.run(keras, tmp_path, quiet, execute)
    calls = []
    anew = sweep("split", "1,2", options={"backend": "keras"}, overwrite=True)
    sweep_run.run(anew, tmp_path, quiet, lambda job, _: calls.append(job.name))
    assert calls == ["split=1,seed=0", "split=2,seed=0"]


def test_the_table_is_tidy_as_csv_and_parquet(tmp_path: Path, execute: Any) -> None:
    found = sweep_run.run(sweep("sparsity", "0.8,0.9", seeds="0,1"), tmp_path, quiet, execute)
    names = ["sparsity", "seed", "folder", "status", "error", "unit", *FIGURES]
    with (tmp_path / "sweep.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == names
    assert [line["status"] for line in lines] == ["finished", "finished", "failed", "failed"]
    stored = parquet.read_table(tmp_path / "sweep.parquet").to_pylist()
    assert list(stored[0]) == names
    assert stored == [dict(row) for row in found.rows]
    assert [path.name for path in found.files] == ["sweep.csv", "sweep.parquet", "sweep.png", "sweep.svg"]
    assert all(path.stat().st_size > 100 for path in found.files)


def test_points_are_means_over_seeds() -> None:
    blank = dict.fromkeys(FIGURES, 1.0)
    rows = [
        {"split": 1, "status": "finished", "unit": "examples", **blank, "accuracy": accuracy}
        for accuracy in (0.5, 0.7)
    ]
    rows += [{"split": 2, "status": "failed", **dict.fromkeys(FIGURES)}]
    first, second = points(rows, ["split"])
    assert first["accuracy"] == pytest.approx(0.6)
    assert first["accuracy_std"] == pytest.approx(0.1 * 2**0.5)
    assert (second["runs"], second["failed"], second["accuracy"]) == (0, 1, None)


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        (("split",), ["accuracy (%)", "disagreement (%)"]),
        (("heads",), ["accuracy (%)", "inference FLOPs\n(× one dense network)"]),
        (("sparsity",), ["accuracy (%)"]),
        (("prune", "seed"), ["accuracy (%)"]),
    ],
)
def test_a_plot_shows_what_suits_the_field(fields: tuple[str, ...], labels: list[str]) -> None:
    values = ("magnitude", "random") if fields[0] == "prune" else (1, 2)
    rows = [
        {fields[0]: value, "seed": seed, "status": "finished", "unit": "examples"}
        | dict.fromkeys(FIGURES, 0.5 + seed / 10)
        for value in values
        for seed in (0, 1)
    ]
    figure = sweep_figure(rows, fields)
    assert [ax.get_ylabel() for ax in figure.axes] == labels
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()] == [str(value) for value in values]
    assert len(figure.axes[0].containers) == (2 if len(fields) == 2 else 1)
    with pytest.raises(NeuroTrailsError, match="expected at least one finished run"):
        sweep_figure([row | {"status": "failed"} for row in rows], fields)


def test_the_command_runs_each_in_its_own_process(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "sweep"
    arguments = ["sweep", "single", "--over", "data.train", "--values", "'train[:64]',nothing", "--jobs", "2",
                 "--set", "graph={name: mlp, inputs: [1, 8, 8], hidden: [4], classes: 10}", "--device", "cpu",
                 "--set", "plan={kind: one_run, steps: 2}", "--backend", "torch",
                 "--out", str(out)]  # fmt: skip
    result = nt(*arguments, "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found["fields"] == ["data.train"]
    assert [row["status"] for row in found["runs"]] == ["finished", "failed"]
    assert found["runs"][1]["error"].startswith("data.train: no split 'nothing'")
    failed = Path(found["runs"][1]["folder"])
    assert "no split 'nothing'" in (failed / worker.LOG).read_text()
    assert RunFolder(Path(found["runs"][0]["folder"])).record()["backend"] == "torch"
    shown = nt(*arguments[:5], "'train[:64]'", *arguments[6:])
    assert shown.exit_code == 0
    assert "1 runs, 1 of them finished already" in shown.stderr
    assert "files: " in shown.stdout


def test_what_ends_a_process_is_told() -> None:
    import subprocess

    def ended(code: int, stderr: str = "") -> str | None:
        return worker._outcome(
            subprocess.CompletedProcess([], code, stdout='x\n{"error": null}\n', stderr=stderr)
        )

    assert ended(0) is None
    assert ended(-9) == "killed by signal 9, perhaps for want of memory"
    assert ended(1, "Traceback …\nKeyError: 'x'\n") == "KeyError: 'x'"


def test_an_unknown_runner_is_an_error(tmp_path: Path, fake_backend: Make) -> None:
    with pytest.raises(NeuroTrailsError, match=r"--runner: none is called 'rai'; did you mean 'ray'\?"):
        sweep_run.run(sweep("split", "1", runner="rai"), tmp_path, quiet)


def test_ray_that_is_missing_is_an_error(
    tmp_path: Path, fake_backend: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nt_lab.sweeps.ray.find_spec", lambda _: None)
    with pytest.raises(NeuroTrailsError, match=r"pip install 'neurotrails\[ray\]'"):
        sweep_run.run(sweep("split", "1", runner="ray"), tmp_path, quiet)
