from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nt_models
from nt_core.errors import GraphError, SpecError
from nt_core.graph import (
    INPUT,
    Block,
    BlockGraph,
    Features,
    GraphBuilder,
    Image,
    Node,
    Tensor,
    Tokens,
    architecture,
    ops,
    owner,
)
from nt_core.graph.blocks import BlockKind
from nt_core.testing.models import MODELS
from nt_core.testing.strategies import block_graphs

THREE = Features(count=3)


def linear(inputs: int, outputs: int) -> ops.Linear:
    return ops.Linear(in_features=inputs, out_features=outputs)


def block(name: str, kind: BlockKind, *nodes: tuple[str, Any, tuple[str, ...]], output: str) -> Block:
    made = tuple(Node(name=own, op=op, inputs=inputs) for own, op, inputs in nodes)
    return Block(name=name, kind=kind, nodes=made, output=output)


def layer(name: str, reads: str, kind: BlockKind = "counted", outputs: int = 3) -> Block:
    return block(name, kind, ("fc", linear(3, outputs), (reads,)), output=f"{name}/fc")


def sums(name: str, *reads: str, kind: BlockKind = "counted") -> Block:
    return block(name, kind, ("sum", ops.Add(), reads), output=f"{name}/sum")


def expect_error(message: str, *blocks: Block) -> None:
    with pytest.raises(GraphError) as caught:
        BlockGraph(input=THREE, blocks=blocks)
    assert message in str(caught.value)


# What cannot be.


@pytest.mark.parametrize("op", [ops.Linear(in_features=5, out_features=5), ops.LayerNorm(features=5)])
def test_a_graph_from_a_file_cannot_act_on_an_image_s_width_either(op: ops.Op) -> None:
    node = {"name": "op", "op": op.model_dump(), "inputs": ["input"]}
    flat = {"name": "flat", "op": {"kind": "flatten"}, "inputs": ["a/op"]}
    block = {"name": "a", "kind": "classifier", "nodes": [node, flat], "output": "a/flat"}
    image = {"kind": "image", "channels": 2, "height": 3, "width": 5}
    with pytest.raises(GraphError, match=r"block 'a', op 'op' .* found an image \(2, 3, 5\)"):
        BlockGraph.from_dict({"input": image, "blocks": [block]})


def test_no_blocks() -> None:
    expect_error("at least a classifier block, found no blocks")


