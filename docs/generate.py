"""Writer of the tables of the reference pages: `python docs/generate.py`; `--check` names the stale pages.

A table stands between `<!-- generated: KIND ARGUMENT -->` and `<!-- end -->`. Its content is said once, in
the code: fields in the docstrings of their classes, names in the first line of theirs, options in their help.
So a new field, name or option needs no line in a page, only its docstring.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from nt_core.metrics import FIGURES, RECORDED, Metrics
from nt_lab.cli.main import app

PAGES: Final = Path(__file__).parent
MARK: Final = re.compile(r"(<!-- generated: (\w+) ([^\n]*?) ?-->\n)(.*?)(<!-- end -->)", re.S)
LINKS: Final = {
    "AnyAllocation": "Allocation",
    "AnyPrune": "Criteria",
    "AnyGrow": "Criteria",
    "AnyStructure": "Structure",
    "AnyTopology": "Topology",
    "AnyPlan": "Plan",
    "Training": "Training",
    "Data": "Data",
    "Aggregation": "Aggregation",
    "Semantics": "Semantics",
}
"""Types of fields that have a section of their own on the page."""


# Spec files: `fields NAME_OF_CLASS`


def fields(name: str) -> str:
    """Return the table of a declared value's fields, from its class and the docstring of that."""
    model = _models()[name]
    schema, meanings = model.model_json_schema(), attributes(model)
    rows = [
        f"| `{field}` | {_default(model, field)} "
        f"| {_allowed(schema['properties'][field], schema.get('$defs', {}))} "
        f"| {_in_a_file(sentence(meanings[field]))}{_link(model, field)} |"
        for field in model.model_fields
        if field != "kind"
    ]
    if not rows:
        return "No fields.\n"
    return "\n".join(["| field | default | allowed | meaning |", "| --- | --- | --- | --- |", *rows]) + "\n"


def _models() -> dict[str, type[BaseModel]]:
    """Return every class that a spec file is made of, by its name."""
    import nt_core.policies
    import nt_core.spec
    import nt_core.structure
    import nt_core.topology
    import nt_core.training
    from nt_core.policies import GROWS, PRUNES
    from nt_core.topology import TOPOLOGIES
    from nt_core.topology.dynamic import DropFraction

    rooms = (nt_core.policies, nt_core.spec, nt_core.structure, nt_core.topology, nt_core.training)
    found = {
        name: kind
        for room in rooms
        for name, kind in vars(room).items()
        if isinstance(kind, type) and issubclass(kind, BaseModel) and not inspect.isabstract(kind)
    }
    named = {**PRUNES, **GROWS, **TOPOLOGIES}.values()  # also those that a room does not export
    return {**found, "DropFraction": DropFraction, **{kind.__name__: kind for kind in named}}


def attributes(model: type) -> dict[str, str]:
    """Return the meanings of a class's fields, from the Attributes of its docstring and of its bases'."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        section = re.search(r"^Attributes:\n((?:[ ]{4}.*\n?|\n)+)", text, re.M)
        if section:
            entries = re.split(r"^ {4}(\w+):\s+", section[1], flags=re.M)[1:]
            found |= {
                key: " ".join(body.split()) for key, body in zip(entries[::2], entries[1::2], strict=True)
            }
    return found


def _default(model: type[BaseModel], name: str) -> str:
    value = model.model_fields[name].default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        kind = getattr(value, "kind", None)
        return f"`{kind}`" if kind else "its defaults"
    return f"`{json.dumps(value)}`"


TYPES: Final = {"string": "text", "boolean": "true or false", "array": "a list", "object": "a mapping"}


def _allowed(schema: Mapping[str, Any], shared: Mapping[str, Any]) -> str:
    """Write which values a field's JSON Schema allows; a choice among kinds as their names."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        kind = shared[name]["properties"].get("kind")
        return f"`{kind['const']}`" if kind else name
    if "anyOf" in schema or "oneOf" in schema:
        choices = [_allowed(choice, shared) for choice in schema.get("anyOf") or schema["oneOf"]]
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


def _in_a_file(text: str) -> str:
    """Write None as a spec file has it."""
    return re.sub(r"\bNone\b", "`null`", text)


def _link(model: type[BaseModel], name: str) -> str:
    bases = (inspect.get_annotations(base) for base in model.__mro__)
    written = next((found[name] for found in bases if name in found), "")
    section = LINKS.get(str(written).partition(" ")[0])
    return f" See [{section}](#{section.lower()})." if section else ""


# Python: `names MODULE`


def names(module: str) -> str:
    """Return the table of the names that a module exports, from their docstrings."""
    package = importlib.import_module(module)
    rows = [
        f"| `{name}` | {sentence(_first_line(package, name))} |"
        for name in sorted(package.__all__, key=str.lower)
    ]
    return "\n".join(["| name | meaning |", "| --- | --- |", *rows]) + "\n"


