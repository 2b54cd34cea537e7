from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nt_models
from nt_core.errors import AllocationError, GraphError, NeuroTrailsError, SpecError
from nt_core.spec import PRESETS, EnsembleSpec, RunSpec, build_graph, json_schema, merge, read_spec, spell_out
from nt_core.spec.ensemble import OneRun
from nt_core.spec.file import CHOICES, VERSION
from nt_core.structure import MultiHead
from nt_core.topology import DropFraction, Dynamic, Static
from nt_core.training import SGD, Adam, Training
from nt_models import ARCHITECTURES
from tests.core.strategies import run_specs

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").rglob("*.yaml"))
SCHEMA = jsonschema.Draft202012Validator(json_schema())
GRAPHS: Mapping[str, Mapping[str, Any]] = {
    "mlp": {"name": "mlp", "inputs": 12, "hidden": [10, 8, 6], "classes": 5},
    "wide_resnet": {"name": "wide_resnet", "depth": 10, "width": 1, "classes": 5, "size": 8, "channels": 3},
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(content: str | bytes | Mapping[str, Any], name: str = "spec.yaml") -> Path:
        path = tmp_path / name
        if isinstance(content, Mapping):
            content = yaml.safe_dump(dict(content), sort_keys=False)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


def small(**more: Any) -> dict[str, Any]:
    return {"graph": dict(GRAPHS["mlp"]), **more}


# Round trips.


@settings(max_examples=150)
@given(run_specs())
def test_run_specs_survive_yaml_and_json_exactly(spec: RunSpec) -> None:
    for data in (yaml.safe_load(spec.to_yaml()), json.loads(json.dumps(spec.to_dict())), spec.to_dict()):
        again = RunSpec(**data)
        assert again == spec
        assert again.to_dict() == spec.to_dict()
        assert again.to_yaml() == spec.to_yaml()


@settings(max_examples=100)
@given(run_specs())
def test_every_run_spec_fits_the_json_schema(spec: RunSpec) -> None:
    SCHEMA.validate(json.loads(json.dumps(spec.to_dict())))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=run_specs())
def test_a_spelled_out_file_reads_as_itself(write: Write, spec: RunSpec) -> None:
    path = write(spec.to_yaml(), "a.yaml")
    try:
        found = read_spec(path, ARCHITECTURES)
    except (AllocationError, GraphError):
        return
    assert found == spec
    assert read_spec(write(json.dumps(spec.to_dict()), "a.json"), ARCHITECTURES) == spec


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_spelled_out_and_read_again(write: Write, preset: str, graph: str) -> None:
    spec = read_spec(preset, ARCHITECTURES, [f"graph={json.dumps(GRAPHS[graph])}"])
    made = PRESETS[preset](build_graph(GRAPHS[graph], ARCHITECTURES))
    assert spec.ensemble(ARCHITECTURES) == made
    assert (spec.name, spec.preset) == (preset, preset)
    assert read_spec(write(spec.to_yaml()), ARCHITECTURES) == spec
    data = spec.to_dict()
    assert set(CHOICES) <= data.keys()
    del data["preset"]  # nothing hangs on it any more
    without = read_spec(write(data), ARCHITECTURES)
    assert without.preset is None
    assert without.ensemble(ARCHITECTURES) == made
    SCHEMA.validate(data)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_alone_is_a_whole_run(write: Write, preset: str) -> None:
    spec = read_spec(preset, ARCHITECTURES)
    assert read_spec(write(f"preset: {preset}\nname: {preset}"), ARCHITECTURES).ensemble(
        ARCHITECTURES
    ) == spec.ensemble(ARCHITECTURES)


def test_an_architecture_may_have_an_argument_called_blocks(write: Write) -> None:
    graph = {"name": "llama", "blocks": 2, "width": 8, "hidden": 8, "heads": 2, "vocabulary": 9, "length": 4}
    spec = read_spec(write({"graph": graph}), ARCHITECTURES)
    assert spec.ensemble(ARCHITECTURES).graph.counted == ("block1", "block2")