def test_a_mismatched_shape_names_block_op_expected_and_found() -> None:
    expect_error(
        "block 'b', op 'fc' (linear): expected 3 features on the last axis, found shape (5,)",
        layer("a", "input", outputs=5),
        layer("b", "a/fc"),
        layer("c", "b/fc", "classifier"),
    )


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (ops.Add(), ("input",), "expected two or more inputs, found 1"),
        (ops.Concat(), ("input",), "expected two or more inputs, found 1"),
        (ops.Activation(), ("input", "input"), "expected 1 inputs, found 2"),
        (ops.Attention(heads=1, kv_heads=1), ("input", "input"), "expected 3 inputs, found 2"),
        (ops.Attention(heads=1, kv_heads=1), ("input",) * 3, "three shapes (length, features), found [(3,)"),
        (
            ops.GlobalAvgPool(),
            ("input",),
            "expected an image (channels, height, width) or a sequence (length, features), found shape (3,)",
        ),
        (ops.ToSequence(), ("input",), "expected an image (channels, height, width), found shape (3,)"),
        (ops.Transpose(), ("input",), "expected a sequence (length, features), found shape (3,)"),
        (ops.ClassToken(features=3), ("input",), "expected a sequence (length, features), found shape (3,)"),
        (ops.Positions(length=3, features=1), ("input",), "expected a sequence (length, features), found"),
        (ops.TakeToken(), ("input",), "expected a sequence (length, features), found shape (3,)"),
        (ops.BatchNorm(channels=4), ("input",), "expected 4 channels on the first axis, found shape (3,)"),
        (ops.Concat(axis=1), ("input", "input"), "expected shapes with an axis 1, found [(3,), (3,)]"),
        (ops.RMSNorm(features=2), ("input",), "expected 2 features on the last axis, found shape (3,)"),
    ],
)
def test_an_op_that_does_not_fit_names_block_and_op(
    op: ops.Op, inputs: tuple[str, ...], message: str
) -> None:
    chosen = block("head", "classifier", ("odd", op, inputs), output="head/odd")
    with pytest.raises(GraphError) as caught:
        BlockGraph(input=THREE, blocks=(chosen,))
    assert str(caught.value).startswith(f"block 'head', op 'odd' ({op.kind}): ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda b: b.conv(b.inp, 4, kernel=9),
            "block 'stem', op 'conv1' (conv2d): expected room for a (9, 9)",
        ),
        (lambda b: b.conv(b.inp, 4, kernel=1, groups=2), "expected channels divisible by groups=2"),
        (lambda b: b.max_pool(b.inp, kernel=2, pad=2), "expected padding below the kernel"),
        (
            lambda b: b.conv(b.inp, 0, kernel=1),
            "block 'stem', op 'conv1': conv2d.out_channels: input should be",
        ),
        (
            lambda b: b.dropout(b.inp, 1.5),
            "block 'stem': dropout.rate: input should be less than 1; found 1.5",
        ),
        (
            lambda b: b.add(b.inp, b.conv(b.inp, 4, kernel=1)),
            "expected equal shapes, found (3, 8, 8) and (4, 8, 8)",
        ),
        (
            lambda b: b.take_token(b.to_sequence(b.inp), 64),
            "'take_token1' (take_token): expected an index below the length 64, found 64",
        ),
        (
            lambda b: b.add_op(lambda: ops.Positions(length=65, features=3), b.to_sequence(b.inp)),
            "(positions): expected a sequence (65, 3), found shape (64, 3)",
        ),
        (
            lambda b: b.add_op(lambda: ops.ClassToken(features=4), b.to_sequence(b.inp)),
            "(class_token): expected 4 features on the last axis, found shape (64, 3)",
        ),
        (lambda b: b.activation(b.inp, "rleu"), "activation.function: input should be 'relu'"),
        (
            lambda b: b.linear(b.inp, 4),
            "found an image (3, 8, 8), whose last axis is its width; write b.global_avg_pool(x) or",
        ),
        (
            lambda b: b.layer_norm(b.inp),
            "(layer_norm): expected features or a sequence (…, 8), found an image (3, 8, 8), whose last axis",
        ),
        (lambda b: b.rms_norm(b.inp), "whose last axis is its width; write b.norm(x) to normalise its"),
    ],
)
def test_the_builder_reports_a_mistake_where_it_is_made(write: Any, message: str) -> None:
    net = GraphBuilder(Image(channels=3, height=8, width=8))
    with pytest.raises(GraphError) as caught, net.stem() as b:
        write(b)
    assert message in str(caught.value)
    assert str(caught.value).startswith("block 'stem'")


def test_a_block_without_output_is_an_error() -> None:
    net = GraphBuilder(THREE)
    message = re.escape("block 'a': its output was not set; end it with b.out")
    with pytest.raises(GraphError, match=message), net.block("a") as b:
        b.linear(b.inp, 2)


def test_a_cycle_of_blocks_is_named() -> None:
    blocks = (
        sums("a", "input", "b/fc"),
        layer("b", "a/sum"),
        layer("c", "b/fc", "classifier"),
    )
    expect_error("blocks form a cycle: a → b → a; remove one of these edges", *blocks)
    good = BlockGraph(input=THREE, blocks=(sums("a", "input", "input"), *blocks[1:])).to_dict()
    good["blocks"][0]["nodes"][0]["inputs"] = ["input", "b/fc"]
    with pytest.raises(GraphError, match="blocks form a cycle: a → b → a"):
        BlockGraph.from_dict(good)


@given(st.permutations(range(4)))
def test_any_cycle_is_an_error_whatever_the_order_of_blocks(order: list[int]) -> None:
    ring = [sums(f"b{i}", "input", f"b{(i + 1) % 4}/sum") for i in order]
    with pytest.raises(GraphError, match="blocks form a cycle"):
        BlockGraph(input=THREE, blocks=(*ring, layer("c", "b0/sum", "classifier")))


