"""The reference pages, and the lists on other pages, say what the code says."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from inspect import isabstract
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

import nt_core
import nt_cpu
import nt_keras
import nt_lab
import nt_models
import nt_onnx
import nt_torch
from nt_core import policies, structure, topology
from nt_core.checkpoint import save_checkpoint
from nt_core.graph import ops
from nt_core.metrics import RECORDED, Metrics
from nt_core.topology import allocation, schedules
from nt_core.training import plan
from nt_lab.cli.main import app
from nt_lab.runs.folder import row
from nt_lab.serving.latency import Latency
from nt_lab.serving.serve import Measured

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import generate

COMMANDS = typer.main.get_command(app).commands


def section(text: str, heading: str) -> str:
    """Return what stands under a heading, up to the next of its level."""
    level = heading.partition(" ")[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.M | re.S)
    assert found, f"no heading {heading!r}"
    return found[1]


def first_cells(text: str) -> set[str]:
    """Return what stands in code in the first column of the tables."""
    return {
        name for line in re.findall(r"^\| (`[^|]+) \|", text, re.M) for name in re.findall(r"`([^`]+)`", line)
    }


# The command line


@pytest.fixture(scope="module")
def cli(root: Path) -> str:
    return (root / "docs/reference/cli.md").read_text(encoding="utf-8")


def test_the_page_lists_the_commands(cli: str) -> None:
    assert re.findall(r"^## `nt (\w+)`$", cli, re.M) == list(COMMANDS)


def dotted(value: Any, path: str = "") -> Iterator[str]:
    """Return the paths of all keys; those of a list's items after ``[]``."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield f"{path}{key}"
            yield from dotted(inner, f"{path}{key}.")
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        yield from dotted(value[0], f"{path[:-1]}[].")


def test_the_page_lists_what_describe_prints_as_json(cli: str) -> None:
    result = CliRunner().invoke(app, ["describe", "neurotrails", "--json"])
    keys = {key for key in dotted(json.loads(result.stdout)) if not key.startswith("spec.")}
    assert first_cells(section(cli, "### JSON of `nt describe`")) == keys


def test_the_page_lists_what_cost_prints_as_json(cli: str) -> None:
    found = json.loads(CliRunner().invoke(app, ["cost", "--json"]).stdout)
    assert first_cells(section(cli, "### JSON of `nt cost`")) == set(dotted(found[0]))


def test_the_page_lists_what_scale_prints_as_json(cli: str) -> None:
    found = json.loads(CliRunner().invoke(app, ["scale", "rigl", "--json"]).stdout)
    assert first_cells(section(cli, "### JSON of `nt scale`")) == set(dotted(found[0]))


def test_the_papers_page_holds_what_cost_prints(root: Path) -> None:
    assert marked(root / "docs/explanation/papers.md", "output") == {"nt cost --markdown"}


def test_the_scale_page_holds_what_its_commands_print(root: Path) -> None:
    page = root / "docs/explanation/scale.md"
    shown = re.findall(
        r"^```bash\n(nt scale [^\n]* --markdown)\n```\n\n<!-- generated: output (.*?) -->$",
        page.read_text(encoding="utf-8"),
        re.M,
    )
    assert len(shown) == page.read_text(encoding="utf-8").count("--markdown\n") > 5
    assert all(command == generated for command, generated in shown), shown


def test_the_page_lists_what_compare_prints_as_json(cli: str) -> None:
    cost = {
        "weights": {"active": 1},
        "flops": {"inference": 1, "training_step": 1.0},
        "relative_to_single_dense": {"weights_active": 1, "flops_inference": 1, "flops_training_step": 1},
    }
    metrics = dict.fromkeys((figure.name for figure in RECORDED), 1)
    made = row({"name": "a", "metrics": metrics, "cost": cost, "examples": 1, "seconds": 1.0})
    assert first_cells(section(cli, "### JSON of `nt compare`")) == set(dotted(made))
    assert first_cells(section(cli, "### JSON of `nt train`")) == {"folder"}