def test_a_graph_may_be_given_whole(write: Write) -> None:
    graph = nt_models.mlp(inputs=6, hidden=(5, 4), classes=3)
    spec = read_spec(write({"preset": "neurotrails", "graph": graph.to_dict()}), ARCHITECTURES)
    assert spec.ensemble(ARCHITECTURES) == PRESETS["neurotrails"](graph)
    assert spec.structure == MultiHead(split=1, heads=3)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_examples_fit_the_schema_and_read_again_as_themselves(write: Write, path: Path) -> None:
    SCHEMA.validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    spec = read_spec(path, ARCHITECTURES)
    assert isinstance(spec.ensemble(ARCHITECTURES), EnsembleSpec)
    assert read_spec(write(spec.to_yaml()), ARCHITECTURES) == spec


# What a preset stands for, and what lies over it.


def test_a_file_lies_over_its_preset(write: Write) -> None:
    spec = read_spec(
        write(
            small(
                preset="neurotrails",
                topology={"sparsity": 0.5, "drop_fraction": {"until": 0.75}, "allocation": "er"},
                structure={"heads": 2},
            )
        ),
        ARCHITECTURES,
    )
    assert isinstance(spec.topology, Dynamic)
    assert spec.topology.sparsity == 0.5
    assert spec.topology.drop_fraction == DropFraction(start=0.5, until=0.75)
    assert spec.topology.allocation.kind == "er"
    assert spec.structure == MultiHead(split=1, heads=2)


def test_another_kind_replaces_the_whole(write: Write) -> None:
    content = small(preset="rigl_paper", topology={"kind": "static", "sparsity": 0.5})
    assert read_spec(write(content), ARCHITECTURES).topology == Static(sparsity=0.5)


def test_a_third_of_the_blocks_of_the_files_own_graph_is_shared(write: Write) -> None:
    content = {"preset": "treenet", "graph": {"name": "wide_resnet", "depth": 28, "width": 1}}
    assert read_spec(write(content), ARCHITECTURES).structure == MultiHead(split=4, heads=3)


def test_a_recipe_needs_no_kind_to_change_the_default_optimizer(write: Write) -> None:
    spec = read_spec(write(small(training={"optimizer": {"lr": 0.01}, "batch_size": 7})), ARCHITECTURES)
    assert spec.training == Training(optimizer=SGD(lr=0.01), batch_size=7)
    other = read_spec(write(small(training={"optimizer": {"kind": "adam"}})), ARCHITECTURES)
    assert other.training.optimizer == Adam()


@pytest.mark.parametrize("text", ["5e-4", "5.0e-4", "0.0005", "5E-4", ".0005", "5.e-4"])
def test_floats_as_people_write_them_are_floats(write: Write, text: str) -> None:
    """YAML 1.1 reads ``5e-4`` as text."""
    content = f"""
preset: rigl
graph: {{name: wide_resnet, depth: 10, width: 1, dropout: {text}}}
topology: {{drop_fraction: {text}, sparsity: {text}}}
training: {{optimizer: {{weight_decay: {text}}}, clip_norm: {text}}}
"""
    spec = read_spec(write(content), ARCHITECTURES)
    assert isinstance(spec.topology, Dynamic)
    assert spec.topology.drop_fraction.start == spec.topology.sparsity == 0.0005
    assert spec.training.optimizer.weight_decay == spec.training.clip_norm == 0.0005
    assert read_spec(write(spec.to_yaml()), ARCHITECTURES) == spec


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("topology.sparsity=0.9", "topology.sparsity", 0.9),
        ("topology.sparsity=9e-1", "topology.sparsity", 0.9),
        ("topology.drop_fraction=0.2", "topology.drop_fraction", DropFraction(start=0.2)),
        ("topology.drop_fraction.until=0.5", "topology.drop_fraction.until", 0.5),
        ("topology.prune=random", "topology.prune.kind", "random"),
        ("topology.allocation={kind: er, dense: ['@last']}", "topology.allocation.dense", ("@last",)),
        ("structure.split=stage2.1", "structure.split", "stage2.1"),
        ("training.optimizer.lr=5e-4", "training.optimizer.lr", 0.0005),
        ("training.optimizer.kind=adamw", "training.optimizer.kind", "adamw"),
        ("plan.epochs=20", "plan", OneRun(epochs=20)),
        ("name=a=b", "name", "a=b"),
        ("seed=7", "seed", 7),
        ("data.source=cifar100", "data.source", "cifar100"),
        ("loss=null", "loss", None),
    ],
)
def test_overrides_reach_any_depth(override: str, path: str, value: Any) -> None:
    found: Any = read_spec("neurotrails", ARCHITECTURES, [override])
    for step in path.split("."):
        found = getattr(found, step)
    assert found == value


