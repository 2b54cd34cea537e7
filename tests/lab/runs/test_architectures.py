from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

import nt_models
from nt_core import BlockGraph, NeuroTrailsError
from nt_core.checkpoint import load_checkpoint
from nt_lab.cli.main import app
from nt_lab.runs.architectures import ARCHITECTURES, EPOCHS, STEPS, read, with_plan

MINE = """
from __future__ import annotations

from beside import WIDTH
from nt_core import BlockGraph, Features, GraphBuilder


def graph(*, width: int = WIDTH, hidden: tuple[int, ...] = (5, 4, 3), classes: int = 10) -> BlockGraph:
    net = GraphBuilder(Features(count=64))
    for number, features in enumerate(hidden, start=1):
        with net.block(f"layer{number}") as b:
            b.out = b.relu(b.linear(b.inp, features * width))
    with net.classifier() as b:
        b.out = b.linear(b.inp, classes)
    return net.build()


def nothing():
    return 3


NUMBER = 4
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's file, which imports another that lies beside it."""
    (tmp_path / "my_model.py").write_text(MINE)
    (tmp_path / "beside.py").write_text("WIDTH = 2\n")
    monkeypatch.chdir(tmp_path)
    return "my_model.py:graph"


def nt(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def complaint(source: str, *overrides: str, preset: str | None = None) -> str:
    with pytest.raises(NeuroTrailsError) as caught:
        read(source, overrides, preset)
    return str(caught.value)


def test_an_architecture_by_name() -> None:
    run = read("wide_resnet", ["graph.depth=10", "graph.size=8"])
    assert (run.name, run.preset, run.structure.kind) == ("wide_resnet_single", "single", "single")
    assert run.graph == {"name": "wide_resnet", "depth": 10, "size": 8}
    assert run.training.optimizer.kind == "sgd"
    assert with_plan(run).plan.epochs == EPOCHS


def test_a_language_model_by_name_has_a_recipe_of_its_own() -> None:
    run = read("llama_tiny", ["graph.length=16", "training.optimizer.lr=0.5"], preset="neurotrails_lm")
    assert run.name == "llama_tiny_neurotrails_lm"
    assert (run.training.optimizer.kind, run.training.optimizer.lr) == ("adamw", 0.5)
    assert (run.training.learning_rate.warmup, run.training.learning_rate.final) == (0.1, 0.1)
    assert run.topology.interval == 50
    assert with_plan(run).plan.steps == STEPS
    assert with_plan(run.replace(plan=run.plan.replace(epochs=2))).plan.epochs == 2
    assert read("llama_tiny", ["training.optimizer.kind=sgd"]).training.optimizer.lr == 0.1


def test_presets_and_files_are_read_as_before(tmp_path: Path) -> None:
    assert read("neurotrails", ["topology.sparsity=0.7"]).topology.sparsity == 0.7
    (tmp_path / "one.yaml").write_text(
        "preset: single\ngraph: {name: mlp, inputs: 64, hidden: [9], classes: 3}\n"
    )
    path = str(tmp_path / "one.yaml")
    assert read(path).structure.kind == "single"
    assert read(path, preset="full_ensemble").structure.kind == "independent"


def test_a_function_in_a_file(mine: str) -> None:
    run = read(mine, ["graph.hidden=[6, 5, 4]"], preset="neurotrails")
    assert run.name == "my_model.graph_neurotrails"
    graph = run.ensemble({}).graph  # nothing needs to be registered
    assert graph == ARCHITECTURES[mine](hidden=(6, 5, 4))
    assert graph.origin == {"name": mine, "hidden": [6, 5, 4]}
    assert run.structure.split == 1
    assert graph.counted == ("layer1", "layer2", "layer3")


def test_a_file_that_has_changed_is_read_again(mine: str, tmp_path: Path) -> None:
    assert len(ARCHITECTURES[mine]().counted) == 3
    (tmp_path / "my_model.py").write_text(MINE.replace("(5, 4, 3)", "(5, 4)"))
    os.utime("my_model.py", (1, 1))
    assert len(ARCHITECTURES[mine]().counted) == 2


def test_a_spec_file_may_name_a_function_in_a_file(mine: str, tmp_path: Path) -> None:
    Path("mine.yaml").write_text(f"preset: neurotrails\ngraph: {{name: '{mine}', classes: 7}}\n")
    run = read("mine.yaml")
    assert run.name == "mine"
    assert run.ensemble({}).graph.output_shape == (7,)
    assert "blocks" in run.graph


def test_a_spec_file_may_name_llama_whose_argument_is_called_blocks() -> None:
    run = read("llama", ["graph={blocks: 2, width: 8, hidden: 8, heads: 2, vocabulary: 9, length: 4}"])
    assert run.ensemble(nt_models.ARCHITECTURES).graph.output_shape == (4, 9)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("llama_tin", "did you mean 'llama_tiny'?"),
        ("neurotrial", "did you mean 'neurotrails'?"),
        ("no_file.py:graph", "no file 'no_file.py'"),
        ("my_model.py:grahp", "no function 'grahp'; did you mean 'graph'?"),
        ("my_model.py:NUMBER", "no function 'NUMBER'"),
        ("my_model.py:nothing", "expected a function that returns a BlockGraph, found 3"),
        ("broken.py:graph", "cannot be run: ZeroDivisionError: division by zero"),
        ("typo.py:graph", "cannot be run: SyntaxError"),
    ],
)
def test_what_is_not_there(source: str, said: str, mine: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = 1 / 0\n")
    (tmp_path / "typo.py").write_text("def graph(:\n")
    assert said in complaint(source)


def test_arguments_are_checked(mine: str) -> None:
    assert "graph.widht: unknown argument of graph; did you mean 'width'?" in complaint(mine, "graph.widht=3")
    assert "graph.width" in complaint(mine, "graph.width=wide")
    assert "is a preset already" in complaint("rigl", preset="set")
    assert "no preset 'neurotrial'" in complaint("mlp", preset="neurotrial")
    assert complaint(mine, "topology.sparsty=1").startswith(f"{mine}: topology.sparsty: unknown key")


def test_everything_works_with_an_architecture_of_ones_own(mine: str, tmp_path: Path) -> None:
    """Split, masks, training, checkpoint, evaluation; then the file is gone and all still works."""
    described = json.loads(nt("describe", mine, "--preset", "neurotrails", "--json").stdout)
    assert (described["blocks_counted"], described["split"]) == (3, 1)
    trained = nt("train", mine, "--preset", "neurotrails", "--epochs", "2", "--out", "run", "--json")
    row = json.loads(trained.stdout)
    Path("my_model.py").unlink()
    assert json.loads(nt("evaluate", "run", "--json").stdout)["nll"] == pytest.approx(row["nll"])
    again = json.loads(nt("train", "run/spec.yaml", "--out", "again", "--json").stdout)
    assert again["nll"] == row["nll"]
    saved, spec = load_checkpoint("run"), yaml.safe_load(Path("run/spec.yaml").read_text())
    assert saved.spec.graph == BlockGraph.from_dict(spec["graph"])
    assert len(saved.masks) == 1 + 3 * 3
