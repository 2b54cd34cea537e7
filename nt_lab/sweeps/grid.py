"""The grid of a sweep: the values of each field, and the run of each point."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nt_core.errors import NeuroTrailsError, SpecError, nearest
from nt_core.files import ParseError, parse_yaml
from nt_core.spec import RunSpec
from nt_lab.runs.architectures import ARCHITECTURES, read_to_train

FIELDS: Final[Mapping[str, str]] = {
    "split": "structure.split",
    "sparsity": "topology.sparsity",
    "allocation": "topology.allocation",
    "prune": "topology.prune",
    "grow": "topology.grow",
    "drop_fraction": "topology.drop_fraction.start",
    "interval": "topology.interval",
}
"""Short names of fields; ``heads`` is missing, because its path depends on the structure."""

LONGEST_NAME: Final = 200
"""Most bytes of a run's name, which is its folder's."""

HEADS: Final = "heads"
COUNTS: Final = ("heads", "count")
"""Names of the field that holds a structure's number of members."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A swept field and its values.

    Attributes:
        field: name of the field, as given with ``--over``.
        path: of the field in a spec file.
        values: at least one.
    """

    field: str
    path: str
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a sweep.

    Attributes:
        name: of the run's folder: ``sparsity=0.8,seed=0``.
        point: field → value, in the order of the axes.
        run: whole spec of the run.
    """

    name: str
    point: Mapping[str, Any]
    run: RunSpec


def grid(
    source: str,
    over: Sequence[str],
    values: Sequence[str],
    seeds: str,
    *,
    overrides: Sequence[str] = (),
    preset: str | None = None,
) -> list[Job]:
    """Return every run of a sweep, each checked as far as a spec can be.

    Args:
        source: the command line's ``SPEC``.
        over: fields: a key of :data:`FIELDS`, ``heads``, or any path that ``--set`` takes.
        values: for each field its values, comma-separated, each read as YAML.
        seeds: comma-separated.
        overrides: as for :func:`nt_core.read_spec`, for all runs.
        preset: as for :func:`nt_lab.runs.architectures.read`.

    Raises:
        NeuroTrailsError: an unknown field (the message names the nearest), no values, a value twice, or a
            value that is not valid (the message names the point).

    Example:
        >>> jobs = grid("neurotrails", ["sparsity", "heads"], ["0.8,0.9", "2"], "0,1")
        >>> [job.name for job in jobs][:2], len(jobs), jobs[0].run.structure.heads
        (['sparsity=0.8,heads=2,seed=0', 'sparsity=0.8,heads=2,seed=1'], 4, 2)
    """
    if len(over) != len(values) or not over:
        raise SpecError(
            f"sweep: expected at least one --over and --values for each, found {len(over)} fields and "
            f"{len(values)} lists of values; --over sparsity --values 0.8,0.9 say"
        )
    base = read_to_train(source, overrides, preset)
    axes = [_axis(field, text, base) for field, text in zip(over, values, strict=True)]
    if len({axis.path for axis in axes}) < len(axes):
        raise SpecError(f"--over: a field stands twice: {', '.join(over)}; leave one out")
    numbers = _seeds(seeds)
    points = itertools.product(*(axis.values for axis in axes))
    jobs = [_job(source, axes, point, seed, overrides, preset) for point in points for seed in numbers]
    return jobs


def _axis(field: str, text: str, base: RunSpec) -> Axis:
    values = _list(text, f"--values of {field}")
    return Axis(field=field, path=_path(field, base), values=tuple(values))


def _path(field: str, base: RunSpec) -> str:
    if field == HEADS:
        known = [name for name in COUNTS if name in type(base.structure).model_fields]
        if not known:
            raise SpecError(
                f"--over heads: the structure {base.structure.kind!r} has one member; choose one that has "
                "several, --preset neurotrails say"
            )
        return f"structure.{known[0]}"
    if field in ("seed", "name", "version"):
        raise SpecError(
            f"--over {field}: expected a field of the method or the recipe; seeds are --seeds 0,1,2"
        )
    first = field.partition(".")[0]
    if field not in FIELDS and first not in RunSpec.model_fields:
        fields: list[str] = [HEADS, *FIELDS, *RunSpec.model_fields]
        raise SpecError(f"--over: no field {field!r}{nearest(first, fields)}")
    return FIELDS.get(field, field)


def _seeds(text: str) -> list[int]:
    seeds = _list(text, "--seeds")
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise SpecError(f"--seeds: expected integers of at least 0, found {seed!r}")
    return seeds


def _list(text: str, where: str) -> list[Any]:
    """Read comma-separated values, each as YAML."""
    try:
        values: list[Any] = parse_yaml(f"[{text}]")
    except ParseError as error:
        raise SpecError(f"{where}: {text!r} is no list of YAML values: {error}") from None
    if not values:
        raise SpecError(f"{where}: expected at least one, found none; give them as 0.8,0.9")
    texts = [json.dumps(value, default=str) for value in values]
    if len(set(texts)) < len(texts):
        raise SpecError(f"{where}: one stands twice: {text}; leave it out")
    return values


def _job(
    source: str,
    axes: Sequence[Axis],
    values: Sequence[Any],
    seed: int,
    overrides: Sequence[str],
    preset: str | None,
) -> Job:
    point = {axis.field: value for axis, value in zip(axes, values, strict=True)}
    name = _short(",".join(f"{field}={_as_name(value)}" for field, value in {**point, "seed": seed}.items()))
    changes = [f"{axis.path}={json.dumps(value)}" for axis, value in zip(axes, values, strict=True)]
    try:
        run = read_to_train(
            source, [*overrides, *changes, f"seed={seed}", f"name={json.dumps(name)}"], preset
        )
        run.ensemble(ARCHITECTURES).plan.total_steps(steps_per_epoch=1)
    except NeuroTrailsError as error:
        raise type(error)(f"{name}: {error}") from None
    return Job(name=name, point=point, run=run)


def _as_name(value: Any) -> str:
    """Return a value as a part of a folder's name: its text, or a digest if the text has other characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    plain = re.sub(r"[^\w.+-]+", "-", text).strip("-.")
    if plain == text:
        return text
    return f"{plain[:40]}-{hashlib.blake2b(text.encode(), digest_size=3).hexdigest()}"


def _short(name: str) -> str:
    """Return a name that can be a folder's, whose end is a digest if it is longer than file systems allow."""
    if len(name.encode()) <= LONGEST_NAME:
        return name
    kept = name.encode()[: LONGEST_NAME - 17].decode(errors="ignore")
    return f"{kept}-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"