def test_later_overrides_win_and_earlier_ones_stay() -> None:
    spec = read_spec(
        "rigl", ARCHITECTURES, ["seed=1", "topology.sparsity=0.5", "seed=2", "topology.interval=9"]
    )
    assert spec.seed == 2
    assert isinstance(spec.topology, Dynamic)
    assert (spec.topology.sparsity, spec.topology.interval) == (0.5, 9)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abkind"), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from(["a", "b", "kind", "name"]), json_values, max_size=4)


@given(mappings, mappings)
def test_merging_changes_neither_and_is_idempotent(base: dict[str, Any], over: dict[str, Any]) -> None:
    before = copy.deepcopy((base, over))
    merged = merge(base, over)
    assert (base, over) == before
    assert merge(merged, over) == merged
    assert merge({}, over) == merge(over, {}) == over
    assert merged.keys() == base.keys() | over.keys()
    assert all(merged[key] == base[key] for key in base.keys() - over.keys())


# Mistakes.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected keys and values, found NoneType"),
        ("- a\n- b", "expected keys and values, found list"),
        ("seven", "expected keys and values, found str"),
        ("a: [", "not YAML: while parsing"),
        ("a: b: c", "not YAML: mapping values are not allowed here"),
        ("a: *b", "not YAML: aliases"),
        ("a: !!python/object/apply:os.system [ls]", "not YAML: tags (!name) are not read; leave it out"),
        (b"\xff\xfe\x00", "not YAML: 'utf-8' codec can't decode"),
        ("\tpreset: rigl", "not YAML: while scanning"),
    ],
)
def test_what_is_no_mapping_is_one_error(write: Write, content: str | bytes, message: str) -> None:
    path = write(content)
    with pytest.raises(SpecError) as caught:
        read_spec(path, ARCHITECTURES)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_what_is_no_json_is_one_error(write: Write) -> None:
    with pytest.raises(SpecError, match=r"a\.json: not JSON: Expecting"):
        read_spec(write("{", "a.json"), ARCHITECTURES)


def test_a_file_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: cannot be read: No such file"):
        read_spec(tmp_path / "none.yaml", ARCHITECTURES)
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        read_spec(tmp_path / "folder.yaml", ARCHITECTURES)