def test_an_unreachable_block_is_named() -> None:
    silent = Block(name="a", kind="counted", nodes=(), output="a/fc")
    expect_error(
        "block 'a': gives on 'a/fc', which nothing computes", silent, layer("c", "input", "classifier")
    )
    # Ops always read something, so what cannot be reached is a block that only reads itself.
    loop = block("a", "counted", ("relu", ops.Activation(), ("a/relu",)), output="a/relu")
    expect_error(
        "block 'a' cannot be reached from the input; connect or delete it",
        loop,
        sums("c", "input", "a/relu", kind="classifier"),
    )


def test_an_idle_block_is_named() -> None:
    expect_error(
        "'a' does not lead to the classifier 'c'; connect or delete it",
        layer("a", "input"),
        layer("c", "input", "classifier"),
    )


@pytest.mark.parametrize("reads", ["fisrt/fc", "first/fcc"])
def test_an_unknown_reference_suggests_the_nearest(reads: str) -> None:
    expect_error(
        f"block 'c', op 'fc' (linear): reads {reads!r}, which nothing computes; did you mean 'first/fc'?",
        layer("first", "input"),
        layer("c", reads, "classifier"),
    )


def test_an_unknown_reference_inside_its_own_block_is_no_matter_of_order() -> None:
    expect_error(
        "block 'c', op 'two' (linear): reads 'c/on', which nothing computes; did you mean 'c/one'?",
        block(
            "c",
            "classifier",
            ("one", linear(3, 3), ("input",)),
            ("two", linear(3, 3), ("c/on",)),
            output="c/two",
        ),
    )


def test_an_unknown_output_is_an_error() -> None:
    expect_error(
        "block 'c': gives on 'c/fcc', which nothing computes; did you mean 'c/fc'?",
        block("c", "classifier", ("fc", linear(3, 3), ("input",)), output="c/fcc"),
    )


def test_an_op_that_reads_before_it_is_computed_is_an_error() -> None:
    expect_error(
        "block 'c', op 'one' (linear): reads 'c/two' before it is computed; put that op earlier",
        block(
            "c",
            "classifier",
            ("one", linear(3, 3), ("c/two",)),
            ("two", linear(3, 3), ("input",)),
            output="c/one",
        ),
    )


def test_a_block_that_reads_a_later_one_is_an_error() -> None:
    expect_error(
        "block 'a' reads 'b', which runs later; list it after",
        layer("a", "b/fc"),
        layer("b", "input"),
        layer("c", "a/fc", "classifier"),
    )


def test_doubled_and_impossible_names_are_errors() -> None:
    expect_error("block 'a': the name is taken", layer("a", "input"), layer("a", "a/fc", "classifier"))
    twice = block(
        "c", "classifier", ("fc", linear(3, 3), ("input",)), ("fc", linear(3, 3), ("c/fc",)), output="c/fc"
    )
    expect_error("block 'c': op 'fc': the name is taken", twice)
    for name in ("", "a/b", INPUT):
        expect_error(f"block {name!r}: expected a name without '/'", layer(name, "input", "classifier"))
        inside = block("c", "classifier", (name, linear(3, 3), ("input",)), output="input")
        expect_error(f"block 'c': op {name!r}: expected a name without '/'", inside)


@pytest.mark.parametrize(
    "kinds",
    [
        ("counted", "stem", "classifier"),
        ("classifier", "counted"),
        ("stem", "classifier", "counted"),
        ("counted", "counted"),
        ("classifier", "classifier"),
        ("stem",),
    ],
)
def test_stems_or_classifier_out_of_place_are_errors(kinds: tuple[BlockKind, ...]) -> None:
    refs = ["input", *(f"b{i}/fc" for i in range(len(kinds)))]
    chain = [layer(f"b{i}", refs[i], kind) for i, kind in enumerate(kinds)]
    found = ", ".join(f"b{i} ({kind})" for i, kind in enumerate(kinds))
    expect_error(f"expected stems, then counted blocks, then one classifier; found {found}", *chain)


