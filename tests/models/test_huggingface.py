"""LLaMA in Hugging Face's layout, without transformers; tests/hf compares it with the real thing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import nt_models
from nt_core import (
    BatchEnsemble,
    CheckpointError,
    Dense,
    Dynamic,
    EnsembleSpec,
    GradualPruning,
    GraphError,
    Independent,
    MultiHead,
    Single,
    SpecError,
    Static,
    TopologyError,
    initial_masks,
)
from nt_core.checkpoint import Checkpoint
from nt_core.testing.data import random_values
from nt_models.huggingface import folder as huggingface
from nt_models.huggingface.folder import load_llama, read_llama_config, save_llama
from nt_models.huggingface.tensors import tensor_name
from nt_models.llama import llama, llama_arguments

SIZES = {"blocks": 2, "width": 12, "hidden": 20, "heads": 2, "kv_heads": 1, "vocabulary": 11, "length": 7}
GRAPH = llama(**SIZES)
SCALINGS = (
    None,
    {"kind": "linear", "factor": 2.0},
    {"kind": "llama3", "factor": 8.0, "low_turns": 1.0, "high_turns": 4.0, "original_length": 64},
)
STRUCTURES = (Single(), MultiHead(split=1, heads=3), MultiHead(split=2, heads=2), Independent(count=2))
CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def trained(structure: Any = Single(), seed: int = 0, **changes: Any) -> Checkpoint:  # noqa: B008
    spec = EnsembleSpec(graph=llama(**SIZES | changes), structure=structure)
    return Checkpoint(spec=spec, values=random_values(spec.layout, seed, np.float32), masks={})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a pretrained model."""
    save_llama(tmp_path / "pretrained", trained())
    return tmp_path / "pretrained"


def change_config(folder: Path, **changes: Any) -> None:
    """Change fields of a config; those that become ... are deleted."""
    content = json.loads((folder / CONFIG).read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not ...}
    (folder / CONFIG).write_text(json.dumps(kept))


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)