def test_an_unknown_preset_suggests_the_nearest(write: Write) -> None:
    with pytest.raises(SpecError, match=r"neurotrial: neither .* nor a preset; did you mean 'neurotrails'\?"):
        read_spec("neurotrial", ARCHITECTURES)
    with pytest.raises(SpecError, match=r"preset: no preset 'rig'; did you mean 'rigl'\?"):
        read_spec(write(small(preset="rig")), ARCHITECTURES)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (VERSION + 1, f"version: {VERSION + 1} is newer than this library understands ({VERSION}); upgrade"),
        (10**30, "is newer than this library understands"),
        (0, "version: input should be 1; found 0"),
        ("1.0", "version: input should be 1; found '1.0'"),
        (None, "version: input should be 1; found None"),
    ],
)
def test_a_file_of_another_version_is_one_error(write: Write, version: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_spec(write(small(version=version, nonsense=True)), ARCHITECTURES)
    assert message in str(caught.value)


DYNAMIC = {"kind": "dynamic", "sparsity": 0.5}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    (small(topolgy=DYNAMIC), "topolgy: unknown key; did you mean 'topology'?"),
    (
        small(topology={**DYNAMIC, "drop_fraction": {"strt": 0.3}}),
        "topology.drop_fraction.strt: unknown key; did",
    ),
    (small(topology={**DYNAMIC, "sparsty": 0.3}), "topology.sparsty: unknown key; did you mean 'sparsity'?"),
    (
        small(topology={**DYNAMIC, "kind": "dynamc"}),
        "topology.kind: no kind 'dynamc'; did you",
    ),
    (small(topology={"sparsity": 0.5}), "topology.kind: missing; it must be given"),
    (small(topology="dense"), "topology: expected keys and values; found 'dense'"),
    (small(topology={**DYNAMIC, "sparsity": 1}), "topology.sparsity: input should be less than 1; found 1"),
    (small(topology={**DYNAMIC, "sparsity": "most"}), "topology.sparsity: input should be a valid number"),
    (
        small(topology={**DYNAMIC, "sparsity": float("nan")}),
        "topology.sparsity: input should be a finite",
    ),
    (small(topology={**DYNAMIC, "interval": 0.5}), "topology.interval: input should be a valid integer"),
    (
        small(topology={**DYNAMIC, "allocation": "erkk"}),
        "topology.allocation.kind: no kind 'erkk'",
    ),
    (
        small(topology={**DYNAMIC, "allocation": {"kind": "er", "dens": []}}),
        "allocation.dens: unknown",
    ),
    (
        small(topology={**DYNAMIC, "prune": {"kind": "soft_magnitude", "temperatur": 2}}),
        "topology.prune.temperatur: unknown key; did you mean 'temperature'?",
    ),
    (small(structure={"kind": "multi_head", "heads": 2}), "structure.split: missing; it must be given"),
    (
        small(structure={"kind": "multi_head", "split": -1, "heads": 2}),
        "structure.split: expected a number",
    ),
    (
        small(structure={"kind": "multi_head", "split": 9, "heads": 2}),
        "split: expected at most the 3",
    ),
    (small(structure={"kind": "multi_head", "split": "hidden9", "heads": 2}), "no counted block 'hidden9'"),
    (small(plan={"epochs": 3, "steps": 4}), "plan: expected epochs or steps, found both"),
    (
        small(training={"optimizer": {"kind": "sgd", "momentm": 0.9}}),
        "training.optimizer.momentm: unknown key; did",
    ),
    (
        small(training={"optimizer": {"kind": "sdg"}}),
        "training.optimizer.kind: no kind 'sdg'; did you mean",
    ),
    (
        small(training={"learning_rate": {"milestones": [0.5, 2]}}),
        "learning_rate.milestones.1: input",
    ),
    (small(training=None), "training: expected keys and values; found None"),
    (
        small(data={"augment": "flip"}),
        "data.augment: input should be 'none', 'crop' or 'flip_crop'",
    ),
    (small(seed=-1), "seed: input should be greater than or equal to 0; found -1"),
    (small(preset=["rigl"]), "preset: no preset ['rigl']"),
    ({"graph": {}}, "graph.name: no architecture None; known: llama, llama_1b"),
    ({"graph": {"name": ["mlp"]}}, "graph.name: no architecture ['mlp']"),
    (
        {"graph": {"name": "wide_restnet"}},
        "graph.name: no architecture 'wide_restnet'; did you mean",
    ),
    (
        {"graph": {"name": "mlp", "inputs": 4, "hiden": [3]}},
        "graph.hiden: unknown argument of mlp",
    ),
    ({"graph": {"name": "mlp"}}, "graph.inputs: missing; it must be given"),
    ({"graph": {"name": "mlp", "inputs": 4, "hidden": [0]}}, "block 'hidden1'"),
    ({"graph": {"name": "wide_resnet", "depth": 11}}, "expected a depth of 10, 16, 22"),
    ({"graph": {"blocks": 3}}, "graph.input: missing"),
    (
        small(topology={**DYNAMIC, "allocation": {"kind": "er", "dense": ["*"]}}),
        "from 0 to 0",
    ),
    (
        small(topology={**DYNAMIC, "allocation": {"kind": "er", "dense": ["@frist"]}}),
        "mean '@first'?",
    ),
]