def _first_line(package: ModuleType, name: str) -> str:
    value = getattr(package, name)
    if inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value):
        found = inspect.getdoc(value) or ""
    else:
        found = next(filter(None, (_below(module, name) for module in _modules_of(package, name))), "")
    return " ".join(found.partition("\n\n")[0].split())


def _modules_of(package: ModuleType, name: str) -> Iterator[ModuleType]:
    """Yield the module, and where its source says that a name comes from."""
    yield package
    for node in ast.walk(ast.parse(inspect.getsource(package))):
        if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
            yield from _modules_of(importlib.import_module(node.module), name)


def _below(module: ModuleType, name: str) -> str:
    """Return the string under an assignment; one string may stand under several."""
    body = ast.parse(inspect.getsource(module)).body
    for place, node in enumerate(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        written = {
            each.id
            for target in targets
            for each in ast.walk(target or ast.Pass())
            if isinstance(each, ast.Name)
        }
        if name in written:
            following = next(
                (n for n in body[place + 1 :] if not isinstance(n, ast.Assign | ast.AnnAssign)), None
            )
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                return str(following.value.value)
    return ""


CODE: Final = re.compile(r"(nt \w+ --\w+ \w+|--[a-z-]+(?: [a-z]+=[A-Z]+| ray\b)?|[a-z_.]+=[\w.]+\w)")
"""Commands, options and assignments in a help text."""


# Metrics: `figures evaluate` and `figures compare`


def figures(command: str) -> str:
    """Return the keys of figures in a command's JSON, from the docstrings of their properties."""
    shown = FIGURES if command == "evaluate" else RECORDED
    of_members = [each.of_members for each in FIGURES if each.of_members and command == "evaluate"]
    rows = [
        f"| `{name}` | {sentence(inspect.getdoc(getattr(Metrics, name)) or '')} |"
        for name in [*(each.name for each in shown), *of_members]
    ]
    return "\n".join(["| key | meaning |", "| --- | --- |", *rows]) + "\n"


# The command line: `options COMMAND`, `output COMMAND LINE`


def options(command: str) -> str:
    """Return the table of a command's arguments and options, from their help; of ``nt`` itself for ``nt``."""
    group = typer.main.get_command(app)
    found = group if command == "nt" else group.commands[command]  # type: ignore[attr-defined]
    rows = []
    for parameter in found.params:
        argument = parameter.param_type_name == "argument"
        name = parameter.metavar if argument else parameter.opts[0]
        if name != "--help" and not getattr(parameter, "hidden", False):
            help_text: str = getattr(parameter, "help", None) or ""
            rows.append(f"| `{name}` | {_code(sentence(help_text))}{_unsaid(parameter, help_text)} |")
    title = "option" if command == "nt" else "argument or option"
    return "\n".join([f"| {title} | meaning |", "| --- | --- |", *rows]) + "\n"


def _code(text: str) -> str:
    """Mark options, commands and assignments, which a terminal shows as plain text, as code."""
    return CODE.sub(r"`\1`", text)


def _unsaid(parameter: Any, help_text: str) -> str:
    """Return the default and the environment variable of an option, unless its help says the default."""
    found = ""
    default = getattr(parameter.default, "value", parameter.default)
    said = re.search(r"default|left out", help_text)
    if default not in (None, False, ()) and not callable(default) and not said:
        found += f" Default: `{default:g}`." if isinstance(default, float) else f" Default: `{default}`."
    if parameter.envvar:
        found += f" The environment variable `{parameter.envvar}=1` does the same."
    return found


def output(command: str) -> str:
    """Return what a command prints."""
    return CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False).stdout


# All of them.


def sentence(text: str) -> str:
    """Write a docstring's line for a page: roles and double backticks of its markup become Markdown's."""
    if not text:
        raise ValueError("every public name, field and option needs a docstring or a help")
    text = re.sub(r":\w+:`~?([^`]+)`", lambda found: f"`{found[1]}`", text).replace("``", "`")
    text = text.replace("|", "\\|")
    text = text if text.endswith((".", ")", "…")) and not text.endswith(" say.)") else text.rstrip(".") + "."
    return text[0].upper() + text[1:] if text[0].isalpha() else text


KINDS: Final[Mapping[str, Callable[[str], str]]] = {
    "fields": fields,
    "figures": figures,
    "names": names,
    "options": options,
    "output": output,
}


def generated(page: str) -> str:
    """Return a page with its tables as they should be."""
    return MARK.sub(lambda found: found[1] + "\n" + KINDS[found[2]](found[3]) + "\n" + found[5], page)


def main(check: bool) -> int:
    """Write the pages, or name those that are stale."""
    stale = []
    for path in sorted(PAGES.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if (wanted := generated(text)) != text:
            stale.append(path.relative_to(PAGES).as_posix())
            if not check:
                path.write_text(wanted, encoding="utf-8")
    print("\n".join(stale) or "all tables are up to date")  # noqa: T201
    return len(stale) if check else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
