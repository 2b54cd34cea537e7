from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from typer.testing import CliRunner, Result

import nt_core
import nt_torch
from nt_core import PRESETS
from nt_lab.cli.main import app
from nt_lab.runs.backends import Backend

Make = Callable[[], Backend]
FAST = ["--set", "graph.width=1", "--epochs", "1"]
CIFAR_WRN = ["graph.depth=28", "graph.width=10", "graph.size=32", "graph.channels=3", "graph.classes=100"]


def nt(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nt_lab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def complaint(*arguments: str) -> str:
    result = nt(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("╭─ ")
    return result.stderr


def test_describe_as_json_has_the_published_figures() -> None:
    overrides = [part for override in CIFAR_WRN for part in ("--set", override)]
    found = json.loads(nt("describe", "neurotrails", "--json", *overrides).stdout)
    assert found["name"] == "neurotrails"
    assert found["spec"]["structure"] == {"kind": "multi_head", "split": 4, "heads": 3}
    assert (found["blocks_counted"], found["split"]) == (12, 4)
    assert found["weights"]["total"] == 106_278_832
    assert found["weights"]["density"] == pytest.approx(0.2)
    relative = found["relative_to_single_dense"]
    assert relative["weights_total"] == pytest.approx(2.9102, abs=1e-4)
    assert relative["flops_inference"] == pytest.approx(0.683, abs=1e-3)
    assert relative["flops_uniform_equivalent"] == pytest.approx(0.472, abs=1e-3)
    assert found["parameters_total"] > found["weights"]["total"]
    assert {"inference", "training_step"} <= set(found["flops"])
    assert len(found["layers"]) == 10 + 3 * 19
    assert {"name", "part", "shape", "size", "active", "density", "flops"} <= set(found["layers"][0])
    assert sum(layer["active"] for layer in found["layers"]) == found["weights"]["active"]


def test_describe_adds_up_a_training_by_examples_or_tokens() -> None:
    found = json.loads(nt("describe", "neurotrails", "--examples", "1e6", "--json").stdout)
    assert found["flops_training"] == 1e6 * found["flops"]["training_step"]
    assert "training FLOPs, 1,000,000 examples" in nt("describe", "neurotrails", "--examples", "1e6").stdout
    assert "reads no tokens" in complaint("describe", "neurotrails", "--tokens", "10")
    assert "found both" in complaint("describe", "neurotrails", "--tokens", "10", "--examples", "10")


def test_describe_counts_a_language_model_for_each_token() -> None:
    graph = ["--set", "graph={name: llama_130m}"]
    found = json.loads(nt("describe", "single", *graph, "--tokens", "1024e6", "--json").stdout)
    assert (found["tokens"], found["parameters_total"]) == (1024, 134_105_856)
    assert found["parameters"]["embeddings"] == 32_000 * 768
    assert found["flops"]["inference"] == 2 * 1024 * found["parameters"]["kernels"]
    assert found["flops"]["attention_products"] == 12 * 2 * 2 * 1024**2 * 768
    assert found["flops_training"] == 6 * found["parameters"]["kernels"] * 1024e6
    shown = nt("describe", "single", *graph).stdout
    assert "inference FLOPs, one token" in shown
    assert "one sequence of 1,024 tokens" in shown


def test_describe_shows_one_head_for_all_that_are_alike() -> None:
    text = nt("describe", "neurotrails").stdout
    assert "3 heads, alike" in text
    assert text.count("stage3.1/conv1") == 1
    assert "backbone: 1 counted (stage1.1) + stem" in text
    assert "175,696" in text
    every = nt("describe", "neurotrails", "--all").stdout
    assert every.count("stage3.1/conv1") == 3
    assert "head 3" in every
    single = nt("describe", "single").stdout
    assert "alike" not in single


def test_describe_as_yaml_gives_the_same_spec_again(tmp_path: Path) -> None:
    text = nt("describe", "rigl", "--set", "topology.sparsity=0.9", "--yaml").stdout
    (tmp_path / "again.yaml").write_text(text)
    assert nt("describe", str(tmp_path / "again.yaml"), "--yaml").stdout == text
    assert yaml.safe_load(text)["topology"]["sparsity"] == 0.9


def test_presets_and_schema() -> None:
    text = nt("presets").stdout
    assert all(name in text for name in PRESETS)
    assert "One dense network." in text
    schema = json.loads(nt("schema").stdout)
    assert {"graph", "structure", "topology", "plan", "training", "data"} <= set(schema["properties"])


def test_version() -> None:
    assert nt("--version").stdout == f"neurotrails {nt_core.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["describe", "neurotrial"], "did you mean 'neurotrails'?"),
        (["describe", "nothing.yaml"], "cannot be read"),
        (["describe", "single", "--set", "topolgy.kind=dense"], "topolgy: unknown key"),
        (["describe", "neurotrails", "--set", "topology.sparsity=1.5"], "topology.sparsity"),
        (["describe", "single", "--set", "version=99"], "newer"),
        (["train", "open.json"], "open.json: cannot be read"),
        (["train", "single", "--epochs", "1", "--steps", "1"], "expected epochs or steps, found both"),
        (["train", "single", "--epochs", "-1"], "epochs"),
        (["train", "single", "--epochs", "1", "--seed", "-1"], "seed"),
        (["train"], "expected a SPEC, or --resume RUN"),
        (["train", "--resume", "no/run"], "expected a run that was interrupted, found none"),
        (["train", "--resume", "x" * 300], "expected a run that was interrupted, found none"),
        (["train", "single", "--epochs", "1", "--out", "x" * 300], "cannot be written (File name too long)"),
        (["train", "single", "--epochs", "1", "--out", "/dev/null"], "expected a folder, found a file"),
        (["evaluate", "x" * 300], "cannot be read (File name too long)"),
        (["train", "single", "--epochs", "1", "--data", "x" * 300], "File name too long"),
        (["train", "single", "--resume", "no/run"], "but spec='single' was given too; leave it out"),
        (["train", "--resume", "no/run", "--epochs", "3"], "was given too; leave it out"),
        (["evaluate", "no/run"], "is this a run's folder?"),
        (["compare", "no/run"], "is this a run's folder?"),
    ],
)
def test_mistakes_get_one_panel_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in " ".join(complaint(*arguments).replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_a_plan_left_open_in_a_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "open.yaml").write_text("preset: single", encoding="utf-8")
    assert "neither epochs nor steps" in complaint("train", "open.yaml")