def test_a_classifier_before_a_block_that_does_not_read_it_is_out_of_place_not_idle() -> None:
    expect_error(
        "then one classifier; found c (classifier), a (counted)",
        layer("c", "input", "classifier"),
        layer("a", "input"),
    )


# What is.


def assert_consistent(graph: BlockGraph) -> None:
    """Hold for every graph that could be made."""
    nodes = [f"{b.name}/{n.name}" for b, n in graph.nodes()]
    assert set(graph.shapes) == {INPUT, *nodes}
    assert all(min(shape, default=1) >= 1 for shape in graph.shapes.values())
    assert graph.output_shape == graph.shapes[graph.output]
    assert [b.kind for b in graph.blocks].count("classifier") == 1
    assert graph.counted == tuple(b.name for b in graph.blocks if b.kind == "counted")
    assert nx.is_directed_acyclic_graph(graph.graph)
    assert nx.is_frozen(graph.graph)
    crossing = {(owner(r), b.name, r) for b in graph.blocks for r in b.reads()}
    edges = {(a, b, r) for a, b, refs in graph.graph.edges(data="references") for r in refs}
    assert crossing == edges
    for reader in graph.blocks:
        assert all(owner(ref) != reader.name for ref in reader.reads())
        assert len(set(reader.reads())) == len(reader.reads())


@settings(max_examples=200)
@given(block_graphs())
def test_random_graphs_are_consistent_and_survive_json_exactly(graph: BlockGraph) -> None:
    assert_consistent(graph)
    data = graph.to_dict()
    for again in (BlockGraph.from_dict(data), BlockGraph.from_dict(json.loads(json.dumps(data)))):
        assert again == graph
        assert again.to_dict() == data
        assert again.shapes == graph.shapes
        assert hash(again) == hash(graph)


@settings(max_examples=200)
@given(block_graphs(), st.data())
def test_any_reference_misspelled_is_an_error_that_names_it(graph: BlockGraph, data: st.DataObject) -> None:
    file = graph.to_dict()
    nodes = [(b, n) for b in file["blocks"] for n in b["nodes"]]
    chosen_block, node = data.draw(st.sampled_from(nodes))
    which = data.draw(st.integers(0, len(node["inputs"]) - 1))
    node["inputs"][which] += "~"
    with pytest.raises(GraphError) as caught:
        BlockGraph.from_dict(file)
    assert f"block {chosen_block['name']!r}, op {node['name']!r}" in str(caught.value)
    assert repr(node["inputs"][which]) in str(caught.value)


def test_a_graph_remembers_its_origin_which_plays_no_part_in_equality() -> None:
    graph = nt_models.mlp(inputs=(1, 2, 2), hidden=(3,), classes=2)
    assert graph.origin == {"name": "mlp", "inputs": [1, 2, 2], "hidden": [3], "classes": 2}
    again = BlockGraph.from_dict(json.loads(json.dumps(graph.to_dict())))
    assert again.origin == graph.origin
    assert graph == graph.with_origin({})
    assert hash(graph) == hash(graph.with_origin({}))


def test_graphs_are_immutable() -> None:
    graph = nt_models.mlp(inputs=4, hidden=(3,), classes=2)
    with pytest.raises(FrozenInstanceError):
        graph.blocks = ()  # type: ignore[misc]
    with pytest.raises(nx.NetworkXError):
        graph.graph.add_edge("classifier", "hidden1")