def test_the_page_lists_what_evaluate_prints_as_json(cli: str) -> None:
    import numpy as np

    metrics = Metrics.of(np.zeros((2, 1, 3)), np.zeros(1, int)).to_dict()
    expected = {"run", "disagreement_matrix", *metrics}
    assert first_cells(section(cli, "### JSON of `nt evaluate`")) == expected


def test_the_page_lists_what_bench_prints_as_json(cli: str) -> None:
    latency = Latency(batch=1, visits=(1.0,), calls=(1.0,))
    line = Measured(runtime="torch", latency=latency, flops=1, peak=1.0, differs=0.0, times_slower=1.0)
    assert first_cells(section(cli, "### JSON of `nt bench`")) == set(line.to_dict())


# Tables that are generated


def test_tables_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == generate.generated(text), "run python docs/generate.py"


def marked(page: Path, kind: str) -> set[str]:
    return set(re.findall(rf"<!-- generated: {kind} (.*?) -->", page.read_text(encoding="utf-8")))


def test_every_part_of_a_spec_file_has_its_table(root: Path) -> None:
    listed = marked(root / "docs/reference/spec-file.md", "fields")
    others = {"EnsembleSpec", "Phase", "Timeline"}  # what a file's parts become
    others |= {"Normalisation", "Preprocessing"}  # what a run's record holds
    assert listed == {name for name in generate._models() if name not in others}


def test_every_command_has_its_table(root: Path) -> None:
    with_options = {n for n, command in COMMANDS.items() if {p.name for p in command.params} - {"help"}}
    assert marked(root / "docs/reference/cli.md", "options") == {"nt", *with_options}


def test_every_package_and_room_with_public_names_has_its_table(root: Path) -> None:
    packages = (nt_core, nt_cpu, nt_keras, nt_models, nt_onnx, nt_torch, nt_lab)
    found = {
        module.__name__
        for package in packages
        for module in (
            package,
            *(
                importlib.import_module(f"{package.__name__}.{each.name}")
                for each in pkgutil.iter_modules(package.__path__)
                if each.ispkg
            ),
        )
        if hasattr(module, "__all__")
    }
    assert marked(root / "docs/reference/python.md", "names") == found | {"nt_core.graph.ops"}


def test_a_name_without_a_docstring_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs a docstring"):
        generate.sentence("")


# Lists on other pages


def kinds(module: ModuleType, base: type[BaseModel]) -> set[str]:
    found = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, base)]
    return {kind.model_fields["kind"].default for kind in found if not isabstract(kind)}


LISTS: Mapping[str, tuple[str, set[str]]] = {
    "presets": ("explanation/spec.md", set(nt_core.PRESETS)),
    "ops": ("explanation/graph.md", {op.model_fields["kind"].default for op in ops.OPS}),
    "plans": ("explanation/plan.md", kinds(plan, plan.Plan)),
    "structures": ("explanation/structure.md", kinds(structure, structure.Structure)),
    "allocations": ("explanation/allocation.md", kinds(allocation, allocation.Allocation)),
    "groups": ("explanation/allocation.md", set(allocation.GROUPS)),
    "criteria": ("explanation/topology.md", {*policies.PRUNES, *policies.GROWS}),
    "schedules": ("explanation/topology.md", set(schedules.SCHEDULES)),
    "semantics": ("explanation/topology.md", set(topology.Semantics.model_fields)),
}


@pytest.mark.parametrize("what", LISTS)
def test_a_page_lists_all(root: Path, what: str) -> None:
    page, names = LISTS[what]
    assert names <= first_cells((root / "docs" / page).read_text(encoding="utf-8"))


def test_the_page_lists_the_keys_of_a_checkpoint(root: Path, tmp_path: Path) -> None:
    model = nt_torch.compile(nt_core.PRESETS["static"](nt_models.mlp(inputs=8, hidden=(16,), classes=3)))
    save_checkpoint(tmp_path, nt_torch.checkpoint(model))
    text = (root / "docs/explanation/checkpoint.md").read_text(encoding="utf-8")
    keys = set(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))
    assert first_cells(section(text, "## `config.json`")) == keys
