from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import nt_models
from nt_core.errors import GraphError, SpecError
from nt_core.graph import BlockGraph, owner
from nt_core.structure import (
    Independent,
    Layout,
    MultiHead,
    PlacedWeight,
    Single,
    Structure,
    part_label,
    weight_name,
)
from nt_core.testing.strategies import block_graphs, structures
from nt_core.topology import ER, allocate


@st.composite
def spread(draw: st.DrawFn) -> tuple[BlockGraph, Structure, Layout]:
    graph = draw(block_graphs())
    structure = draw(structures(graph))
    return graph, structure, structure.layout(graph)


def total(layout: Layout) -> int:
    return sum(placed.weight.size for placed in layout.weights)


def described(placed: PlacedWeight) -> tuple[Any, ...]:
    """Everything about a weight but the part it is in."""
    return placed.name.split("/", 1)[1], placed.block, placed.node, placed.weight, placed.positions


@settings(max_examples=200)
@given(spread())
def test_every_weight_appears_once_in_each_part_that_holds_its_block(
    drawn: tuple[BlockGraph, Structure, Layout],
) -> None:
    graph, structure, layout = drawn
    names = [placed.name for placed in layout.weights]
    assert len(set(names)) == len(names)
    below = {block.name for block in layout.backbone.blocks} if layout.backbone else set()
    expected = [
        weight_name(part, block.name, node.name, weight.name)
        for part in ["backbone", *(f"head{m + 1}" for m in range(structure.members))]
        for block, node in graph.nodes()
        for weight in node.op.weights()
        if (block.name in below) == (part == "backbone")
    ]
    assert names == expected
    assert layout.sparsifiable == tuple(p for p in layout.weights if p.weight.role == "kernel")


@settings(max_examples=200)
@given(spread())
def test_backbone_and_one_head_make_up_the_graph(drawn: tuple[BlockGraph, Structure, Layout]) -> None:
    graph, structure, layout = drawn
    below = layout.backbone.blocks if layout.backbone else ()
    assert len(layout.heads) == structure.members
    for head in layout.heads:
        assert (*below, *head.blocks) == graph.blocks
        assert head.blocks[-1].kind == "classifier"
    if isinstance(structure, MultiHead):
        assert all(block in below for block in graph.blocks if block.kind == "stem")
    else:
        assert layout.backbone is None
    assert [part.name for part in layout.parts] == [
        *(["backbone"] if below else []),
        *(f"head{m}" for m in range(1, structure.members + 1)),
    ]


@settings(max_examples=200)
@given(spread())
def test_heads_are_alike_in_shape_and_disjoint_in_names(drawn: tuple[BlockGraph, Structure, Layout]) -> None:
    _, structure, layout = drawn
    heads = [
        [placed for placed in layout.weights if placed.part == f"head{m}"]
        for m in range(1, structure.members + 1)
    ]
    for head in heads[1:]:
        assert [described(p) for p in head] == [described(p) for p in heads[0]]
        assert not {p.name for p in head} & {p.name for p in heads[0]}


@settings(max_examples=200)
@given(spread())
def test_sizes_add_up(drawn: tuple[BlockGraph, Structure, Layout]) -> None:
    graph, structure, layout = drawn
    shared = sum(placed.weight.size for placed in layout.weights if placed.part == "backbone")
    whole = total(Single().layout(graph))
    assert total(layout) == shared + structure.members * (whole - shared)
    assert sum(p.weight.size for p in layout.sparsifiable) <= total(layout)


@settings(max_examples=200)
@given(spread())
def test_crossing_references_are_all_that_heads_read_from_outside(
    drawn: tuple[BlockGraph, Structure, Layout],
) -> None:
    _, _, layout = drawn
    below = {block.name for block in layout.backbone.blocks} if layout.backbone else set()
    inside = {block.name for block in layout.heads[0].blocks}
    reads = {ref for block in layout.heads[0].blocks for ref in block.reads() if owner(ref) not in inside}
    assert set(layout.crossing) == reads
    assert all(owner(ref) in {"input", *below} for ref in reads)
    assert len(set(layout.crossing)) == len(layout.crossing)


@settings(max_examples=100)
@given(block_graphs(), st.integers(1, 3), st.data())
def test_a_split_by_number_equals_the_split_by_name(
    graph: BlockGraph, heads: int, data: st.DataObject
) -> None:
    assume(graph.counted)
    number = data.draw(st.integers(1, len(graph.counted)))
    by_number = MultiHead(split=number, heads=heads).layout(graph)
    by_name = MultiHead(split=graph.counted[number - 1], heads=heads).layout(graph)
    assert by_number == by_name
    assert by_number.backbone is not None
    counted = [block.name for block in by_number.backbone.blocks if block.kind == "counted"]
    assert counted == list(graph.counted[:number])