def _drop(path: str) -> Any:
    def change(file: dict[str, Any]) -> None:
        del file["blocks"][0][path]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("input"), "graph.input: missing"),
        (_drop("output"), "graph.blocks.0.output: missing"),
        (_drop("nodes"), "graph.blocks.0.nodes: missing"),
        (lambda f: f.update(blcks=1), "graph.blcks: unknown key"),
        (lambda f: f["blocks"][0].update(knd="stem"), "graph.blocks.0.knd: unknown key"),
        (lambda f: f["blocks"][0]["nodes"][0].update(ops=1), "graph.blocks.0.nodes.0.ops: unknown key"),
        (lambda f: f["blocks"][0].update(kind="body"), "graph.blocks.0.kind: input should be 'stem'"),
        (
            lambda f: f["blocks"][0]["nodes"][0]["op"].update(kind="linaer"),
            "graph.blocks.0.nodes.0.op.kind: no kind 'linaer'; did you mean 'linear'?",
        ),
        (
            lambda f: f["blocks"][0]["nodes"][0]["op"].update(in_features="x"),
            "in_features: input should be a valid",
        ),
        (lambda f: f["blocks"][0]["nodes"][0]["op"].update(featurs=1), "featurs: unknown key"),
        (lambda f: f["input"].update(kind="sound"), "graph.input.kind: no kind 'sound'"),
        (lambda f: f["input"].update(count=0), "greater than or equal to 1; found 0"),
        (lambda f: f["input"].update(count=5), "block 'hidden1', op 'linear1' (linear): expected 4 features"),
    ],
)
def test_a_graph_file_that_does_not_validate_is_a_graph_error(change: Any, message: str) -> None:
    file = nt_models.mlp(inputs=4, hidden=(3,), classes=2).to_dict()
    change(file)
    with pytest.raises(GraphError) as caught:
        BlockGraph.from_dict(file)
    assert message in str(caught.value)


@pytest.mark.parametrize("data", [None, [], "graph", 3, {}])
def test_anything_but_a_graph_is_a_graph_error(data: Any) -> None:
    with pytest.raises(GraphError, match=r"^graph"):
        BlockGraph.from_dict(data)


# Building.


def test_ops_get_running_names_and_the_builder_reads_what_came_before() -> None:
    net = GraphBuilder(Image(channels=2, height=6, width=4))
    with net.stem() as b:
        assert b.inp == Tensor("input", (2, 6, 4))
        h = b.relu(b.norm(b.conv(b.inp, 3, kernel=3, pad=((0, 1), (2, 0)))))
        b.out = b.conv(h, 3, kernel=1, name="conv7")
    with net.classifier() as b:
        assert b.inp == Tensor("stem/conv7", (3, 5, 4))
        b.out = b.linear(b.flatten(b.inp), 2)
    names = [node.name for _, node in net.build().nodes()]
    assert names == ["conv1", "norm1", "relu1", "conv7", "flatten1", "linear1"]


def test_every_norm_takes_its_eps() -> None:
    net = GraphBuilder(Features(count=3))
    with net.classifier() as b:
        b.out = b.rms_norm(b.layer_norm(b.norm(b.inp, eps=0.1, momentum=0.2), eps=0.3), eps=0.4)
    norm, layer_norm, rms_norm = (node.op for _, node in net.build().nodes())
    assert norm == ops.BatchNorm(channels=3, eps=0.1, momentum=0.2)
    assert (layer_norm, rms_norm) == (ops.LayerNorm(features=3, eps=0.3), ops.RMSNorm(features=3, eps=0.4))


def test_a_block_that_failed_is_not_added() -> None:
    net = GraphBuilder(THREE)
    with pytest.raises(GraphError), net.block("a") as b:
        b.out = b.add(b.inp)
    with net.classifier() as b:
        b.out = b.linear(b.inp, 2)
    assert [b.name for b in net.build().blocks] == ["classifier"]


