from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import nt_core
import nt_models

CORE, MODELS = (Path(package.__file__ or "").parent for package in (nt_core, nt_models))
ROOT = Path(__file__).parents[2]
NEVER = {"torch", "tensorflow", "keras", "jax", "accelerate", "datasets", "sklearn", "hypothesis"}
ROOMS = {"nt_core", "nt_models", "nt_torch", "nt_keras", "nt_cpu", "nt_lab"}
NEEDS_HYPOTHESIS = CORE / "testing" / "strategies.py"

FIND = """
import json, sys
import nt_core, nt_models, nt_core.testing, nt_core.checkpoint, nt_core.cost, nt_core.reference
spec = nt_core.read_spec("neurotrails", nt_models.ARCHITECTURES)
nt_core.cost.cost(spec.ensemble(nt_models.ARCHITECTURES))
print(json.dumps(sorted(name.partition(".")[0] for name in sys.modules)))
"""


def test_importing_and_describing_load_no_framework() -> None:
    path = [str(CORE.parent), str(MODELS.parent)]
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{FIND}"],
        capture_output=True,
        check=True,
        text=True,
    )
    loaded = set(json.loads(found.stdout))
    assert "nt_core" in loaded
    assert not loaded & NEVER
    assert not loaded & (ROOMS - {"nt_core", "nt_models"})


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Name every top-level package a file imports, wherever in it; docstrings are no code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("path", sources(CORE), ids=lambda p: p.relative_to(CORE).as_posix())
def test_the_core_imports_no_other_room_and_no_framework(path: Path) -> None:
    packages = set(imported(path))
    assert not packages & (ROOMS - {"nt_core"})
    assert not packages & (NEVER - ({"hypothesis"} if path == NEEDS_HYPOTHESIS else set()))


@pytest.mark.parametrize("path", sources(MODELS), ids=lambda p: p.relative_to(MODELS).as_posix())
def test_models_import_the_core_and_nothing_else(path: Path) -> None:
    assert set(imported(path)) - set(sys.stdlib_module_names) <= {"nt_core", "nt_models"}


PACKAGES = {"yaml": "pyyaml", "pydantic_core": "pydantic"}


def test_what_the_core_imports_is_what_the_distribution_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {name(requirement) for requirement in project["dependencies"]}
    used = {package for path in sources(CORE) if path != NEEDS_HYPOTHESIS for package in imported(path)}
    used -= set(sys.stdlib_module_names) | ROOMS
    assert {PACKAGES.get(package, package) for package in used} == required


def name(requirement: str) -> str:
    return requirement.replace(">", "<").replace("=", "<").partition("<")[0].strip().lower()


def test_the_core_never_asks_which_framework_is_there() -> None:
    for path in sources(CORE):
        names = {
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
        assert not names & {"import_module", "__import__", "find_spec"}, path


def test_no_room_has_a_drawer_for_odds_and_ends() -> None:
    for folder in (CORE, MODELS):
        assert not [path for path in sources(folder) if path.stem in {"utils", "util", "helpers", "misc"}]


def test_every_public_name_is_listed_once_in_order() -> None:
    for package in (nt_core, nt_models):
        listed = package.__all__
        assert len(set(listed)) == len(listed)
        assert all(hasattr(package, each) for each in listed)