@pytest.mark.parametrize("preset", [False, True], ids=["plain", "preset"])
@pytest.mark.parametrize(("content", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_a_mistake_gets_one_error_with_the_full_path(
    write: Write, content: dict[str, Any], message: str, preset: bool
) -> None:
    if preset and "preset" not in content:
        content = {"preset": "single", **content}
        if content.get("topology") == {"sparsity": 0.5}:
            message = "topology.sparsity: unknown key"  # the preset has said that it is dense
    path = write(content)
    with pytest.raises(NeuroTrailsError) as caught:
        read_spec(path, ARCHITECTURES)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("preset", [False, True])
@pytest.mark.parametrize("graph", [None, 3, [], "mlp", True])
def test_a_graph_that_is_no_mapping_is_one_error(write: Write, graph: Any, preset: bool) -> None:
    content = {"graph": graph, **({"preset": "rigl"} if preset else {})}
    with pytest.raises(SpecError, match="graph: expected keys and values; found"):
        read_spec(write(content), ARCHITECTURES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1: 2", "1: expected a name as key, found int; quote it"),
        ("graph: {name: mlp, inputs: 4, 7: 3}", "graph.7: expected a name as key, found int"),
        (
            "preset: rigl\ngraph: {name: mlp, inputs: 4, on: 3}",
            "graph.True: expected a name as key",
        ),
        ("preset: rigl\ntopology: {2020-01-01: 3}", "expected a name as key, found date"),
        ("data: {~: 3}", "data.None: expected a name as key, found NoneType"),
    ],
)
def test_keys_that_yaml_reads_as_something_else_are_one_error(
    write: Write, content: str, message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        read_spec(write(content), ARCHITECTURES)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("topology.sparsity", "--set topology.sparsity: expected key=value, topology.sparsity=0.9 say"),
        ("=3", "--set =3: expected key=value"),
        ("", "--set : expected key=value"),
        ("topology.sparsity=[", "--set topology.sparsity=[: the value is not YAML"),
        ("topology.sparsity=", "topology.sparsity: input should be a valid number; found None"),
        ("topology.sparsty=0.9", "topology.sparsty: unknown key; did you mean 'sparsity'?"),
        ("topology..x=1", "topology.: unknown key"),
        ("topology.sparsity.x=1", "topology.sparsity: input should be a valid number"),
        ("graph.depth=11", "expected a depth of 10, 16"),
        ("graph.dept=16", "graph.dept: unknown argument of wide_resnet; did you mean 'depth'?"),
        ("graph=7", "graph: expected keys and values; found 7"),
        ("preset=rig", "preset: no preset 'rig'; did you mean 'rigl'?"),
        ("version=2", "version: 2 is newer"),
        ("structure.split=stage4.1", "structure.split: no counted block 'stage4.1'; did you mean 'stage"),
    ],
)
def test_a_wrong_override_is_one_error(override: str, message: str) -> None:
    with pytest.raises(NeuroTrailsError) as caught:
        read_spec("neurotrails", ARCHITECTURES, [override])
    assert message in str(caught.value)


JUNK: tuple[Any, ...] = (
    None,
    [],
    {},
    "x",
    "",
    -1,
    0,
    40,
    True,
    1.5,
    float("nan"),
    float("-inf"),
    ["x"],
    {"kind": "x"},
    {"kind": ["x"]},
    {"name": None},
    datetime.date(2020, 1, 1),
    b"x",
)