def shard(folder: Path, files: int = 3) -> None:
    """Divide a model's tensors among files."""
    tensors = load_file(folder / TENSORS)
    places = {name: f"model-{i % files}.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file)
    (folder / TENSORS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def assert_same_values(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


# Round trips.


def test_a_single_model_comes_back_to_the_bit(folder: Path) -> None:
    loaded = load_llama(folder)
    assert loaded.spec == EnsembleSpec(graph=GRAPH)
    assert not loaded.masks
    assert_same_values(loaded.values, trained().values)
    assert {value.dtype for value in loaded.values.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: f"{s.kind}{s.members}")
def test_every_part_starts_from_the_pretrained_values(folder: Path, structure: Any) -> None:
    source = {tensor_name(p): trained().values[p.name] for p in trained().spec.layout.weights}
    spec = EnsembleSpec(graph=GRAPH, structure=structure)
    loaded = load_llama(folder, spec)
    assert loaded.values.keys() == {placed.name for placed in spec.layout.weights}
    for placed in spec.layout.weights:
        np.testing.assert_array_equal(loaded.values[placed.name], source[tensor_name(placed)])
    arrays = [value for value in loaded.values.values() if value.flags.writeable]
    assert len(arrays) == len({id(value) for value in arrays}) == len(spec.layout.weights)


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: f"{s.kind}{s.members}")
def test_a_member_is_written_with_the_backbone(tmp_path: Path, structure: Any) -> None:
    before = trained(structure)
    for head in range(1, before.spec.members + 1):
        save_llama(tmp_path / str(head), before, head=head)
        written = load_file(tmp_path / str(head) / TENSORS)
        for placed in before.spec.layout.weights:
            if placed.part in ("backbone", f"head{head}"):
                np.testing.assert_array_equal(written.pop(tensor_name(placed)), before.values[placed.name])
        assert not written


@given(st.data())
def test_arguments_are_read_off_any_llama(data: st.DataObject) -> None:
    kv_heads, factor, size = (data.draw(st.integers(1, 3)) for _ in range(3))
    heads = kv_heads * factor
    arguments = {
        "blocks": data.draw(st.integers(1, 3)),
        "width": data.draw(st.integers(1, 9)),
        "hidden": data.draw(st.integers(1, 9)),
        "heads": heads,
        "kv_heads": kv_heads,
        "vocabulary": data.draw(st.integers(1, 9)),
        "length": data.draw(st.integers(1, 9)),
        "rotary_base": data.draw(st.floats(1, 1e6)),
        "eps": data.draw(st.floats(1e-8, 1e-2)),
        "head_dim": size * 2,
        "attention_bias": data.draw(st.booleans()),
        "rotary_scaling": data.draw(st.sampled_from(SCALINGS)),
    }
    assert llama_arguments(llama(**arguments)) == arguments


@pytest.mark.parametrize("make", [nt_models.mlp, nt_models.llama_tiny])
def test_other_graphs_are_no_llama(tmp_path: Path, make: Any) -> None:
    graph = make(inputs=3, hidden=(2,), classes=2) if make is nt_models.mlp else headless(make())
    with pytest.raises(GraphError, match=r"expected one that nt_models\.llama makes, found '\w+'"):
        save_llama(tmp_path, Checkpoint(spec=EnsembleSpec(graph=graph), values={}, masks={}))
    assert not list(tmp_path.iterdir())


def headless(graph: Any) -> Any:
    """Change one op of the last decoder block: no LLaMA any more, though the first block still looks it."""
    *before, block, classifier = graph.blocks
    nodes = [
        replace(n, op=n.op.replace(function="gelu")) if n.op.kind == "activation" else n for n in block.nodes
    ]
    return replace(
        graph, blocks=(*before, replace(block, nodes=tuple(nodes)), classifier), origin={"name": "x"}
    )


def test_the_length_is_free_up_to_the_greatest(folder: Path) -> None:
    assert read_llama_config(folder) == GRAPH
    assert read_llama_config(folder, length=3) == llama(**SIZES | {"length": 3})
    with pytest.raises(CheckpointError, match=r"max_position_embeddings: expected .* at most 7, found 8"):
        read_llama_config(folder, length=8)
    longer = EnsembleSpec(graph=llama(**SIZES | {"length": 9}))
    with pytest.raises(CheckpointError, match="at most 7, found 9"):
        load_llama(folder, longer)


def test_what_no_graph_holds_comes_back(folder: Path, tmp_path: Path) -> None:
    change_config(folder, bos_token_id=5, eos_token_id=[6, 7], max_position_embeddings=9, other=1)
    loaded = load_llama(folder, EnsembleSpec(graph=GRAPH))
    save_llama(tmp_path / "again", loaded)
    content = json.loads((tmp_path / "again" / CONFIG).read_text())
    assert (content["bos_token_id"], content["eos_token_id"]) == (5, [6, 7])
    assert content["max_position_embeddings"] == 9
    assert "other" not in content


def test_shards_are_one_model(folder: Path) -> None:
    shard(folder)
    assert_same_values(load_llama(folder).values, trained().values)


def test_a_single_file_comes_before_shards_as_in_transformers(folder: Path) -> None:
    (folder / INDEX).write_text("broken")
    assert_same_values(load_llama(folder).values, trained().values)


def test_old_buffers_are_ignored(folder: Path) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)

    change_tensors(folder, add)
    assert_same_values(load_llama(folder).values, trained().values)


@pytest.mark.parametrize("scaling", SCALINGS, ids=["plain", "linear", "llama3"])
@pytest.mark.parametrize("changes", [{"head_dim": 8}, {"attention_bias": True}, {"width": 10, "head_dim": 2}])
def test_heads_of_any_size_biases_and_scaled_positions_come_back(
    tmp_path: Path, scaling: Any, changes: dict[str, Any]
) -> None:
    before = trained(rotary_scaling=scaling, **changes)
    save_llama(tmp_path, before)
    assert read_llama_config(tmp_path) == before.spec.graph
    loaded = load_llama(tmp_path)
    assert_same_values(loaded.values, before.values)
    assert EnsembleSpec.from_dict(json.loads(json.dumps(loaded.spec.to_dict()))) == before.spec
    biases = [name for name in load_file(tmp_path / TENSORS) if name.endswith("bias")]
    assert len(biases) == (8 if "attention_bias" in changes else 0)


def test_without_a_scaling_a_graphs_file_is_as_it_always_was() -> None:
    ops = [node["op"] for block in GRAPH.to_dict()["blocks"] for node in block["nodes"]]
    assert not any("rotary_scaling" in op for op in ops)


def test_a_mistral_is_read_where_its_window_hides_nothing(folder: Path, tmp_path: Path) -> None:
    change_config(folder, model_type="mistral", sliding_window=None)
    assert_same_values(load_llama(folder).values, trained().values)
    change_config(folder, sliding_window=5)
    graph = read_llama_config(folder, length=5)
    save_llama(tmp_path / "again", load_llama(folder, EnsembleSpec(graph=graph)))
    content = json.loads((tmp_path / "again" / CONFIG).read_text())
    assert (content["model_type"], content["max_position_embeddings"]) == ("llama", 5)
    change_config(folder, sliding_window=..., num_key_value_heads=..., num_attention_heads=8, head_dim=2)
    assert llama_arguments(read_llama_config(folder))["kv_heads"] == 8  # transformers' own default


def test_numbers_of_special_tokens_are_not_invented(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / CONFIG).read_text())
    assert [content[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [None] * 3
    change_config(folder, bos_token_id=..., eos_token_id=..., pad_token_id=7)
    save_llama(tmp_path / "again", load_llama(folder))
    content = json.loads((tmp_path / "again" / CONFIG).read_text())
    # What transformers reads from the folder, which says nothing of the first two.
    assert [content[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, 7]


# Tied embeddings.


@pytest.mark.parametrize("there", [False, True])
def test_tied_projections_start_from_the_embedding(folder: Path, there: bool) -> None:
    def tie(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        if not there:
            del tensors["lm_head.weight"]

    change_config(folder, tie_word_embeddings=True)
    change_tensors(folder, tie)
    loaded = load_llama(folder, EnsembleSpec(graph=GRAPH, structure=MultiHead(split=1, heads=2)))
    embedding = loaded.values["backbone/embedding/embedding1.weight"]
    for head in (1, 2):
        projection = loaded.values[f"head{head}/lm_head/projection.weight"]
        np.testing.assert_array_equal(projection, embedding)
        assert not np.shares_memory(projection, embedding)


def test_a_tied_projection_that_differs_is_refused(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)
    with pytest.raises(
        CheckpointError, match=r"tie_word_embeddings: expected lm_head\.weight absent or equal"
    ):
        load_llama(folder)


def test_a_tied_projection_of_another_shape_is_refused(folder: Path) -> None:
    def cut(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:5]

    change_config(folder, tie_word_embeddings=True)
    change_tensors(folder, cut)
    with pytest.raises(CheckpointError, match=r"of another shape: lm_head\.weight \(expected \(11, 12\)"):
        load_llama(folder)


# Masks.


@pytest.mark.parametrize("topology", [Static(sparsity=0.6), Dynamic(sparsity=0.6)])
def test_initial_masks_are_those_of_compile(folder: Path, topology: Any) -> None:
    spec = EnsembleSpec(graph=GRAPH, structure=MultiHead(split=1, heads=2), topology=topology)
    dense = load_llama(folder, spec.replace(topology=Dense()))
    loaded = load_llama(folder, spec, seed=3)
    assert loaded.masks == dict(initial_masks(topology, spec.layout, seed=3))
    assert loaded.masks != load_llama(folder, spec, seed=4).masks
    for name, value in loaded.values.items():
        active = loaded.masks[name].dense() if name in loaded.masks else True
        np.testing.assert_array_equal(value, np.where(active, dense.values[name], 0))


def test_masks_by_magnitude_keep_the_largest_of_each_weight(folder: Path) -> None:
    structure = MultiHead(split=1, heads=2)
    spec = EnsembleSpec(graph=GRAPH, structure=structure, topology=Static(sparsity=0.6))
    dense = load_llama(folder, spec.replace(topology=Dense()))
    loaded = load_llama(folder, spec, masks="magnitude")
    assert {name: mask.count for name, mask in loaded.masks.items()} == dict(spec.counts)
    for name, mask in loaded.masks.items():
        size = np.abs(dense.values[name])
        active = mask.dense()
        assert size[active].min() >= size[~active].max(initial=0)
        np.testing.assert_array_equal(loaded.values[name], np.where(active, dense.values[name], 0))
    save_llama(folder, loaded, head=2, overwrite=True)  # inactive ones are 0


def test_nan_has_no_magnitude(folder: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"][1, 2] = np.nan

    change_tensors(folder, spoil)
    spec = EnsembleSpec(graph=GRAPH, topology=Static(sparsity=0.5))
    with pytest.raises(
        TopologyError, match=r"'head1/lm_head/projection\.weight': expected numbers, found NaN"
    ):
        load_llama(folder, spec, masks="magnitude")


def test_gradual_pruning_starts_full(folder: Path) -> None:
    spec = EnsembleSpec(graph=GRAPH, topology=GradualPruning(sparsity=0.6))
    loaded = load_llama(folder, spec, masks="magnitude")
    assert all(mask.count == mask.size for mask in loaded.masks.values())
    assert_same_values(loaded.values, trained().values)


def test_other_masks_are_unknown(folder: Path) -> None:
    with pytest.raises(SpecError, match="masks: expected 'initial' or 'magnitude', found 'best'"):
        load_llama(folder, masks="best")  # type: ignore[arg-type]


# What is refused: tensors.


def test_all_wrong_tensors_are_named_at_once(folder: Path) -> None:
    keys, last = "model.layers.0.self_attn.k_proj.weight", "lm_head.weight"
    whole, cut = (11, 12), (5, 12)

    def spoil(tensors: dict[str, Any]) -> None:
        del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.2.mlp.up_proj.weight"] = np.ones(3, np.float32)
        tensors["score.weight"] = np.ones(3, np.float32)
        tensors[last] = tensors[last][: cut[0]]
        tensors[keys] = np.ones((12, 6), np.float32)
        tensors["model.layers.0.self_attn.q_proj.weight"] = np.ones((12, 12), np.int8)

    change_tensors(folder, spoil)
    with pytest.raises(CheckpointError) as error:
        load_llama(folder)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"{folder}: its tensors are not those that its config.json describes; restore")
    assert lines[1:] == [
        "missing: model.layers.1.mlp.up_proj.weight, model.norm.weight",
        "extra: model.layers.2.mlp.up_proj.weight, score.weight",
        f"of another shape: {keys} (expected (6, 12), found (12, 6)), {last} (expected {whole}, found {cut})",
        "of another dtype: model.layers.0.self_attn.q_proj.weight (expected F32 or F16 or BF16, found I8)",
    ]


def test_long_lists_are_cut_and_counted(folder: Path) -> None:
    change_config(folder, num_hidden_layers=9)
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.2\.\S+(, \S+){11} and 51 more$"):
        load_llama(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / TENSORS).rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors, or shards .* found neither"):
        load_llama(folder)


def test_truncated_files_are_named(folder: Path) -> None:
    content = (folder / TENSORS).read_bytes()
    for length in (0, 5, 100, len(content) - 1):
        (folder / TENSORS).write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=rf"{TENSORS}: not a safetensors file, or truncated"):
            load_llama(folder)


def test_missing_shards_are_named_at_once(folder: Path) -> None:
    shard(folder)
    for file in (0, 2):
        (folder / f"model-{file}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing shards: model-0\.safetensors, model-2\.safetensors"):
        load_llama(folder)


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    shard(folder)
    tensors = load_file(folder / "model-0.safetensors") | load_file(folder / "model-1.safetensors")
    save_file(tensors, folder / "model-1.safetensors")
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors: '.*' is also in model-0\.safetensors"):
        load_llama(folder)


@pytest.mark.parametrize("place", ["../model.safetensors", "/model.safetensors", "", ".", "..", 3, None])
def test_shards_lie_beside_their_index(folder: Path, place: Any) -> None:
    (folder / TENSORS).rename(folder.parent / TENSORS)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": place}}))
    with pytest.raises(CheckpointError, match=rf"{re.escape(INDEX)}: expected 'weight_map'"):
        load_llama(folder)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', "[]", "{", ""])
def test_a_damaged_index_is_named(folder: Path, content: str) -> None:
    (folder / TENSORS).unlink()
    (folder / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(INDEX)):
        load_llama(folder)


# What is refused: configs.

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "qwen2"}, "model_type: input should be 'llama' or 'mistral'; found 'qwen2'"),
    ({"model_type": "mistral", "sliding_window": 6}, "sliding_window: expected a window .* the 7 .* found 6"),
    ({"hidden_act": "gelu"}, "hidden_act: input should be 'silu'; found 'gelu'"),
    ({"attention_bias": 3}, "attention_bias: .* found 3"),
    ({"mlp_bias": True}, "mlp_bias: input should be False; found True"),
    (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "expected low_freq_factor, high_freq",
    ),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling: expected factor for 'linear'; add"),
    ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "expected high_turns above low_turns=4, found 4"),
    ({"rope_scaling": LLAMA3 | {"factor": -8.0}}, "factor: .* found -8.0"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.type: .* found 'dynamic'"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: .* found 0.5"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type: .* found 'yarn'"),
    ({"quantization_config": {"bits": 4}}, "quantization_config: input should be None"),
    ({"hidden_size": ...}, "hidden_size: missing; it must be given"),
    ({"vocab_size": 0}, "vocab_size: .* found 0"),
    (
        {"num_attention_heads": 5, "head_dim": ...},
        "expected a divisor of hidden_size=12",
    ),
    ({"num_attention_heads": 4, "head_dim": 3}, "even size .* found heads=4 of size 3"),
    ({"num_attention_heads": 6, "num_key_value_heads": 4, "head_dim": 2}, "heads=6 of size 2, kv_heads=4"),
    ({"rope_theta": -1.0, "rope_parameters": None}, "rotary_base: .* greater than 0; found -1.0"),
    ({"rms_norm_eps": 0.0}, "eps: .* greater than 0; found 0.0"),
]


