"""Spec files: the whole declaration of a run in YAML or JSON, validated, with a version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from nt_core.errors import NeuroTrailsError, SpecError, nearest
from nt_core.files import ParseError, parse_json, parse_yaml, read_text, to_yaml
from nt_core.graph import BlockGraph
from nt_core.spec.ensemble import Aggregation, EnsembleSpec
from nt_core.spec.presets import PRESETS
from nt_core.structure import AnyStructure, Reduction, Single
from nt_core.topology import AnyTopology, Dense
from nt_core.training import AnyPlan, Data, OneRun, Training
from nt_core.values import Value

VERSION: Final = 1
MOST_BYTES: Final = 1 << 20
"""Largest size of a spec file; a file with a LLaMA of 80 blocks, op by op, has 180,000 bytes."""
Architectures = Mapping[str, Callable[..., BlockGraph]]
CHOICES: Final = ("structure", "topology", "plan", "aggregation", "loss")


class RunSpec(Value):
    """Whole declaration of a run: the fields of :class:`EnsembleSpec`, the recipe, the data, the seed.

    Attributes:
        version: of this file format.
        name: name of the run in folders and tables. A spec from a file is named after the
            file by default, one from a preset after the preset.
        preset: the preset that fills in the fields which the file leaves out. A saved spec has all fields
            written out nevertheless.
        graph: an architecture by name with its arguments, ``{name: wide_resnet, depth: 16, …}``, or a whole
            graph as :meth:`BlockGraph.to_dict` gives it.
        structure: sharing of the graph among members.
        topology: sparsity, initial masks, and updates of the masks.
        plan: length and phases of training.
        aggregation: mean over members of probabilities or of logits; or a fitted weighted mean.
        loss: whether members' losses are averaged or summed; None: the structure's default.
        training: the recipe.
        data: the training and test data.
        seed: keys every random choice.
    """

    error_path: ClassVar[str] = ""
    version: Literal[1] = VERSION
    name: str = Field(default="run", pattern=r"^[^/\\\x00-\x1f]*[^/\\.\x00-\x1f][^/\\\x00-\x1f]*$")
    preset: str | None = None
    graph: dict[str, Any]
    structure: AnyStructure = Single()
    topology: AnyTopology = Dense()
    plan: AnyPlan = OneRun()
    aggregation: Aggregation = "mean_prob"
    loss: Reduction | None = None
    training: Training = Training()
    data: Data = Data()
    seed: int = Field(default=0, ge=0)

    def ensemble(self, architectures: Architectures) -> EnsembleSpec:
        """Build the graph and return the declared ensemble.

        Args:
            architectures: name → function, for graphs given by name.
        """
        choices = {name: getattr(self, name) for name in CHOICES}
        return EnsembleSpec(graph=build_graph(self.graph, architectures), **choices)

    def to_dict(self) -> dict[str, Any]:
        """Return the spec with all defaults, as values that JSON and YAML can hold."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return the spec with all defaults, as a YAML file's text."""
        return to_yaml(self.to_dict())


def read_spec(source: str | Path, architectures: Architectures, overrides: Sequence[str] = ()) -> RunSpec:
    """Read a spec file, or make the spec of a preset.

    Args:
        source: path of a ``.yaml``, ``.yml`` or ``.json`` file, or a preset's name.
        architectures: name → function, to build the graph on which a preset's defaults depend.
        overrides: ``"topology.sparsity=0.9"`` and the like; values are read as YAML.

    Raises:
        SpecError: no such file or preset (the message names the nearest), not YAML, an unknown key (the
            message names the nearest), a wrong value, or a newer version.

    Example:
        >>> import nt_models
        >>> spec = read_spec("neurotrails", nt_models.ARCHITECTURES, ["topology.sparsity=0.9"])
        >>> spec.topology.sparsity, spec.structure
        (0.9, MultiHead(kind='multi_head', split=1, heads=3))
    """
    path = Path(source)
    if path.suffix in {".yaml", ".yml", ".json"}:
        data = {"name": path.stem} | _read_file(path)
    elif str(source) in PRESETS:
        data = {"name": str(source), "preset": str(source), "graph": dict(DEFAULT_GRAPH)}
    else:
        known = nearest(str(source), PRESETS)
        raise SpecError(f"{source}: neither a .yaml or .json file nor a preset{known}")
    try:
        return spell_out(data, architectures, overrides)
    except NeuroTrailsError as error:
        raise type(error)(f"{source}: {error}") from None


