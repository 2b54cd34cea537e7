from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

import nt_models
from nt_core import NeuroTrailsError, RunSpec, read_spec
from nt_core.checkpoint import load_checkpoint, save_checkpoint
from nt_lab.cli.main import app
from nt_lab.runs.backends import BACKENDS, ENGINE_VARIABLE, EXTRAS, choose, installed
from nt_lab.runs.folder import RunFolder, row
from nt_lab.training import train as lab

Install = Callable[..., None]
TORCH = ("torch", "accelerate")
FAST = ["--set", "graph.width=1", "--epochs", "1"]


def nt(*arguments: str, columns: int = 200) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": str(columns)})


def chosen(name: str | None = None, engine: str | None = None) -> tuple[str, str | None]:
    """Return which backend and engine are chosen; what Keras will read says the same."""
    backend = choose(name, engine)()
    assert backend.engine == (os.environ[ENGINE_VARIABLE] or None)
    return backend.name, backend.engine


def small() -> RunSpec:
    return read_spec("static", nt_models.ARCHITECTURES, ["graph.width=1", "plan.steps=2", "name=small"])


def test_the_tables_are_complete() -> None:
    assert set(EXTRAS) == {engine for needs in BACKENDS.values() for engine in needs.engines}


@pytest.mark.parametrize(
    ("packages", "name", "engine"),
    [
        (TORCH, "torch", None),
        ((*TORCH, "keras", "tensorflow"), "torch", None),
        (("keras", "jax", "tensorflow"), "keras", "tensorflow"),
        (("keras", "jax"), "keras", "jax"),
        (("keras", "torch"), "keras", "torch"),  # without accelerate the PyTorch backend cannot train
    ],
)
def test_the_first_that_is_installed_is_the_default(
    install: Install, packages: tuple[str, ...], name: str, engine: str | None
) -> None:
    install(*packages)
    assert chosen() == (name, engine)
    assert chosen(name) == (name, engine)