@pytest.mark.parametrize("split", range(13))
def test_a_wide_resnet_splits_at_every_counted_block(split: int) -> None:
    graph = nt_models.wide_resnet(depth=28, width=1, classes=10)
    layout = MultiHead(split=split, heads=2).layout(graph)
    assert layout.backbone is not None
    assert len(layout.backbone.blocks) == split + 1  # and the stem
    assert len(layout.heads[0].blocks) == 12 - split + 1  # and the classifier


@given(block_graphs(), st.integers(1, 3))
def test_one_head_split_nowhere_and_one_independent_network_are_the_single_network(
    graph: BlockGraph, members: int
) -> None:
    single = Single().layout(graph)
    assert Independent(count=1).layout(graph) == single
    assert [described(p) for p in MultiHead(split=0, heads=1).layout(graph).weights] == [
        described(p) for p in single.weights
    ]
    assert total(Independent(count=members).layout(graph)) == members * total(single)


@given(block_graphs(), st.integers(1, 4), st.integers(1, 3))
def test_a_split_beyond_the_network_is_an_error(graph: BlockGraph, beyond: int, heads: int) -> None:
    last = len(graph.counted)
    message = f"structure.split: expected at most the {last} counted .* found {last + beyond}; choose 0 to"
    with pytest.raises(GraphError, match=message):
        MultiHead(split=last + beyond, heads=heads).layout(graph)


def test_a_split_at_an_unknown_block_suggests_the_nearest() -> None:
    graph = nt_models.wide_resnet(depth=10, width=1)
    with pytest.raises(GraphError, match=re.escape("no counted block 'stage2'; did you mean 'stage2.1'?")):
        MultiHead(split="stage2", heads=2).layout(graph)
    for uncounted in ("stem", "classifier"):
        with pytest.raises(GraphError, match=f"structure.split: no counted block '{uncounted}'"):
            MultiHead(split=uncounted, heads=2).layout(graph)


@pytest.mark.parametrize("split", [-1, True, None, 1.5, [1]])
def test_a_split_that_is_neither_number_nor_name_gets_one_error(split: Any) -> None:
    with pytest.raises(SpecError) as caught:
        MultiHead(split=split, heads=2)
    assert str(caught.value).startswith("multihead.split: expected a number of counted blocks")
    assert str(caught.value).endswith(f"found {split!r}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("members", [0, -1])
def test_there_is_at_least_one_member(members: int) -> None:
    with pytest.raises(SpecError, match="greater than or equal to 1"):
        MultiHead(split=1, heads=members)
    with pytest.raises(SpecError, match="greater than or equal to 1"):
        Independent(count=members)


def test_members_are_trained_as_alone_where_they_share_nothing() -> None:
    assert Independent(count=3).loss_reduction == "sum"
    assert MultiHead(split=1, heads=3).loss_reduction == "mean"
    assert Single().loss_reduction == "mean"


def test_parts_are_labelled_as_people_write_them() -> None:
    layout = MultiHead(split=1, heads=11).layout(nt_models.mlp(inputs=2, hidden=(2,), classes=2))
    assert {p.label for p in layout.weights} == {"backbone", *(f"head {m}" for m in range(1, 12))}
    assert part_label("head11") == "head 11"


def flops(layout: Layout) -> int:
    return sum(2 * p.weight.size * p.positions for p in layout.sparsifiable)


def test_published_ratio_2_91_of_the_neurotrails_table_is_weights_not_flops() -> None:
    graph = nt_models.wide_resnet(depth=28, width=10, classes=100)
    single, split = Single().layout(graph), MultiHead(split=4, heads=3).layout(graph)
    sizes = [sum(p.weight.size for p in layout.sparsifiable) for layout in (single, split)]
    assert round(flops(split) / flops(single), 4) == 2.3599
    assert round(sizes[1] / sizes[0], 4) == 2.9102
    assert split.heads[0].blocks[0].name == "stage2.1"
    assert sum(block.kind == "counted" for block in split.heads[0].blocks) == 8


def test_all_heads_share_one_budget() -> None:
    layout = MultiHead(split=1, heads=3).layout(nt_models.mlp(inputs=9, hidden=(8, 7), classes=6))
    counts = allocate(layout, ER(), 0.5)
    assert set(counts) == {p.name for p in layout.sparsifiable}
    assert sum(counts.values()) == round(0.5 * (9 * 8 + 3 * (8 * 7 + 7 * 6)))


def test_published_bug_of_a_shared_final_norm_cannot_occur() -> None:
    layout = MultiHead(split=12, heads=3).layout(nt_models.wide_resnet(depth=28, width=1))
    norms = {p.name for p in layout.weights if p.name.endswith("classifier/norm1.weight")}
    assert norms == {f"head{m}/classifier/norm1.weight" for m in (1, 2, 3)}
