"""Members that share kernels: BatchEnsemble, MIMO, Network Fission Ensembles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nt_models
from nt_core import (
    MIMO,
    BatchEnsemble,
    BlockGraph,
    Dense,
    Dynamic,
    EnsembleSpec,
    Fission,
    GraphError,
    Independent,
    NeuroTrailsError,
    Random,
    Single,
    SpecError,
    Static,
    initial_masks,
    initial_values,
)
from nt_core.cost import cost
from nt_core.errors import DataError
from nt_core.graph import Node, ops
from nt_core.graph.weights import vector
from nt_core.reference import forward
from nt_core.testing.data import random_input, random_values
from nt_core.testing.models import MODELS
from nt_core.values import Shape

WIDE_RESNET = nt_models.wide_resnet(depth=16, width=1, classes=5, size=8)
PERCEPTRON = nt_models.mlp(inputs=12, hidden=(10, 9, 8), classes=5)
GRAPHS = {"perceptron": PERCEPTRON, "wide_resnet": WIDE_RESNET, "skipping": MODELS["skipping"]()}
Values = Mapping[str, Any]


def logits(structure: Any, graph: Any, values: Values, x: Any, *, training: bool = False) -> Any:
    return forward(structure.layout(graph), values, x, training=training)


def suffixes(values: Values) -> dict[str, Any]:
    """Values by their names without the part."""
    return {name.partition("/")[2]: value for name, value in values.items()}


# --- BatchEnsemble ---


@pytest.mark.parametrize("norms", ["shared", "per_member"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_batch_ensemble_is_an_ensemble_whose_kernels_are_scaled(graph: str, norms: Any) -> None:
    members, net = 3, GRAPHS[graph]
    structure = BatchEnsemble(count=members, norms=norms)
    values = random_values(structure.layout(net), 1, np.float64)
    own = {}
    for placed in Independent(count=members).layout(net).weights:
        m = int(placed.part.removeprefix("head")) - 1
        at, name = placed.name.partition("/")[2].rpartition(".")[::2]
        value = values[f"backbone/{at}.{name}"]
        if placed.weight.role == "kernel":
            groups = getattr(placed.node.op, "groups", 1)
            r, s = (values[f"backbone/{at}.{side}_factor"][m] for side in ("input", "output"))
            by_output = np.repeat(r.reshape(groups, -1), len(s) // groups, axis=0)
            value = value * (by_output * s[:, None]).reshape(*value.shape[:2], *[1] * (value.ndim - 2))
        own[placed.name] = value[m] if value.shape != placed.weight.shape else value
    x = random_input(net, 4, 2, np.float64)
    expected = logits(Independent(count=members), net, own, x)
    np.testing.assert_allclose(logits(structure, net, values, x), expected, rtol=0, atol=1e-10)


def test_batch_ensemble_of_one_member_with_factors_of_one_is_the_single_network() -> None:
    structure, x = BatchEnsemble(count=1), random_input(WIDE_RESNET, 6, 2, np.float64)
    values = random_values(structure.layout(WIDE_RESNET), 1, np.float64)
    values |= {name: np.ones_like(value) for name, value in values.items() if name.endswith("_factor")}
    single = {
        p.name: suffixes(values)[p.name.partition("/")[2]].reshape(p.weight.shape)
        for p in Single().layout(WIDE_RESNET).weights
    }
    for training in (False, True):
        expected = logits(Single(), WIDE_RESNET, single, x, training=training)
        found = logits(structure, WIDE_RESNET, values, x, training=training)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_split_batch_is_member_major_and_a_tiled_one_is_seen_by_all() -> None:
    split, tile = BatchEnsemble(count=3), BatchEnsemble(count=3, batch="tile")
    values = random_values(split.layout(PERCEPTRON), 1, np.float64)
    x = random_input(PERCEPTRON, 6, 2, np.float64)
    everywhere = logits(split, PERCEPTRON, values, x)
    np.testing.assert_array_equal(logits(tile, PERCEPTRON, values, x, training=True), everywhere)
    found = logits(split, PERCEPTRON, values, x, training=True)
    np.testing.assert_allclose(found, [everywhere[m, 2 * m : 2 * m + 2] for m in range(3)], rtol=1e-12)


def test_a_batch_that_cannot_be_divided_is_an_error() -> None:
    structure = BatchEnsemble(count=3)
    values = random_values(structure.layout(PERCEPTRON), 1, np.float64)
    with pytest.raises(DataError, match="8 rows cannot be divided among 3 members; expected a multiple of 3"):
        logits(structure, PERCEPTRON, values, random_input(PERCEPTRON, 8, 2, np.float64), training=True)
    with pytest.raises(DataError, match="multiple of 3, 63 or 66 say"):
        structure.expect_batch_size(64)
    BatchEnsemble(count=3, batch="tile").expect_batch_size(64)


def test_factors_are_drawn_around_one_or_as_signs_and_are_not_decayed() -> None:
    for spread in ("normal", "signs"):
        layout = BatchEnsemble(count=64, factors=spread).layout(PERCEPTRON)
        drawn = [value for name, value in initial_values(layout, 0) if name.endswith("_factor")]
        every = np.concatenate([value.reshape(-1) for value in drawn])
        if spread == "signs":
            assert set(every.tolist()) == {-1.0, 1.0}
            assert abs(every.mean()) < 5 / np.sqrt(every.size)
        else:
            assert abs(every.mean() - 1) < 5 * 0.5 / np.sqrt(every.size)
            assert abs(every.std() - 0.5) < 0.02
    decayed = {placed.weight.role: placed.weight.decayed for placed in layout.weights}
    assert decayed == {"kernel": True, "bias": True, "factor": False}


@given(count=st.integers(1, 40), members=st.integers(1, 6))
def test_a_last_short_batch_is_filled_up_from_its_beginning(count: int, members: int) -> None:
    rows = BatchEnsemble(count=members).member_rows(count, Random(0).at(weight="batch", purpose="rows"))
    if count % members == 0:
        assert rows is None
    else:
        assert rows is not None
        assert len(rows) % members == 0
        assert len(rows) - count < members
        np.testing.assert_array_equal(rows, np.arange(len(rows)) % count)


# --- MIMO ---


@given(
    count=st.integers(1, 30),
    members=st.integers(1, 4),
    repetitions=st.integers(1, 4),
    rho=st.floats(0, 1),
    step=st.integers(0, 9),
)
def test_each_member_sees_every_example_as_often_and_a_share_in_the_same_places(
    count: int, members: int, repetitions: int, rho: float, step: int
) -> None:
    structure = MIMO(count=members, rho=rho, repetitions=repetitions)
    stream = Random(3).at(weight="batch", step=step, purpose="rows")
    rows = structure.member_rows(count, stream).reshape(members, -1)
    for own in rows:
        np.testing.assert_array_equal(np.bincount(own, minlength=count), repetitions)
    same = round(rho * rows.shape[1])
    if same:
        np.testing.assert_array_equal(rows[:, -same:], np.broadcast_to(rows[0, -same:], (members, same)))
    np.testing.assert_array_equal(rows.reshape(-1), structure.member_rows(count, stream))


def test_with_rho_zero_members_see_different_examples_and_with_rho_one_the_same() -> None:
    stream = Random(0).at(weight="batch", purpose="rows")
    apart = MIMO(count=3).member_rows(300, stream).reshape(3, -1)
    assert (apart[0] == apart[1]).mean() < 0.05
    assert (apart[1] == apart[2]).mean() < 0.05
    together = MIMO(count=3, rho=1.0, repetitions=2).member_rows(300, stream).reshape(3, -1)
    assert (together == together[0]).all()


@pytest.mark.parametrize("graph", GRAPHS)
def test_mimo_of_one_member_is_the_single_network(graph: str) -> None:
    net, structure = GRAPHS[graph], MIMO(count=1, rho=0.5)
    values = random_values(structure.layout(net), 1, np.float64)
    single = {f"head1/{name}": value for name, value in suffixes(values).items()}
    x = random_input(net, 4, 2, np.float64)
    for training in (False, True):
        expected = logits(Single(), net, single, x, training=training)
        np.testing.assert_array_equal(logits(structure, net, values, x, training=training), expected)


def test_mimo_stacks_examples_on_channels_and_reads_them_off_the_last_map() -> None:
    structure = MIMO(count=2)
    layout = structure.layout(PERCEPTRON)
    shapes = {placed.name: placed.weight.shape for placed in layout.weights}
    assert shapes["backbone/hidden1/linear1.weight"] == (10, 24)
    assert shapes["backbone/classifier/linear1.weight"] == (10, 8)
    values = random_values(layout, 1, np.float64)
    first, second = (random_input(PERCEPTRON, 3, seed, np.float64) for seed in (2, 3))
    both = logits(structure, PERCEPTRON, values, np.concatenate([first, second]), training=True)
    stacked = np.concatenate([first, second], axis=1)
    whole = forward(
        Single().layout(layout.graph), {f"head1/{n}": v for n, v in suffixes(values).items()}, stacked
    )
    np.testing.assert_array_equal(both, np.stack([whole[0, :, :5], whole[0, :, 5:]]))
    alike = logits(structure, PERCEPTRON, values, first)
    np.testing.assert_array_equal(
        alike, logits(structure, PERCEPTRON, values, np.concatenate([first, first]), training=True)
    )


@pytest.mark.parametrize("rho", [-0.1, 1.1])
def test_rho_outside_zero_to_one_is_an_error(rho: float) -> None:
    with pytest.raises(SpecError, match="rho"):
        MIMO(count=3, rho=rho)


def test_mimo_needs_an_input_that_can_be_stacked() -> None:
    with pytest.raises(GraphError, match="MIMO stacks images or features, found an input of tokens"):
        MIMO(count=2).layout(MODELS["language_model"]())
    without_last_map = WIDE_RESNET.to_dict()
    classifier = without_last_map["blocks"][-1]
    del classifier["nodes"][-1]
    classifier["output"] = f"{classifier['name']}/{classifier['nodes'][-1]['name']}"
    with pytest.raises(GraphError, match="gives the output; MIMO needs a linear map of features"):
        MIMO(count=2).layout(BlockGraph.from_dict(without_last_map))


# --- Network Fission Ensembles ---


@st.composite
def fissions(draw: st.DrawFn) -> EnsembleSpec:
    net = draw(st.sampled_from([WIDE_RESNET, PERCEPTRON, MODELS["skipping"]()]))
    blocks = len(net.counted)
    members = draw(st.integers(2, min(4, blocks)))
    after = draw(
        st.none() | st.lists(st.integers(1, blocks), min_size=members - 1, max_size=members - 1).map(sorted)
    )
    return EnsembleSpec(
        graph=net,
        structure=Fission(count=members, after=after),
        topology=Static(sparsity=draw(st.sampled_from([0.0, 0.3, 0.5, 0.9]))),
    )


@settings(max_examples=40)
@given(spec=fissions(), seed=st.integers(0, 5))
def test_the_pieces_of_a_weight_are_a_partition_of_what_the_single_network_keeps(
    spec: EnsembleSpec, seed: int
) -> None:
    layout = spec.layout
    whole = dict(initial_masks(spec.topology, Single().layout(spec.graph), seed))
    pieces: dict[str, list[Any]] = {}
    for name, mask in initial_masks(spec.topology, layout, seed):
        assert mask.count == spec.counts[name]
        pieces.setdefault(layout.source(name), []).append(mask)
    assert pieces.keys() == whole.keys()
    for name, masks in pieces.items():
        together = np.sum([mask.dense() for mask in masks], axis=0)
        np.testing.assert_array_equal(together, whole[name].dense())  # no overlap, nothing lost
        assert max(mask.count for mask in masks) - min(mask.count for mask in masks) <= 1
    assert sum(spec.counts.values()) == sum(mask.count for mask in whole.values())


def test_published_groups_of_three_overlap_but_ours_do_not() -> None:
    spec = EnsembleSpec(graph=WIDE_RESNET, structure=Fission(count=3), topology=Static(sparsity=0.5))
    last = [
        mask.dense()
        for name, mask in initial_masks(spec.topology, spec.layout, 0)
        if spec.layout.source(name) == "head1/stage3.2/conv2.weight"
    ]
    assert len(last) == 3
    assert not (last[0] & last[1]).any()
    assert not (last[0] & last[2]).any()
    assert not (last[1] & last[2]).any()


def test_pieces_start_from_the_values_of_the_single_network() -> None:
    structure = Fission(count=3)
    layout = structure.layout(WIDE_RESNET)
    single = dict(initial_values(Single().layout(WIDE_RESNET), 4))
    for name, value in initial_values(layout, 4):
        np.testing.assert_array_equal(value, single[layout.source(name)])


def test_paths_leave_the_trunk_one_after_another() -> None:
    layout = Fission(count=3).layout(WIDE_RESNET)
    counted = {
        part.name: [block.name for block in part.blocks if block.kind == "counted"] for part in layout.parts
    }
    stages = [f"stage{stage}.{block}" for stage in (1, 2, 3) for block in (1, 2)]
    assert counted == {
        "backbone": stages[:4],
        "head1": stages[2:],
        "head2": stages[4:],
        "head3": stages[4:],
    }


def test_fission_of_one_exit_is_the_single_network() -> None:
    assert Fission(count=1).layout(WIDE_RESNET) == Single().layout(WIDE_RESNET)


def test_fission_divides_what_one_network_costs() -> None:
    graph = nt_models.wide_resnet(depth=28, width=10, classes=100)
    spec = EnsembleSpec(graph=graph, structure=Fission(count=3), topology=Static(sparsity=0.5))
    single = EnsembleSpec(graph=graph, topology=Static(sparsity=0.5))
    assert cost(spec).flops_inference == cost(single).flops_inference
    assert cost(spec).weights_active == cost(single).weights_active


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fission(count=7).layout(WIDE_RESNET), "7 exits of a network of 6 counted blocks.*2 to 6"),
        (lambda: Fission(count=3, after=(2, 9)).layout(WIDE_RESNET), "at most the 6 counted blocks"),
        (lambda: Fission(count=3, after=(4, 2)), "expected ascending numbers"),
        (lambda: Fission(count=3, after=(4,)), "expected 2 numbers of blocks for 3 exits, found 1"),
        (lambda: Fission(count=2, temperature=0.0), "temperature"),
        (
            lambda: EnsembleSpec(graph=WIDE_RESNET, structure=Fission(count=2), topology=Dense()),
            "'dense' does not go with structure 'fission'",
        ),
        (
            lambda: EnsembleSpec(
                graph=WIDE_RESNET, structure=Fission(count=2), topology=Dynamic(sparsity=0.5)
            ),
            "'dynamic' does not go with structure 'fission'",
        ),
    ],
)
def test_impossible_fissions_are_errors(make: Any, message: str) -> None:
    with pytest.raises(NeuroTrailsError, match=message):
        make()


# --- what they cost ---


def test_flops_count_the_rows_that_members_are() -> None:
    graph = nt_models.wide_resnet(depth=28, width=10, classes=100)
    single = cost(EnsembleSpec(graph=graph)).flops_inference

    def of(structure: Any) -> tuple[float, float]:
        found = cost(EnsembleSpec(graph=graph, structure=structure))
        return found.flops_inference / single, found.flops_training_step / (3 * single)

    assert of(BatchEnsemble(count=4)) == (4.0, 1.0)
    assert of(BatchEnsemble(count=4, batch="tile")) == (4.0, 4.0)
    inference, training = of(MIMO(count=3, repetitions=4))
    assert inference == pytest.approx(1.0002, abs=2e-4)  # a wider first convolution and a wider last map
    assert training == pytest.approx(4 * inference)


# An op says itself what of it members have of their own.


def test_an_op_that_owns_weights_must_say_how_members_share_them() -> None:
    with pytest.raises(TypeError, match="op Silent: it owns weights, but does not say how"):

        class Silent(ops.Op):
            kind: Literal["silent"] = "silent"

            def output_shape(self, *inputs: Shape) -> Shape:
                return inputs[0]

            def weights(self) -> tuple[ops.Weight, ...]:
                return (vector("weight", 3, "scale", 1.0),)


class GroupNorm(ops.MemberNorm):
    kind: Literal["group_norm"] = "group_norm"
    channels: int

    def output_shape(self, *inputs: Shape) -> Shape:
        return inputs[0]

    def weights(self) -> tuple[ops.Weight, ...]:
        return (vector("weight", self.channels, "scale", 1.0, self.members),)


@pytest.mark.parametrize(("norms", "shape"), [("shared", (4,)), ("per_member", (3, 4))])
def test_a_new_norm_is_each_member_s_own_where_norms_are(norms: Any, shape: Shape) -> None:
    structure = BatchEnsemble(count=3, norms=norms)
    node = Node(name="norm", op=GroupNorm(channels=4), inputs=("input",))  # type: ignore[arg-type]
    assert [weight.shape for weight in structure._shared(node).op.weights()] == [shape]


@pytest.mark.parametrize("op", ops.OPS, ids=lambda op: op.__name__)
def test_every_op_with_weights_says_how_members_share_them(op: type[ops.Op]) -> None:
    owns = op.weights is not ops.Op.weights
    assert owns == issubclass(op, ops.ScaledOp | ops.MemberNorm | ops.SharedOp)