def test_a_tensor_of_another_network_is_an_error() -> None:
    other = GraphBuilder(THREE)
    with other.block("elsewhere") as b:
        foreign = b.out = b.linear(b.inp, 3)
    net = GraphBuilder(THREE)
    with net.classifier() as b:
        b.out = b.add(b.inp, foreign)
    with pytest.raises(GraphError, match="reads 'elsewhere/linear1', which nothing computes"):
        net.build()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depht": 28}, "graph.depht: unknown argument of wide_resnet; did you mean 'depth'?"),
        ({"depth": "deep"}, "graph.depth: input should be a valid integer"),
        ({"width": None}, "graph.width: input should be a valid integer"),
    ],
)
def test_wrong_arguments_of_an_architecture_are_spec_errors(arguments: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        nt_models.wide_resnet(**arguments)
    assert message in str(caught.value)


def test_a_missing_argument_of_an_architecture_is_a_spec_error() -> None:
    with pytest.raises(SpecError, match=r"graph\.inputs: missing; it must be given"):
        nt_models.mlp()  # type: ignore[call-arg]


@pytest.mark.parametrize("depth", [-2, 0, 4, 9, 11, 27])
def test_a_wide_resnet_of_impossible_depth_is_a_graph_error(depth: int) -> None:
    with pytest.raises(GraphError, match=re.escape(f"10, 16, 22, 28, … (6·n + 4), found {depth}")):
        nt_models.wide_resnet(depth=depth)


def test_an_architecture_records_only_what_it_was_given() -> None:
    @architecture
    def tiny(*, classes: int, hidden: int = 3) -> BlockGraph:
        net = GraphBuilder(Tokens(length=2, vocabulary=classes))
        with net.stem() as b:
            b.out = b.embedding(b.inp, classes, hidden)
        with net.classifier() as b:
            b.out = b.linear(b.inp, classes)
        return net.build()

    assert tiny(classes=4).origin == {"name": "tiny", "classes": 4}
    assert tiny(classes=4).output_shape == (2, 4)


# The models that come with the package.


def kernels(graph: BlockGraph) -> list[tuple[Block, Node, ops.Weight]]:
    return [(b, n, w) for b, n in graph.nodes() for w in n.op.weights() if w.sparsifiable]


def multiply_adds(graph: BlockGraph) -> int:
    return sum(w.size * n.op.positions(*[graph.shapes[r] for r in n.inputs]) for _, n, w in kernels(graph))


def test_wide_resnet_28_10_has_the_published_size() -> None:
    graph = nt_models.wide_resnet(depth=28, width=10, classes=100)
    assert sum(w.size for _, _, w in kernels(graph)) == 36_518_832
    assert 2 * multiply_adds(graph) == 10_486_772_736
    assert len(graph.counted) == 12
    assert sum(isinstance(n.op, ops.Conv2d) and n.op.kernel == (3, 3) for _, n in graph.nodes()) == 25
    assert graph.output_shape == (100,)


@pytest.mark.parametrize("depth", [10, 16, 22, 28, 40])
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("size", [8, 9, 32])
def test_wide_resnets_of_any_depth_width_and_size(depth: int, width: int, size: int) -> None:
    graph = nt_models.wide_resnet(depth=depth, width=width, size=size, channels=1, classes=7, dropout=0.3)
    assert_consistent(graph)
    assert len(graph.counted) == (depth - 4) // 2
    assert graph.shapes[graph.blocks[-2].output] == (64 * width, -(-size // 4), -(-size // 4))
    assert sum(isinstance(node.op, ops.Dropout) for _, node in graph.nodes()) == len(graph.counted)
    assert graph.output_shape == (7,)


def test_a_multi_layer_perceptron_counts_its_hidden_layers() -> None:
    graph = nt_models.mlp(inputs=(2, 3, 4), hidden=(7, 5), classes=3, norm=True)
    assert graph.counted == ("hidden1", "hidden2")
    assert [w.shape for _, _, w in kernels(graph)] == [(7, 24), (5, 7), (3, 5)]
    assert nt_models.mlp(inputs=4, hidden=(), classes=3).counted == ()


@pytest.mark.parametrize("name", ["wide_resnet", "mixer"])
def test_an_architecture_is_written_in_at_most_60_lines(name: str) -> None:
    text = (Path(nt_models.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= 60


@pytest.mark.parametrize("name", MODELS)
def test_models_of_the_conformance_suite_are_consistent(name: str) -> None:
    assert_consistent(MODELS[name]())


def test_every_architecture_a_spec_can_name_is_recorded_under_that_name() -> None:
    small = {"blocks": 2, "width": 8, "hidden": 12}
    arguments: Mapping[str, Mapping[str, Any]] = {
        "llama": {**small, "heads": 2},
        "mixer": {**small, "tokens": 5},
        "mlp": {"inputs": 4},
        "vit": {**small, "heads": 2},
        "wide_resnet": {"depth": 10, "width": 1},
    }
    for name, make in nt_models.ARCHITECTURES.items():
        graph = make(**arguments.get(name, {}))
        assert graph.origin is not None
        assert graph.origin["name"] == name
        assert_consistent(graph)
