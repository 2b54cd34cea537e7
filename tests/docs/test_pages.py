"""Everything on a page that can be run is run, in order, in a namespace and a folder of its own.

- ``python`` blocks are executed; those that begin with ``>>>`` are doctests.
- ``yaml`` blocks are whole spec files, unless they begin with ``# fragment``; one that begins with its file's
  name, ``# digits.yaml`` say, is also written there, so that commands further down can read it.
- ``bash`` blocks of ``nt`` commands must end with exit code 0.
- ``console`` blocks are not run, but the options of their ``$ nt`` commands must exist.
- ``json`` blocks must be JSON.
"""

from __future__ import annotations

import configparser
import doctest
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from typer.testing import CliRunner

import nt_models
from nt_core.spec import spell_out
from nt_lab.cli.main import app

FENCE = re.compile(r"^```(\w*)", re.MULTILINE)
LANGUAGES = {"python", "yaml", "bash", "console", "json", "text", "bibtex"}


def check_yaml(example: Example) -> None:
    text = str(example.parsed)
    content = yaml.safe_load(text)
    if text.startswith("# fragment"):
        return
    spell_out(content, nt_models.ARCHITECTURES)
    name = re.match(r"# ([\w-]+\.yaml)\n", text)
    if name:
        Path(name[1]).write_text(text, encoding="utf-8")


def check_bash(example: Example) -> None:
    lines = commands(str(example.parsed))
    ours = [line for line in lines if line.startswith("nt ")]
    assert not ours or ours == lines, f"nt and other commands in one block: {lines}"
    for line in ours:
        line, _, output = line.partition(" > ")
        result = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{line}: exit code {result.exit_code}\n{result.output}"
        if output:
            Path(output.strip()).write_text(result.stdout, encoding="utf-8")


def check_console(example: Example) -> None:
    group = typer.main.get_command(app)
    known = {option for parameter in group.params for option in parameter.opts}
    for line in commands(str(example.parsed)):
        if not line.startswith("$ nt "):
            continue
        arguments = shlex.split(line, comments=True)[2:]
        while arguments and arguments[0].startswith("-"):
            assert arguments.pop(0) in known, line
        if arguments:
            group.commands[arguments[0]].make_context(arguments[0], arguments[1:])


def check_json(example: Example) -> None:
    json.loads(str(example.parsed))


def commands(text: str) -> list[str]:
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


SYBIL = Sybil(
    parsers=[
        PythonCodeBlockParser(doctest_optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE),
        CodeBlockParser("yaml", check_yaml),
        CodeBlockParser("bash", check_bash),
        CodeBlockParser("console", check_console),
        CodeBlockParser("json", check_json),
    ]
)


def test_everything_on_the_page_runs(
    page: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(root / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    document = SYBIL.parse(page)
    document.namespace["__name__"] = "page"
    for example in document.examples():
        example.evaluate()


def test_every_block_names_a_language(document: Path) -> None:
    fences = FENCE.findall(document.read_text(encoding="utf-8"))
    assert len(fences) % 2 == 0, "a block is not closed"
    assert set(fences[::2]) <= LANGUAGES
    assert set(fences[1::2]) <= {""}


def test_tox_environments_exist(document: Path, root: Path) -> None:
    known = set(environments(root))
    for name in re.findall(r"tox run -e ([\w,-]+)", document.read_text(encoding="utf-8")):
        for environment in name.split(","):
            assert environment in known, f"no environment {environment!r} in tox.ini"


def environments(root: Path) -> Iterator[str]:
    """Yield the names in tox.ini; ``keras-{tf, jax}`` stands for two."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(root / "tox.ini")
    for section in tox.sections():
        begin, brace, choices = section.removeprefix("testenv:").partition("{")
        for choice in choices.rstrip("}").split(",") if brace else [""]:
            yield begin + choice.strip()
