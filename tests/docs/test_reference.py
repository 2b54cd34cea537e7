"""The reference pages, and the lists on other pages, say what the code says."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from inspect import isabstract
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

import nt_core
import nt_cpu
import nt_keras
import nt_models
import nt_onnx
import nt_torch
from nt_core import policies, spec, structure, topology
from nt_core.checkpoint import save_checkpoint
from nt_core.graph import ops
from nt_core.metrics import RECORDED, Metrics
from nt_core.spec import file
from nt_core.topology import allocation, at_init, declared, schedules
from nt_core.training import plan, recipe
from nt_core.values import Value
from nt_lab.cli.main import app
from nt_lab.runs.folder import row
from nt_lab.serving.latency import Latency
from nt_lab.serving.serve import Measured

COMMANDS = typer.main.get_command(app).commands
MODULES = (allocation, at_init, declared, file, plan, policies, recipe, spec, structure)
NOT_LISTED = {"Allocation", "Criterion", "Structure", "EnsembleSpec", "Plan", "Phase", "Timeline"}


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


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_lists_a_command_s_options(cli: str, name: str) -> None:
    options = section(cli, f"## `nt {name}`").partition("\n### ")[0]
    expected = set()
    for parameter in COMMANDS[name].params:
        argument = parameter.param_type_name == "argument"
        expected |= {parameter.metavar} if argument else set(parameter.opts)
    assert first_cells(options) == expected - {"--help"}


def test_the_page_lists_the_options_of_nt_itself(cli: str) -> None:
    group = typer.main.get_command(app)
    expected = {option for parameter in group.params for option in parameter.opts}
    assert first_cells(section(cli, "## `nt` itself")) == expected - {"--help"}


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


def test_the_scale_page_holds_what_its_commands_print(root: Path) -> None:
    page = (root / "docs/explanation/scale.md").read_text(encoding="utf-8")
    found = re.findall(
        r"```bash\n(nt scale [^\n]* --markdown)\n```\n\n((?:[^\n]+\n)+\n(?:\|[^\n]*\n)+)", page
    )
    assert len(found) == page.count("--markdown") > 5
    for command, table in found:
        printed = CliRunner().invoke(app, shlex.split(command)[1:]).stdout
        assert table == printed, f"put the output of {command} below it:\n{printed}"


def test_the_papers_page_holds_what_cost_prints(root: Path) -> None:
    page = (root / "docs/explanation/papers.md").read_text(encoding="utf-8")
    found = CliRunner().invoke(app, ["cost", "--markdown"]).stdout
    assert page.endswith(found), "put the output of nt cost --markdown at the page's end"


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


# Spec files


def models() -> dict[str, type[BaseModel]]:
    """Return every model that a spec file is made of, by the name of its class."""
    found = {
        name: kind
        for module in MODULES
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, Value) and kind.__module__ == module.__name__
    }
    return {name: kind for name, kind in found.items() if name not in NOT_LISTED}


def default_of(model: type[BaseModel], name: str) -> str:
    """Write a field's default as a spec file would."""
    field = model.model_fields[name]
    if field.default is PydanticUndefined:
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        kind = getattr(value, "kind", None)
        return f"`{kind}`" if kind else "its defaults"
    return f"`{json.dumps(value)}`"


def allowed_in(schema: Mapping[str, Any], shared: Mapping[str, Any]) -> str:
    """Write which values a field's JSON Schema allows; a choice among kinds as their names."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        kind = shared[name]["properties"].get("kind")
        return f"`{kind['const']}`" if kind else name
    if "anyOf" in schema or "oneOf" in schema:
        choices = [allowed_in(choice, shared) for choice in schema.get("anyOf") or schema["oneOf"]]
        if any("`" in choice for choice in choices) and "text" in choices:
            choices.remove("text")  # a kind's name stands for the kind
        return " or ".join(dict.fromkeys(choices)).replace("` or `", "`, `")
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in limits.items() if key in schema]
    return " ".join([TYPES.get(schema["type"], schema["type"]), ", ".join(bounds)]).strip()


TYPES: Mapping[str, str] = {
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}


def rows_of(model: type[BaseModel]) -> dict[str, str]:
    """Return, for each field, how its line in the reference begins."""
    schema = model.model_json_schema()
    return {
        name: f"| `{name}` | {default_of(model, name)} "
        f"| {allowed_in(schema['properties'][name], schema.get('$defs', {}))} |"
        for name in model.model_fields
        if name != "kind"
    }


@pytest.mark.parametrize("name", models())
def test_the_page_lists_the_fields_of(root: Path, name: str) -> None:
    model = models()[name]
    text = (root / "docs/reference/spec-file.md").read_text(encoding="utf-8")
    kind = model.model_fields["kind"].default if "kind" in model.model_fields else None
    found = re.search(rf"^(#+) [^\n]*`{name}`[^\n]*\n(.*?)(?=^#|\Z)", text, re.M | re.S)
    assert found, f"no heading names {name}"
    assert kind is None or f"kind: {kind}" in found[0], f"{name}: its kind is not {kind}"
    expected = rows_of(model)
    for begin in expected.values():
        assert f"\n{begin}" in found[2], f"expected this line under {name}:\n{begin}"
    assert first_cells(found[2]) == set(expected)


# Python


def modules_of(text: str) -> dict[str, set[str]]:
    """Return the names listed under each module's heading."""
    parts = re.split(r"^## `([\w.]+)`$", text, flags=re.M)
    return {name: first_cells(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize(
    "module", [nt_core, nt_cpu, nt_torch, nt_keras, nt_models, nt_onnx], ids=lambda module: module.__name__
)
def test_the_page_lists_the_public_names_of(root: Path, module: ModuleType) -> None:
    listed = modules_of((root / "docs/reference/python.md").read_text(encoding="utf-8"))
    assert listed[module.__name__] == set(module.__all__)


def test_every_name_on_the_page_exists(root: Path) -> None:
    for module, names in modules_of((root / "docs/reference/python.md").read_text(encoding="utf-8")).items():
        for name in names:
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


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
    "criteria": ("explanation/topology.md", kinds(policies, policies.Criterion)),
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
