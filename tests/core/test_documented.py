from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import nt_core
import nt_models


def modules(package: ModuleType) -> Iterator[ModuleType]:
    yield package
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(found.name)


MODULES = [*modules(nt_core), *modules(nt_models)]


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Walk over the functions and classes that a module defines, and what classes define."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            yield name, value
            yield from methods(name, value)
        elif inspect.isroutine(value):
            yield name, value


def methods(owner: str, kind: type) -> Iterator[tuple[str, Any]]:
    for name in vars(kind):
        value = inspect.getattr_static(kind, name)
        bare = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        is_code = inspect.isroutine(bare) or isinstance(bare, property) or hasattr(bare, "attrname")
        if not name.startswith("_") and is_code:
            yield f"{owner}.{name}", getattr(kind, name)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_every_public_symbol_is_documented(module: ModuleType) -> None:
    assert inspect.getdoc(module), f"{module.__name__} says nothing of itself"
    missing = [name for name, value in public(module) if not documented(value)]
    assert not missing


def documented(value: Any) -> bool:
    text = inspect.getdoc(value)
    generated = inspect.isclass(value) and text is not None and text.startswith(f"{value.__name__}(")
    return bool(text) and not generated  # a dataclass without words has its signature


@pytest.mark.parametrize("package", [nt_core, nt_models])
def test_everything_a_package_offers_is_documented(package: ModuleType) -> None:
    for name in package.__all__:
        value = getattr(package, name)
        if callable(value):
            assert documented(value), name
        else:
            assert has_comment(package, name), f"{name}: expected a docstring below its definition"


def has_comment(package: ModuleType, name: str) -> bool:
    """Tell whether a constant is followed by a string, wherever in the package it is defined."""
    return any(name in commented(module) for module in modules(package))


def commented(module: ModuleType) -> set[str]:
    body = ast.parse(inspect.getsource(module)).body
    return {
        target.id
        for node, after in itertools.pairwise(body)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        for target in targets(node)
        if isinstance(target, ast.Name)
    }


def targets(node: ast.stmt) -> list[ast.expr]:
    return (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )


def test_the_walk_sees_what_it_should() -> None:
    seen = {f"{module.__name__}.{name}" for module in MODULES for name, _ in public(module)}
    assert {
        "nt_core.masks.mask.Mask",
        "nt_core.masks.mask.Mask.from_flat",
        "nt_core.masks.mask.Mask.count",
        "nt_core.graph.blocks.BlockGraph.shapes",
        "nt_core.policies.compose.swap",
        "nt_core.graph.ops.images.Conv2d.output_shape",
        "nt_models.mlp.mlp",
        "nt_core.errors.nearest",
    } <= seen
    assert len(seen) > 250


def test_public_functions_have_type_hints() -> None:
    for module in MODULES:
        for name, value in public(module):
            if inspect.isfunction(value):
                hints = inspect.signature(value)
                missing = [
                    p.name
                    for p in hints.parameters.values()
                    if p.annotation is p.empty and p.name not in ("self", "cls")
                ]
                assert not missing, (module.__name__, name)
                assert hints.return_annotation is not hints.empty, (module.__name__, name)