@pytest.mark.parametrize(
    ("changes", "message"), WRONG, ids=lambda w: "-".join(w) if isinstance(w, dict) else ""
)
def test_configs_that_llama_does_not_compute_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    change_config(folder, **changes)
    for read in (load_llama, read_llama_config):
        with pytest.raises(CheckpointError, match=message) as error:
            read(folder)
        assert str(folder / CONFIG) in str(error.value)


def test_all_wrong_fields_are_named_at_once(folder: Path) -> None:
    change_config(folder, vocab_size=..., mlp_bias=True, hidden_act="relu")
    with pytest.raises(CheckpointError) as error:
        read_llama_config(folder)
    assert [line.partition(":")[0] for line in str(error.value).splitlines()[1:]] == [
        "vocab_size",
        "hidden_act",
        "mlp_bias",
    ]


@pytest.mark.parametrize("content", [None, "", "{", "[]", '"llama"'])
def test_a_missing_or_damaged_config_is_named(folder: Path, content: str | None) -> None:
    (folder / CONFIG).unlink()
    if content is not None:
        (folder / CONFIG).write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(str(folder / CONFIG))):
        load_llama(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 2}, r"kv_heads=1 as its num_key_value_heads says, found 2"),
        ({"rotary_base": 500.0}, r"rotary_base=10000\.0 as its rope_theta says, found 500\.0"),
        ({"blocks": 3, "eps": 1e-5}, r"blocks=2 .* found 3; eps=1e-06 .* found 1e-05"),
    ],
)
def test_a_spec_of_another_network_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_llama(folder, EnsembleSpec(graph=llama(**SIZES | changes)))


