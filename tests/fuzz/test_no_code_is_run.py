"""No module runs what it reads: no pickle, no ``eval``, and one documented way to run a user's own file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "nt_core",
    "nt_lab",
    "models/nt_models",
    *(f"backends/nt_{b}" for b in ("cpu", "keras", "onnx", "torch")),
)
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

BANNED_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "code",
    "runpy",
}
BANNED_CALLS = {
    "eval",
    "exec",
    "__import__",
    "exec_module",
    "system",
    "popen",
    "unsafe_load",
    "full_load",
}
RUNS_A_USERS_FILE = {("nt_lab/runs/architectures.py", "exec_module")}
"""``my_model.py:graph``."""


def offences(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of whatever could run what is read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from ((node.lineno, name) for name in names if name.partition(".")[0] in BANNED_MODULES)
        if isinstance(node, ast.Call):
            yield from ((node.lineno, name) for name in _offending_call(node))


def _offending_call(call: ast.Call) -> Iterator[str]:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    owner, _, name = ast.unparse(call.func).rpartition(".")
    owned_by_builtins = not owner or owner in ("builtins", "os", "yaml") or name == "exec_module"
    if name in BANNED_CALLS and owned_by_builtins:
        yield name
    if (owner, name) == ("yaml", "load") and given.get("Loader") != "_Loader":
        yield "yaml.load"
    if (owner, name) == ("torch", "load") and given.get("weights_only") != "True":
        yield "torch.load"
    if name == "load_model" and given.get("safe_mode") != "True":
        yield "load_model"
    if given.get("allow_pickle", "False") != "False" or given.get("trust_remote_code", "False") != "False":
        yield f"{name}(allow_pickle or trust_remote_code)"
    if given.get("shell", "False") != "False":
        yield f"{name}(shell)"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_runs_nothing_that_it_reads(path: Path) -> None:
    where = path.relative_to(ROOT).as_posix()
    found = [(line, name) for line, name in offences(ast.parse(path.read_text(encoding="utf-8")))]
    assert [(line, name) for line, name in found if (where, name) not in RUNS_A_USERS_FILE] == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import os.path, marshal",
        "eval(x)",
        "exec(x)",
        "builtins.eval(x)",
        "os.system(x)",
        "np.load(x, allow_pickle=True)",
        "np.load(x, allow_pickle=flag)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "keras.saving.load_model(x)",
        "yaml.load(x, Loader=yaml.Loader)",
        "yaml.load(x, yaml.Loader)",
        "yaml.unsafe_load(x)",
        "AutoTokenizer.from_pretrained(x, trust_remote_code=True)",
        "subprocess.run(x, shell=True)",
        "spec.loader.exec_module(m)",
    ],
)
def test_what_would_run_it_is_noticed(text: str) -> None:
    assert list(offences(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "np.load(x)",
        "torch.load(x, weights_only=True)",
        "model.eval()",
        "nt_torch.compile(spec)",
        "re.compile(x)",
    ],
)
def test_what_would_not_is_not(text: str) -> None:
    assert not list(offences(ast.parse(text)))