def test_a_preset_alone_trains_for_20_epochs(
    tmp_path: Path, fake_backend: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert nt("train", "single").exit_code == 0
    assert "epochs: 20.0" in (tmp_path / "runs/single/spec.yaml").read_text(encoding="utf-8")
    assert nt("train", "single", "--steps", "3", "--overwrite").exit_code == 0
    assert "steps: 3" in (tmp_path / "runs/single/spec.yaml").read_text(encoding="utf-8")


def test_a_traceback_is_shown_if_asked() -> None:
    for result in (nt("--traceback", "describe", "neurotrial"), shell("describe", "x", NT_TRACEBACK="1")):
        code = result.exit_code if isinstance(result, Result) else result.returncode
        assert code == 2
        assert "Traceback" in result.stderr
        assert "SpecError" in result.stderr


@pytest.mark.parametrize("arguments", [["describe"], ["nonsense"], ["train", "single", "--epochs", "many"]])
def test_misuse_exits_with_2_too(arguments: list[str]) -> None:
    assert nt(*arguments).exit_code == 2


def test_unexpected_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("nt_core.cost.cost", broken)
    with pytest.raises(ValueError, match="a bug"):
        nt("describe", "single")


def test_train_evaluate_compare(tmp_path: Path, fake_backend: Make) -> None:
    names = ("single", "neurotrails")
    folders = [str(tmp_path / name) for name in names]
    for name, folder in zip(names, folders, strict=True):
        result = nt("train", name, *FAST, "--out", folder)
        assert f"run: {folder}" in result.stdout
        assert "accuracy" in result.stdout
        assert 1 <= len(result.stderr.splitlines()) <= 12
    rows = json.loads(nt("compare", *folders, "--json", "--csv", str(tmp_path / "t.csv")).stdout)
    assert [row["name"] for row in rows] == list(names)
    assert list(rows[0]) == [
        "name",
        "backend",
        "unit",
        "accuracy",
        "nll",
        "perplexity",
        "ece",
        "disagreement",
        "member_perplexity",
        "weights_active",
        "flops_training",
        "flops_inference",
        "seconds",
        "relative",
    ]
    assert rows[0]["relative"] == dict.fromkeys(rows[0]["relative"], 1.0)
    assert rows[1]["relative"]["weights_active"] == pytest.approx(0.58, abs=0.01)
    with (tmp_path / "t.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == list(names)
    text = nt("compare", *folders).stdout
    assert "neurotrails" in text
    assert "0.58×" in text
    evaluated = json.loads(nt("evaluate", folders[1], "--json").stdout)
    assert evaluated["nll"] == rows[1]["nll"]
    assert len(evaluated["disagreement_matrix"]) == 3
    assert "member 3" in nt("evaluate", folders[1]).stdout
    assert "network" in nt("evaluate", folders[0]).stdout


def test_train_options_end_up_in_the_spec(
    tmp_path: Path, fake_backend: Make, parquet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "preset: single\ngraph: {name: mlp, inputs: [3, 8, 8], hidden: [4], classes: 4}\nplan: {epochs: 9}\n"
    )
    result = nt("train", "mine.yaml", "--steps", "3", "--seed", "7", "--data", parquet, "--json")
    row = json.loads(result.stdout)
    assert result.stderr == ""
    assert row["folder"] == str(Path("runs") / "mine")
    spec = yaml.safe_load((tmp_path / "runs" / "mine" / "spec.yaml").read_text())
    assert (spec["seed"], spec["data"]["source"], spec["name"]) == (7, parquet, "mine")
    assert (spec["plan"]["steps"], spec["plan"]["epochs"]) == (3, None)
    assert "holds a run already" in complaint("train", "mine.yaml", "--data", parquet)
    assert nt("train", "mine.yaml", "--data", parquet, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("number", "code", "command"),
    [
        (signal.SIGINT, 130, ["single"]),
        (signal.SIGTERM, 143, ["single"]),
        (signal.SIGTERM, 143, ["neurotrails", "--heads", "batched", "--activation-checkpointing"]),
    ],
)
def test_a_signal_stops_a_training_and_resume_goes_on_with_it(
    tmp_path: Path, number: signal.Signals, code: int, command: list[str]
) -> None:
    run, whole = str(tmp_path / "run"), str(tmp_path / "whole")
    with killed_after_three_steps(number):
        result = nt("train", *command, *FAST, "--out", run)
    assert result.exit_code == code
    assert f"stopped after step 3 of 12; go on with: nt train --resume {run}" in result.stderr
    assert nt("train", "--resume", run).exit_code == 0
    assert nt("train", *command, *FAST, "--out", whole).exit_code == 0
    files = [Path(folder, "model.safetensors").read_bytes() for folder in (run, whole)]
    assert files[0] == files[1]
    assert "the run is complete" in " ".join(complaint("train", "--resume", run).replace("│", " ").split())


@contextmanager
def killed_after_three_steps(number: signal.Signals) -> Iterator[None]:
    """Let a training's process receive a signal after its third step."""
    train = nt_torch.train

    def interrupted(*given: object, report: Callable[[Any], None], **options: Any) -> object:
        def watch(event: Any) -> None:
            report(event)
            if event["event"] == "step" and event["step"] == 3:
                os.kill(os.getpid(), number)

        return train(*given, report=watch, **options)

    with mock.patch("nt_torch.train", interrupted):
        yield


def test_the_commands_on_the_page_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[3] / "docs" / "how-to" / "resume.md"
    commands = re.findall(r"^\$ nt (train .*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    begin, *others = (line.replace("--epochs 200", " ".join(FAST)).split() for line in commands)
    assert [others[0][:2], *others[1:]] == [["train", "--resume"], begin]
    models = []
    for number, go_on in enumerate(others):
        (folder := tmp_path / str(number)).mkdir()
        monkeypatch.chdir(folder)
        with killed_after_three_steps(signal.SIGTERM):
            assert nt(*begin).exit_code == 143
        assert nt(*go_on).exit_code == 0
        models.append(Path("runs/long/model.safetensors").read_bytes())
    assert models[0] == models[1]


def test_heads_are_measured_and_the_history_says_so(tmp_path: Path) -> None:
    nt("train", "neurotrails", *FAST, "--heads", "auto", "--out", str(tmp_path / "run"))
    first, *_ = map(json.loads, (tmp_path / "run" / "history.jsonl").read_text().splitlines())
    assert (first["event"], sorted(first["seconds"])) == ("heads", ["batched", "loop"])
    message = complaint("train", "neurotrails", *FAST, "--heads", "both", "--out", str(tmp_path / "other"))
    assert "execution.heads" in message


def test_runs_on_different_data_are_pointed_out(tmp_path: Path, fake_backend: Make, parquet: str) -> None:
    nt("train", "single", *FAST, "--out", str(tmp_path / "a"))
    fit = ["--set", "graph.channels=3", "--set", "graph.classes=4", "--data", parquet]
    nt("train", "single", *FAST, *fit, "--out", str(tmp_path / "b"))
    assert "different data: digits, " in nt("compare", str(tmp_path / "a"), str(tmp_path / "b")).stdout


PROBE = """
import sys
from nt_lab.__main__ import main
sys.argv = ["nt", *{arguments}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
slow = {{"torch", "keras", "tensorflow", "jax", "datasets", "accelerate", "sklearn", "pandas", "pyarrow"}}
found = slow & set(sys.modules)
assert not found, found
{more}
"""


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (["describe", "neurotrails"], ""),
        (["describe", "neurotrails", "--json"], ""),
        (["presets"], ""),
        (["--help"], "assert not {'numpy', 'nt_core'} & set(sys.modules)"),
        (["train", "--help"], "assert not {'numpy', 'nt_core'} & set(sys.modules)"),
    ],
)
def test_answers_without_a_framework(arguments: list[str], more: str) -> None:
    code = PROBE.format(arguments=arguments, more=more)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_hub_that_cannot_be_reached_is_one_panel(tmp_path: Path) -> None:
    arguments = ["train", "single", "--epochs", "1", "--data", "nobody/nothing"]
    done = shell(
        *arguments, "--out", str(tmp_path / "run"), HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home")
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "check the name (owner/dataset)" in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_a_terminal_without_unicode_gets_its_table() -> None:
    result = shell("describe", "single", PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert "302,480" in result.stdout