@settings(max_examples=400)
@given(
    st.sampled_from(sorted(PRESETS)),
    st.sampled_from(sorted(GRAPHS)),
    st.sampled_from(JUNK),
    st.booleans(),
    st.data(),
)
def test_junk_anywhere_is_a_spec_or_an_error_of_this_package(
    preset: str, graph: str, junk: Any, keep_preset: bool, data: st.DataObject
) -> None:
    file: Any = read_spec(preset, ARCHITECTURES, [f"graph={json.dumps(GRAPHS[graph])}"]).to_dict()
    if not keep_preset:
        del file["preset"]
    place, key = file, data.draw(st.sampled_from(sorted(file)))
    while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place)))
    place[key] = junk
    try:
        spec = spell_out(file, ARCHITECTURES)
    except NeuroTrailsError:
        return
    assert RunSpec(**yaml.safe_load(spec.to_yaml())) == spec


# The schema.


@pytest.mark.parametrize(
    "content",
    [
        {"preset": "neurotrails"},
        {"preset": "neurotrails", "topology": {"sparsity": 0.9}, "structure": {"heads": 5}},
        small(topology={**DYNAMIC, "allocation": "er", "prune": "random", "drop_fraction": 0.3}),
        small(training={"optimizer": {"lr": 0.1}}),
        small(structure={"kind": "multi_head", "split": "hidden1", "heads": 2}),
    ],
    ids=str,
)
def test_the_schema_allows_what_can_be_read(write: Write, content: dict[str, Any]) -> None:
    SCHEMA.validate(content)
    read_spec(write(content), ARCHITECTURES)


@pytest.mark.parametrize(
    "content",
    [
        small(topolgy=DYNAMIC),
        small(topology={**DYNAMIC, "sparsty": 0.3}),
        small(topology={**DYNAMIC, "sparsity": 1}),
        small(topology={**DYNAMIC, "kind": "dynamc"}),
        small(structure={"kind": "multi_head", "split": -1, "heads": 2}),
        small(data={"augment": "flip"}),
        small(version=2),
        small(seed=-1),
        [],
    ],
    ids=str,
)
def test_the_schema_refuses_what_cannot(write: Write, content: Any) -> None:
    assert not SCHEMA.is_valid(content)
    with pytest.raises(SpecError):
        read_spec(write(content if isinstance(content, dict) else "[]"), ARCHITECTURES)


def test_the_schema_is_one() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema
    assert set(schema["properties"]) == set(RunSpec.model_fields)


@pytest.mark.parametrize("text", ["graph: &a [*a]", "a: &a [1]\nb: *a", "[" * 3000])
def test_yaml_that_could_be_endless_is_an_error(write: Write, text: str) -> None:
    with pytest.raises(SpecError):
        read_spec(write(text), ARCHITECTURES)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../x"])
def test_a_name_that_is_no_folder_is_an_error(name: str) -> None:
    with pytest.raises(SpecError, match="name: "):
        read_spec("neurotrails", ARCHITECTURES, [f"name={name!r}"])


@pytest.mark.parametrize("override", ["name=2024-13-45", "seed=" + "9" * 5000])
def test_a_value_that_python_cannot_make_is_an_error(override: str) -> None:
    with pytest.raises(SpecError):
        read_spec("neurotrails", ARCHITECTURES, [override])


def test_a_key_that_stands_twice_is_an_error(write: Write) -> None:
    with pytest.raises(SpecError, match=r"'topology' stands twice"):
        read_spec(write("preset: rigl\ntopology: {interval: 1}\ntopology: {interval: 2}"), ARCHITECTURES)


@pytest.mark.parametrize("heads", ["true", "10000000000000000000000", "0", "-1", "1.5", "three"])
def test_a_number_of_heads_that_cannot_be_is_an_error(heads: str) -> None:
    with pytest.raises(SpecError, match=r"structure\.heads: "):
        read_spec("neurotrails", ARCHITECTURES, [f"structure.heads={heads}"])