def test_what_is_asked_for_is_chosen(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(*TORCH, "keras", "tensorflow", "jax")
    assert chosen("keras") == ("keras", "tensorflow")
    assert chosen("keras", "torch") == ("keras", "torch")
    monkeypatch.setenv(ENGINE_VARIABLE, "jax")
    assert chosen("keras") == ("keras", "jax")
    assert chosen("keras", "tensorflow") == ("keras", "tensorflow")


def test_an_engine_needs_no_name_where_keras_is_the_default(install: Install) -> None:
    install("keras", "tensorflow", "jax")
    assert chosen(None, "jax") == ("keras", "jax")


def loaded_keras(engine: str) -> SimpleNamespace:
    return SimpleNamespace(backend=SimpleNamespace(backend=lambda: engine), __version__="3.99")


def test_keras_stays_with_the_engine_it_was_imported_with(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("keras", "tensorflow", "jax")
    monkeypatch.setitem(sys.modules, "keras", loaded_keras("jax"))
    monkeypatch.setenv(ENGINE_VARIABLE, "tensorflow")  # too late to count
    assert chosen("keras") == ("keras", "jax")
    assert chosen("keras", "jax") == ("keras", "jax")
    with pytest.raises(NeuroTrailsError, match=r"imported with 'jax' already .* to tensorflow; start a new"):
        choose("keras", "tensorflow")
    with pytest.raises(NeuroTrailsError, match=r"no engine is called 'jaxx'; did you mean 'jax'\?"):
        choose("keras", "jaxx")
    monkeypatch.setitem(sys.modules, "keras", loaded_keras("numpy"))
    with pytest.raises(NeuroTrailsError, match=r"with 'numpy' already .* to tensorflow or jax or torch;"):
        choose("keras")


@pytest.mark.parametrize(
    ("packages", "arguments", "said"),
    [
        (TORCH, ["--backend", "tourch"], "backend: none is called 'tourch'; did you mean 'torch'?"),
        (TORCH, ["--backend", "mxnet"], "backend: none is called 'mxnet'; known: torch, keras"),
        (
            (*TORCH, "keras", "jax"),
            ["--engine", "jax"],
            "only keras has a choice of engines; leave --engine out, or add --backend keras",
        ),
        (TORCH, ["--backend", "torch", "--engine", "torch"], "engine 'torch': the backend is torch"),
        (
            ("keras", "jax"),
            ["--backend", "keras", "--engine", "jaxx"],
            "engine: no engine is called 'jaxx'; did you mean 'jax'?",
        ),
        (
            (),
            [],
            "neither; pip install 'neurotrails[torch]', 'neurotrails[tensorflow]' or 'neurotrails[jax]'",
        ),
        (
            ("keras", "jax"),
            ["--backend", "torch"],
            "backend torch: torch and accelerate are not installed; pip install 'neurotrails[torch]'",
        ),
        (("torch",), [], "backend torch: accelerate is not installed; pip install 'neurotrails[torch]'"),
        (
            (*TORCH, "jax"),
            ["--backend", "keras"],
            "backend keras: keras is not installed; pip install 'neurotrails[keras]'",
        ),
        (
            ("keras",),
            ["--backend", "keras"],
            "expected an engine (tensorflow, jax, torch), found none; pip install 'neurotrails[tensorflow]'",
        ),
        (
            ("jax",),
            ["--backend", "keras", "--engine", "tensorflow"],
            "keras and tensorflow are not installed; pip install 'neurotrails[tensorflow]'",
        ),
        (
            ("keras", "tensorflow"),
            ["--backend", "keras", "--engine", "jax"],
            "pip install 'neurotrails[jax]', or choose an engine that is: --engine tensorflow",
        ),
        (
            ("keras",),
            ["--backend", "keras", "--engine", "torch"],
            "torch is not installed; pip install 'neurotrails[keras,torch]'",
        ),
    ],
)
def test_what_cannot_be_used_is_one_panel(
    install: Install, tmp_path: Path, packages: tuple[str, ...], arguments: list[str], said: str
) -> None:
    install(*packages)
    for command in (["train", "single", *FAST, "--out", str(tmp_path / "run")], ["evaluate", str(tmp_path)]):
        result = nt(*command, *arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert said in " ".join(result.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_engine_in_the_environment_is_named(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("keras", "jax")
    monkeypatch.setenv(ENGINE_VARIABLE, "theano")
    with pytest.raises(NeuroTrailsError, match=f"environment variable {ENGINE_VARIABLE}: no engine .*theano"):
        choose("keras")


def test_a_missing_framework_is_an_error_before_the_data_is_loaded(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    monkeypatch.delattr("nt_lab.training.train.load")
    with pytest.raises(NeuroTrailsError, match="found neither"):
        lab.train(small(), tmp_path / "run")


def test_a_folder_that_merely_has_the_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "left_behind").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_spec("left_behind") is not None
    assert not installed("left_behind")


PROBE = """
import sys
from importlib.machinery import ModuleSpec
from nt_lab.runs import backends
backends.find_spec = lambda name: ModuleSpec(name, None, origin="here")
backends.choose(*{arguments})
found = {{"torch", "keras", "tensorflow", "jax", "accelerate"}} & set(sys.modules)
assert not found, found
"""


@pytest.mark.parametrize("arguments", [(), ("torch",), ("keras",), ("keras", "jax")], ids=str)
def test_choosing_imports_no_framework(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", PROBE.format(arguments=arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_record_says_what_computed_the_run(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(*TORCH, "keras", "jax")
    monkeypatch.setitem(sys.modules, "keras", loaded_keras("jax"))
    always = {"neurotrails", "python", "numpy", "datasets"}
    record = lab.train(small(), tmp_path / "keras", backend=choose("keras"))
    assert (record["backend"], record["engine"], record["device"]) == ("keras", "jax", "nowhere")
    assert record["versions"]["keras"] == "3.99"
    assert always < set(record["versions"]) <= {*always, "keras", "jax"}
    assert row(record)["backend"] == "keras/jax"
    record = lab.train(small(), tmp_path / "torch", backend=choose("torch"))
    assert record["backend"] == "torch"
    assert "engine" not in record
    assert always <= set(record["versions"]) <= {*always, *TORCH}
    assert row(record)["backend"] == "torch"


TORCH_WAY = ["--backend", "torch"]
JAX_WAY = ["--backend", "keras", "--engine", "jax"]
TENSORFLOW_WAY = ["--backend", "keras", "--engine", "tensorflow"]


@pytest.fixture
def runs(fake_backend: object, tmp_path: Path) -> list[str]:
    """Runs by three backends."""
    ways = (TORCH_WAY, JAX_WAY, TENSORFLOW_WAY)
    folders = [str(tmp_path / name) for name in ("single", "neurotrails", "full_ensemble")]
    for folder, way in zip(folders, ways, strict=True):
        assert nt("train", Path(folder).name, *FAST, *way, "--out", folder).exit_code == 0
    return folders


def forget_backend(folder: Path) -> None:
    """Make a run one that was written before records said what computed it."""
    saved = load_checkpoint(folder)
    record = {key: value for key, value in saved.record.items() if key not in ("backend", "engine")}
    save_checkpoint(folder, replace(saved, record=record))


LABELS = ["torch", "keras/jax", "keras/tensorflow"]


def test_runs_of_different_backends_are_told_apart_at_80_columns(runs: list[str]) -> None:
    text = nt("compare", *runs, columns=80).stdout
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in text
    for run, label in zip(runs, LABELS, strict=True):
        at = next(number for number, line in enumerate(lines) if line.startswith(f"{Path(run).name} "))
        assert lines[at + 1].split()[0] == label
    assert lines[2].startswith("backend ")


def test_runs_of_one_backend_do_not_repeat_it(runs: list[str]) -> None:
    for text in (nt("compare", *runs[:1]).stdout, nt("compare", runs[1], runs[1]).stdout):
        assert "torch" not in text
        assert "keras" not in text
        assert "backend" not in text


def test_the_backend_is_in_json_and_csv_always(runs: list[str], tmp_path: Path) -> None:
    for shown, labels in ((runs, LABELS), (runs[:1], LABELS[:1])):
        rows = json.loads(nt("compare", *shown, "--json", "--csv", str(tmp_path / "t.csv")).stdout)
        assert [row["backend"] for row in rows] == labels
        with (tmp_path / "t.csv").open(newline="") as file:
            assert [row["backend"] for row in csv.DictReader(file)] == labels


def test_a_record_that_does_not_name_its_backend_can_be_read(runs: list[str]) -> None:
    forget_backend(Path(runs[0]))
    assert "backend" not in RunFolder(Path(runs[0])).record()
    assert json.loads(nt("compare", *runs, "--json").stdout)[0]["backend"] is None
    assert "unknown" in nt("compare", *runs).stdout
    assert nt("compare", runs[0]).exit_code == 0
    assert nt("evaluate", runs[0]).exit_code == 0


def test_a_run_is_evaluated_by_any_backend(runs: list[str]) -> None:
    for run in runs:
        ways: list[list[str]] = [[], TORCH_WAY, JAX_WAY, TENSORFLOW_WAY]
        results = [nt("evaluate", run, "--json", *way) for way in ways]
        assert [result.exit_code for result in results] == [0] * len(ways)
        assert len({result.stdout for result in results}) == 1


def test_tensorflow_is_told_to_be_quiet(
    fake_backend: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    assert nt("train", "single", *FAST, "--out", str(tmp_path)).exit_code == 0
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "2"


def test_only_pytorch_has_a_choice_of_heads() -> None:
    backend = replace(choose("torch")(), name="keras", engine="jax", execution=None)
    assert not backend.options(None)
    with pytest.raises(NeuroTrailsError, match="backend keras: heads is a choice of PyTorch's"):
        backend.options({"heads": "auto"})