# What is refused: writing.


@pytest.mark.parametrize(("structure", "heads"), [(Single(), [0, 2]), (STRUCTURES[1], [None, 0, 4, -1])])
def test_a_head_must_be_there(tmp_path: Path, structure: Any, heads: list[int | None]) -> None:
    for head in heads:
        with pytest.raises(CheckpointError, match=rf"head: expected one of 1 to \d, found {head}"):
            save_llama(tmp_path, trained(structure), head=head)
    assert not list(tmp_path.iterdir())


def test_heads_that_transformers_refuses_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="only if its heads divide its width=13, found heads=2"):
        save_llama(tmp_path, trained(width=13, head_dim=4))


def test_a_wrong_value_is_named(tmp_path: Path) -> None:
    before = trained()
    values = {name: value for name, value in before.values.items() if "norm2" not in name}
    with pytest.raises(CheckpointError, match=r"rms_norm2\.weight'.*found None"):
        save_llama(tmp_path, replace(before, values=values))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", [CONFIG, TENSORS, INDEX])
def test_a_model_is_not_overwritten_unless_asked(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("{}")
    (tmp_path / "tokenizer.json").write_text("theirs")
    with pytest.raises(CheckpointError, match=f"holds {left}; choose another folder, or say overwrite=True"):
        save_llama(tmp_path, trained())
    assert (tmp_path / left).read_text() == "{}"
    save_llama(tmp_path, trained(), overwrite=True)
    assert_same_values(load_llama(tmp_path).values, trained().values)
    assert (tmp_path / "tokenizer.json").read_text() == "theirs"


@pytest.mark.parametrize("step", ["write_tensors", "write_atomically"])
def test_a_crash_leaves_no_mixture(folder: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(huggingface, step, crash)
        with pytest.raises(KeyboardInterrupt):
            save_llama(folder, trained(seed=1), overwrite=True)
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        load_llama(folder)
    save_llama(folder, trained(seed=1), overwrite=True)
    assert_same_values(load_llama(folder).values, trained(seed=1).values)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/model: cannot be written \(Not a directory\)"):
        save_llama(tmp_path / "file" / "model", trained())


def test_members_that_share_kernels_are_no_llama(folder: Path, tmp_path: Path) -> None:
    structure = BatchEnsemble(count=2)
    with pytest.raises(SpecError, match=r"'batch_ensemble' shares kernels.*choose single, independent or"):
        load_llama(folder, EnsembleSpec(graph=GRAPH, structure=structure))
    with pytest.raises(SpecError, match="'batch_ensemble' shares kernels"):
        save_llama(tmp_path / "new", trained(structure), head=1)
    assert not (tmp_path / "new").exists()