DEFAULT_GRAPH: Final = {
    "name": "wide_resnet",
    "depth": 10,
    "width": 2,
    "classes": 10,
    "size": 8,
    "channels": 1,
}
"""Default graph of a preset: a small Wide-ResNet for the bundled digits."""


def spell_out(
    data: Mapping[str, Any], architectures: Architectures, overrides: Sequence[str] = ()
) -> RunSpec:
    """Make a run spec from a file's content; fields that the file leaves out are taken from its preset.

    Args:
        data: the content.
        architectures: as for :func:`read_spec`.
        overrides: as for :func:`read_spec`.

    Raises:
        SpecError: as :func:`read_spec`.
    """
    for override in overrides:
        data = merge(data, _parse_override(override))
    _expect_names(data, "")
    version = data.get("version", VERSION)
    if isinstance(version, int) and version > VERSION:
        raise SpecError(
            f"version: {version} is newer than this library understands ({VERSION}); upgrade neurotrails"
        )
    data = merge({"training": Training().model_dump()}, data)
    spec = RunSpec(**_with_preset(data, architectures))
    spec.ensemble(architectures)
    return spec


def _with_preset(data: Mapping[str, Any], architectures: Architectures) -> Mapping[str, Any]:
    preset = data.get("preset")
    if preset is None:
        return data
    if not isinstance(preset, str) or preset not in PRESETS:
        raise SpecError(f"preset: no preset {preset!r}{nearest(str(preset), PRESETS)}")
    graph = build_graph(data.get("graph", DEFAULT_GRAPH), architectures)
    defaults = PRESETS[preset](graph).to_dict()
    base = {"graph": data.get("graph", DEFAULT_GRAPH)} | {name: defaults[name] for name in CHOICES}
    return merge(base, data)


def _expect_names(data: Any, path: str) -> None:
    """Check that all keys are text, because YAML reads some as numbers, dates, or booleans (``on``)."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            if not isinstance(key, str):
                raise SpecError(
                    f"{path}{key!r}: expected a name as key, found {type(key).__name__}; quote it"
                )
            _expect_names(value, f"{path}{key}.")
    elif isinstance(data, list):
        for number, value in enumerate(data):
            _expect_names(value, f"{path}{number}.")


def build_graph(source: Mapping[str, Any], architectures: Architectures) -> BlockGraph:
    """Build the graph that a spec names, or read a graph that the spec contains op by op.

    Raises:
        SpecError: no keys and values; an unknown architecture or argument (the message names the nearest).
        GraphError: the architecture cannot be built with these arguments.
    """
    if not isinstance(source, Mapping):
        raise SpecError(f"graph: expected keys and values; found {source!r}")
    if "blocks" in source and "name" not in source:
        return BlockGraph.from_dict(source)
    arguments = dict(source)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or name not in architectures:
        raise SpecError(f"graph.name: no architecture {name!r}{nearest(str(name), architectures)}")
    return architectures[name](**arguments)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge one nested mapping over another; a mapping of another ``kind`` or ``name`` replaces the whole.

    Example:
        >>> merge({"a": {"kind": "x", "b": 1}, "c": 2}, {"a": {"b": 3}})
        {'a': {'kind': 'x', 'b': 3}, 'c': 2}
        >>> merge({"a": {"kind": "x", "b": 1}}, {"a": {"kind": "y"}})
        {'a': {'kind': 'y'}}
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and _same_kind(old, value):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def _same_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return all(tag not in new or new[tag] == old.get(tag) for tag in ("kind", "name"))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path, MOST_BYTES)
        data = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except (ParseError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(data, dict):
        raise SpecError(f"{path}: expected keys and values, found {type(data).__name__}")
    return data


def _parse_override(override: str) -> dict[str, Any]:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise SpecError(f"--set {override}: expected key=value, topology.sparsity=0.9 say")
    try:
        value: Any = parse_yaml(text)
    except ParseError as error:
        raise SpecError(f"--set {override}: the value is not YAML: {error}") from None
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of spec files, for editors and validators.

    No field is required, because a preset may give any field that a file leaves out. Values without a kind
    may therefore match several kinds.
    """
    schema: dict[str, Any] = _loosen(RunSpec.model_json_schema())
    return schema


def _loosen(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_loosen(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        "anyOf" if key == "oneOf" else key: _loosen(each)
        for key, each in schema.items()
        if key not in ("discriminator", "required")
    }
