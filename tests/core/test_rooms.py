"""The rooms are those of CONTRIBUTING's tables, and nothing imports what they do not allow."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

import nt_core
import nt_models

ROOT = Path(__file__).parents[2]
TABLES = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("\n## Rooms\n")[2]
TABLES = TABLES.partition("\n## ")[0]
FOLDERS = {
    "nt_core": ROOT / "nt_core",
    "nt_lab": ROOT / "nt_lab",
    "nt_models": ROOT / "models" / "nt_models",
    **{f"nt_{name}": ROOT / "backends" / f"nt_{name}" for name in ("torch", "keras", "cpu", "onnx")},
}
GROUND = {"values", "errors", "random", "finite", "version"}
FRAMEWORKS = {"torch", "tensorflow", "keras", "jax", "accelerate"}
NEVER = {*FRAMEWORKS, "datasets", "sklearn", "hypothesis"}
NEEDS_HYPOTHESIS = FOLDERS["nt_core"] / "testing" / "strategies.py"
CUT = ("nt_core", "nt_torch", "nt_keras", "nt_lab")
"""The packages that are cut into rooms; the others are small."""


@cache
def rows() -> Mapping[str, set[str]]:
    """Return each row of the tables: what it may import; ``ground`` stands for the ground."""
    found = re.findall(r"^\| `([\w.]+)` \| [^|]+ \| ([^|]+) \|$", TABLES, re.M)
    return {
        name: {*re.findall(r"`(\w+)`", allowed), *(["ground"] if "the ground" in allowed else [])}
        for name, allowed in found
    }


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def names(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield every full name that a file imports, and whether it does so when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from ((f"{node.module}.{alias.name}", id(node) not in inside) for alias in node.names)


def outside(folder: Path) -> dict[str, set[Path]]:
    """Return the top-level packages that the files of a folder import, and which files do."""
    found: dict[str, set[Path]] = {}
    for path in sources(folder):
        for name, _ in names(path):
            found.setdefault(name.partition(".")[0], set()).add(path)
    return {name: paths for name, paths in found.items() if name not in sys.stdlib_module_names}


def rooms(package: str) -> set[str]:
    folder = FOLDERS[package]
    found = {path.name for path in folder.iterdir() if (path / "__init__.py").exists()}
    return found | {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}


def arrows(package: str) -> dict[str, set[str]]:
    """Return which rooms each room of a package imports; the ground is one."""
    found: dict[str, set[str]] = {}
    known, folder = rooms(package), FOLDERS[package]
    for path in sources(folder):
        here = path.relative_to(folder).with_suffix("").parts[0]
        for name, _ in names(path):
            parts = name.split(".")
            if parts[0] == package and len(parts) > 1 and parts[1] in known - {here}:
                there = "ground" if package == "nt_core" and parts[1] in GROUND else parts[1]
                found.setdefault(here, set()).add(there)
    return {here: there for here, there in found.items() if here not in {"__init__", "__main__"} | GROUND}


def test_the_tables_name_every_package_and_every_room() -> None:
    packages = {path.parent.name for path in ROOT.glob("nt_*/__init__.py")}
    packages |= {path.parent.name for path in ROOT.glob("*/nt_*/__init__.py")} | {"nt_cpu_native"}
    assert {name for name in rows() if "." not in name} == packages == {*FOLDERS, "nt_cpu_native"}
    expected = {f"{package}.{room}" for package in CUT for room in rooms(package)}
    assert {name for name in rows() if "." in name} == expected - {f"nt_core.{room}" for room in GROUND}
    assert rooms("nt_core") >= GROUND


@pytest.mark.parametrize("package", CUT)
def test_arrows_between_rooms_are_those_of_the_table(package: str) -> None:
    table = {
        name.partition(".")[2]: allowed
        for name, allowed in rows().items()
        if name.startswith(f"{package}.") and allowed
    }
    assert arrows(package) == table


@pytest.mark.parametrize("package", CUT)
def test_rooms_have_no_circle(package: str) -> None:
    graph = nx.DiGraph((here, there) for here, others in arrows(package).items() for there in others)
    assert nx.is_directed_acyclic_graph(graph), list(nx.simple_cycles(graph))


def test_the_ground_imports_only_itself() -> None:
    for room in GROUND:
        for name, _ in names(FOLDERS["nt_core"] / f"{room}.py"):
            assert not name.startswith("nt_core.") or name.split(".")[1] in GROUND


@pytest.mark.parametrize("name", [name for name in rows() if "." in name])
def test_a_room_says_what_it_imports(name: str) -> None:
    package, room = name.split(".")
    path = FOLDERS[package] / room / "__init__.py"
    if not path.exists():
        return
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    body = " ".join(text.split())
    found = re.search(r"This room imports ([^.]*)\.$", body)
    assert found, f"{name}: expected a last sentence 'This room imports …', found {body[-60:]!r}"
    said = {*re.findall(r"``(\w+)``", found[1]), *(["ground"] if "the ground" in found[1] else [])}
    assert said == rows()[name]
    assert len(re.findall(r"[.;](?= |$)", body)) >= 3


@pytest.mark.parametrize("package", sorted(set(FOLDERS) - {"nt_lab"}))
def test_a_package_imports_what_the_table_allows(package: str) -> None:
    allowed = rows()[package] | {package}
    for name, paths in outside(FOLDERS[package]).items():
        where = ", ".join(sorted(path.name for path in paths))
        assert name in allowed, f"{package} ({where}) imports {name}, against the table"
    unused = allowed - set(outside(FOLDERS[package])) - {package}
    assert not unused, f"{package}: no file imports {unused}"


def test_hypothesis_is_needed_by_the_strategies_alone() -> None:
    assert outside(FOLDERS["nt_core"])["hypothesis"] == {NEEDS_HYPOTHESIS}


def test_engines_of_keras_are_imported_in_their_room_alone() -> None:
    for engine in ("tensorflow", "jax", "torch"):
        for path in outside(FOLDERS["nt_keras"]).get(engine, ()):
            assert path.parent.name == "engines", path


def test_the_command_line_loads_no_framework_by_itself() -> None:
    for path in sources(FOLDERS["nt_lab"]):
        at_once = {name.partition(".")[0] for name, when_imported in names(path) if when_imported}
        assert not at_once & {*FRAMEWORKS, "nt_torch", "nt_keras"}, path


def test_every_package_is_typed() -> None:
    for folder in FOLDERS.values():
        assert (folder / "py.typed").exists(), folder


FIND = """
import json, sys
import nt_core, nt_models, nt_core.testing, nt_core.checkpoint, nt_core.cost, nt_core.reference
spec = nt_core.read_spec("neurotrails", nt_models.ARCHITECTURES)
nt_core.cost.cost(spec.ensemble(nt_models.ARCHITECTURES))
print(json.dumps(sorted(name.partition(".")[0] for name in sys.modules)))
"""


def test_importing_and_describing_load_no_framework() -> None:
    path = [str(ROOT), str(ROOT / "models")] if (ROOT / "nt_core").samefile(Path(nt_core.__path__[0])) else []
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{FIND}"],
        capture_output=True,
        check=True,
        text=True,
    )
    loaded = set(json.loads(found.stdout))
    assert "nt_core" in loaded
    assert not loaded & NEVER
    assert not loaded & (set(FOLDERS) - {"nt_core", "nt_models"})


PACKAGES = {"yaml": "pyyaml", "pydantic_core": "pydantic"}


def test_what_the_core_imports_is_what_the_distribution_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {requirement_name(requirement) for requirement in project["dependencies"]}
    used = set(outside(FOLDERS["nt_core"])) - {"nt_core", "hypothesis"}
    assert {PACKAGES.get(package, package) for package in used} == required


def requirement_name(requirement: str) -> str:
    return requirement.replace(">", "<").replace("=", "<").partition("<")[0].strip().lower()


def test_the_core_never_asks_which_framework_is_there() -> None:
    for path in sources(FOLDERS["nt_core"]):
        called = {
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
        assert not called & {"import_module", "__import__", "find_spec"}, path


@pytest.mark.parametrize("package", FOLDERS)
def test_no_room_has_a_drawer_for_odds_and_ends(package: str) -> None:
    odds = {"utils", "util", "helpers", "misc", "common"}
    assert not [path for path in sources(FOLDERS[package]) if path.stem in odds]


def test_every_public_name_is_listed_once_in_order() -> None:
    for package in (nt_core, nt_models):
        listed = package.__all__
        assert len(set(listed)) == len(listed)
        assert all(hasattr(package, each) for each in listed)
