"""Readers of ``SPEC`` on the command line: a file, a preset, an architecture, or a user's own function."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from pydantic import PydanticUserError

import nt_models
from nt_core import PRESETS, BlockGraph, RunSpec, Tokens, architecture, read_spec
from nt_core.errors import NeuroTrailsError, SpecError, nearest
from nt_core.spec import build_graph, spell_out

EPOCHS: Final = 20
"""Default length of training for a preset or an architecture that is named without a spec file."""

STEPS: Final = 1000
"""Default number of optimiser steps where such a run trains on text."""

FILES: Final = (".yaml", ".yml", ".json")

LANGUAGE: Final[Mapping[str, Any]] = {
    "optimizer": {"kind": "adamw", "lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.1},
    "learning_rate": {"schedule": "cosine", "warmup": 0.1, "final": 0.1},
    "batch_size": 16,
    "clip_norm": 1.0,
}
"""Recipe of an architecture that reads tokens and is named without a spec file."""


class _Architectures(Mapping[str, Callable[..., BlockGraph]]):
    """Architectures of ``nt_models`` by name; any other by file and function, ``my_model.py:graph``."""

    def __getitem__(self, name: str) -> Callable[..., BlockGraph]:
        if is_in_file(name):
            return _from_file(name)
        return nt_models.ARCHITECTURES[name]

    def __iter__(self) -> Iterator[str]:
        return iter(nt_models.ARCHITECTURES)

    def __len__(self) -> int:
        return len(nt_models.ARCHITECTURES)


ARCHITECTURES: Final[Mapping[str, Callable[..., BlockGraph]]] = _Architectures()
"""Architectures that a spec may name as ``graph.name``."""


def read(source: str, overrides: Sequence[str] = (), preset: str | None = None) -> RunSpec:
    """Read the run that ``SPEC`` names.

    The spec contains the whole graph from a user's file, so a later change of the file does not change the
    spec.

    Args:
        source: path of a spec file; the name of a preset or of an architecture; or ``my_model.py:graph``.
        overrides: as for :func:`nt_core.read_spec`.
        preset: of an architecture, ``single`` if left out; or a replacement for the preset of a spec file.

    Raises:
        SpecError: as :func:`nt_core.read_spec`; or the user's file has no such function, or fails.

    Example:
        >>> run = read("llama_tiny", ["graph.length=64"], preset="neurotrails_lm")
        >>> run.name, run.structure.kind, run.training.optimizer.kind
        ('llama_tiny_neurotrails_lm', 'multi_head', 'adamw')
    """
    if Path(source).suffix in FILES:
        chosen = [] if preset is None else [f"preset={preset}"]
        return _whole(read_spec(source, ARCHITECTURES, [*chosen, *overrides]))
    if source in PRESETS:
        if preset is not None:
            raise SpecError(f"{source}: is a preset already; name an architecture or a file, or no --preset")
        return read_spec(source, ARCHITECTURES, overrides)
    if source not in ARCHITECTURES:
        known = nearest(source, [*PRESETS, *ARCHITECTURES])
        raise SpecError(
            f"{source}: expected a spec file (.yaml, .json), a preset, an architecture or my_model.py:graph, "
            f"found none of them{known}"
        )
    return _read_architecture(source, overrides, preset or "single")


def with_plan(run: RunSpec) -> RunSpec:
    """Add a default plan to a run that has none."""
    if run.plan.epochs is not None or run.plan.steps is not None:
        return run
    language = isinstance(build_graph(run.graph, ARCHITECTURES).input, Tokens)
    length: dict[str, Any] = {"steps": STEPS} if language else {"epochs": EPOCHS}
    return run.replace(plan=run.plan.replace(**length))


def read_to_train(source: str, overrides: Sequence[str] = (), preset: str | None = None) -> RunSpec:
    """Read the run that ``SPEC`` names, with a default plan where no spec file gives one.

    Example:
        >>> read_to_train("single").plan.epochs
        20.0
    """
    run = read(source, overrides, preset)
    return run if Path(source).suffix in FILES else with_plan(run)


def is_in_file(name: str) -> bool:
    """Return whether an architecture's name refers to a function in a file.

    Example:
        >>> is_in_file("models/mine.py:graph"), is_in_file("mlp")
        (True, False)
    """
    return name.rpartition(":")[0].endswith(".py")


def _read_architecture(source: str, overrides: Sequence[str], preset: str) -> RunSpec:
    name = source
    if is_in_file(source):
        file, _, function = source.rpartition(":")
        name = f"{Path(file).stem}.{function}"
    data = {"name": f"{name}_{preset}", "preset": preset, "graph": {"name": source}}
    try:
        run = spell_out(data, ARCHITECTURES, overrides)
        if isinstance(build_graph(run.graph, ARCHITECTURES).input, Tokens):
            run = spell_out({**data, "training": LANGUAGE}, ARCHITECTURES, overrides)
    except NeuroTrailsError as error:
        raise type(error)(f"{source}: {error}") from error.__cause__
    return _whole(run)


def _whole(run: RunSpec) -> RunSpec:
    """Put a graph that comes from a user's file into the spec op by op."""
    if not is_in_file(str(run.graph.get("name"))):
        return run
    return run.replace(graph=build_graph(run.graph, ARCHITECTURES).to_dict())


def _from_file(name: str) -> Callable[..., BlockGraph]:
    """Return a function in a user's file as an architecture: its arguments checked and recorded."""
    file, _, function = name.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise SpecError(f"{name}: no file {file!r}; give the path of a Python file")
    module = _run(path.resolve(), changed=path.stat().st_mtime_ns)
    make = getattr(module, function, None)
    if not callable(make):
        functions = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise SpecError(f"{name}: the file has no function {function!r}{nearest(function, functions)}")

    try:
        build = architecture(make)
    except (NameError, PydanticUserError) as error:
        raise SpecError(f"{name}: its arguments' types cannot be read: {error}") from None

    @wraps(make)
    def named(**arguments: Any) -> BlockGraph:
        graph = build(**arguments)
        return graph.with_origin({**(graph.origin or {}), "name": name})

    return named


@cache
def _run(path: Path, *, changed: int) -> ModuleType:  # noqa: ARG001 (a key of the cache)
    """Run a user's file, once as long as it does not change; it may import modules of its own folder."""
    found = importlib.util.spec_from_file_location(f"file {path}", path)
    assert found is not None
    assert found.loader is not None
    module = sys.modules[found.name] = importlib.util.module_from_spec(
        found
    )  # where annotations are looked up
    sys.path.insert(0, str(path.parent))
    try:
        found.loader.exec_module(module)
    except NeuroTrailsError:
        raise
    except Exception as error:
        raise SpecError(f"{path}: cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module
