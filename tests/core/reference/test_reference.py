from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nt_models
from nt_core import Features, GraphBuilder, Independent, MultiHead, Single
from nt_core.errors import NeuroTrailsError
from nt_core.graph import Node, ops
from nt_core.graph.ops.base import windows
from nt_core.reference import REFERENCE, Applied, Array, forward, value_and_gradients
from nt_core.reference.attention import rotate
from nt_core.reference.images import fold, unfold
from nt_core.testing import Case, model_cases, op_cases, random_input, random_values
from nt_core.testing.strategies import block_graphs, cases
from nt_core.topology import initial_values

slow = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
rng = np.random.default_rng


def nodes() -> Iterator[object]:
    for case in op_cases():
        for block, node in case.graph.nodes():
            if block.name == "ops":
                yield pytest.param(case, node, id=f"{case.name}-{node.name}")
    stem = next(case for case in op_cases() if case.name == "embedding")
    yield pytest.param(stem, stem.graph.blocks[0].nodes[0], id="embedding-embedding1")


def arguments(case: Case, node: Node, dtype: type) -> tuple[tuple[Array, ...], dict[str, Array]]:
    draw = rng(7)
    if isinstance(node.op, ops.Embedding):
        inputs = (random_input(case.graph, 6, 0, dtype),)
    else:
        inputs = tuple(draw.normal(size=(6, *case.graph.shapes[ref])).astype(dtype) for ref in node.inputs)
    own = {w.name: draw.uniform(0.5, 2, w.shape).astype(dtype) for w in node.op.weights()}
    for array in (*inputs, *own.values()):
        array.setflags(write=False)
    return inputs, own


def apply(op: ops.Op, *inputs: object, training: bool = False, **weights: object) -> Applied:
    arrays = tuple(np.asarray(x, dtype=float) for x in inputs)
    return REFERENCE[type(op)](op, arrays, {k: np.asarray(v, float) for k, v in weights.items()}, training)


def test_every_op_has_a_reference() -> None:
    assert set(REFERENCE) == set(ops.OPS)


def test_cases_hold_every_op() -> None:
    assert {type(node.op) for case in op_cases() for _, node in case.graph.nodes()} == set(ops.OPS)


def test_cases_have_names_of_their_own() -> None:
    names = [case.name for case in (*op_cases(), *model_cases())]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("case", "node"), list(nodes()))
def test_shapes_and_dtypes(case: Case, node: Node, training: bool, dtype: type) -> None:
    inputs, own = arguments(case, node, dtype)
    y, pullback, running = REFERENCE[type(node.op)](node.op, inputs, own, training)
    assert y.shape == (6, *node.op.output_shape(*[x.shape[1:] for x in inputs]))
    d_inputs, d_weights = pullback(np.ones_like(y))
    assert [d.shape for d in d_inputs if d is not None] == [x.shape for x in inputs if x.dtype.kind == "f"]
    trained = {w.name: w.shape for w in node.op.weights() if w.trainable}
    assert {name: d.shape for name, d in d_weights.items()} == trained
    kept = {w.name: w.shape for w in node.op.weights() if not w.trainable}
    assert {name: new.shape for name, new in running.items()} == (kept if training else {})
    floats = [y, *(d for d in d_inputs if d is not None), *d_weights.values(), *running.values()]
    assert {array.dtype for array in floats} == {np.dtype(dtype)}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("case", "node"), list(nodes()))
def test_pullback_is_the_derivative(case: Case, node: Node, training: bool) -> None:
    inputs, own = arguments(case, node, np.float64)
    reference = REFERENCE[type(node.op)]
    y, pullback, _ = reference(node.op, inputs, own, training)
    dy = rng(1).normal(size=y.shape)
    d_inputs, d_weights = pullback(dy)
    for i, d in enumerate(d_inputs):
        if d is not None:
            expect_derivative(
                lambda x, i=i: reference(node.op, (*inputs[:i], x, *inputs[i + 1 :]), own, training).output,
                inputs[i],
                dy,
                d,
            )
    for name, d in d_weights.items():
        expect_derivative(
            lambda w, name=name: reference(node.op, inputs, {**own, name: w}, training).output,
            own[name],
            dy,
            d,
        )


def expect_derivative(function, at: Array, dy: Array, gradient: Array, step: float = 1e-5) -> None:
    """Compare ⟨gradient, direction⟩ with central differences of ⟨dy, function⟩ along several directions."""
    for seed in range(4):
        direction = rng(seed).normal(size=at.shape)
        difference = (function(at + step * direction) - function(at - step * direction)) / (2 * step)
        terms = dy * difference
        np.testing.assert_allclose(
            (gradient * direction).sum(), terms.sum(), atol=1e-7 * np.abs(terms).sum() + 1e-9
        )


@given(st.data())
@slow
def test_fold_is_the_transpose_of_unfold(data: st.DataObject) -> None:
    small = st.integers(1, 4)
    shape = (2, *data.draw(st.tuples(small, small, small)))
    stride = data.draw(st.tuples(small, small))
    pads = st.tuples(st.integers(0, 2), st.integers(0, 2))
    padding = data.draw(st.tuples(pads, pads))
    kernel = tuple(data.draw(st.integers(1, n + sum(p))) for n, p in zip(shape[2:], padding, strict=True))
    x = rng(0).normal(size=shape)
    found = unfold(x, kernel, stride, padding)
    w = rng(1).normal(size=found.shape)
    assert found.shape[2:4] == windows(shape[1:], kernel, stride, padding)
    np.testing.assert_allclose((found * w).sum(), (x * fold(w, shape, stride, padding)).sum(), atol=1e-10)


# Small cases worked out by hand.


def test_conv2d_by_hand() -> None:
    op = ops.Conv2d(
        in_channels=1, out_channels=1, kernel=(2, 2), stride=(2, 1), padding=((1, 0), (0, 1)), bias=True
    )
    image = [[[[1, 2], [3, 4], [5, 6]]]]
    y, pullback, _ = apply(op, image, weight=[[[[1, 10], [100, 1000]]]], bias=[0.5])
    assert y.tolist() == [[[[2100.5, 200.5], [6543.5, 604.5]]]]
    (dx,), gradients = pullback(np.array([[[[1.0, 0.0], [0.0, 2.0]]]]))
    assert dx.tolist() == [[[[100, 1000], [0, 2], [0, 200]]]]
    assert gradients["weight"].tolist() == [[[[8, 0], [13, 2]]]]
    assert gradients["bias"].tolist() == [3]


def test_grouped_conv2d_reads_its_own_channels() -> None:
    op = ops.Conv2d(in_channels=4, out_channels=2, kernel=(1, 1), groups=2)
    x = np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    y = apply(op, x, weight=np.array([[10.0, 1.0], [10.0, 1.0]]).reshape(2, 2, 1, 1)).output
    assert y.ravel().tolist() == [12, 34]


def test_max_pool2d_gives_ties_to_the_first_in_the_window() -> None:
    op = ops.MaxPool2d(kernel=(2, 2), stride=(1, 1))
    x = [[[[0, 5, 5], [5, 1, 5]]]]
    y, pullback, _ = apply(op, x)
    assert y.tolist() == [[[[5, 5]]]]
    assert pullback(np.array([[[[1.0, 10.0]]]]))[0][0].tolist() == [[[[0, 11, 0], [0, 0, 0]]]]


def test_padding_never_wins_a_max_pool() -> None:
    op = ops.MaxPool2d(kernel=(2, 2), stride=(2, 2), padding=((1, 0), (1, 0)))
    assert apply(op, [[[[-3.0]]]]).output.tolist() == [[[[-3.0]]]]


def test_avg_pool2d_leaves_out_what_fills_no_window() -> None:
    y, pullback, _ = apply(ops.AvgPool2d(kernel=(1, 2), stride=(1, 2)), [[[[1, 3, 100]]]])
    assert y.tolist() == [[[[2]]]]
    assert pullback(np.array([[[[4.0]]]]))[0][0].tolist() == [[[[2, 2, 0]]]]


def test_batch_norm_by_hand() -> None:
    op = ops.BatchNorm(channels=1, momentum=0.1, eps=1.0)
    statistics = {"running_mean": [10.0], "running_var": [3.0]}
    x = [[[[1.0, 3.0]]], [[[1.0, 3.0]]]]
    y, _, running = apply(op, x, training=True, weight=[math.sqrt(2)], bias=[5.0], **statistics)
    np.testing.assert_allclose(y.ravel(), [4, 6, 4, 6])
    np.testing.assert_allclose(running["running_mean"], 0.9 * 10 + 0.1 * 2)
    np.testing.assert_allclose(running["running_var"], 0.9 * 3 + 0.1 * 4 / 3)
    evaluated = apply(op, x, weight=[2.0], bias=[5.0], **statistics)
    np.testing.assert_allclose(evaluated.output.ravel(), [-4, -2, -4, -2])
    assert evaluated.running == {}


def test_layer_norm_and_rms_norm_by_hand() -> None:
    layer = apply(ops.LayerNorm(features=2, eps=3.0), [[[1.0, 3.0]]], weight=[1.0, 10.0], bias=[0.0, 1.0])
    np.testing.assert_allclose(layer.output, [[[-0.5, 6.0]]])
    root = apply(ops.RMSNorm(features=2, eps=11.0), [[3.0, 3.0]], weight=[math.sqrt(20), 0.0])
    np.testing.assert_allclose(root.output, [[3.0, 0.0]])


def test_gelu_is_the_exact_one() -> None:
    # x·Φ(x) with Φ(1) = 0.841344746…; the tanh approximation gives 0.841191990….
    np.testing.assert_allclose(apply(ops.Activation(function="gelu"), [[1.0]]).output, 0.8413447460685429)


def test_embedding_sums_the_gradients_of_a_word_that_recurs() -> None:
    table = np.arange(6.0).reshape(3, 2)
    op = ops.Embedding(vocabulary=3, features=2)
    y, pullback, _ = REFERENCE[type(op)](op, (np.array([[2, 0, 2]]),), {"weight": table}, False)
    assert y.tolist() == [[[4, 5], [0, 1], [4, 5]]]
    d_inputs, gradients = pullback(np.array([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]))
    assert d_inputs == (None,)
    assert gradients["weight"].tolist() == [[3, 4], [0, 0], [6, 8]]


def test_a_sequence_reads_an_image_row_by_row() -> None:
    image = np.arange(12.0).reshape(1, 2, 2, 3)
    y, pullback, _ = apply(ops.ToSequence(), image)
    assert y.tolist() == [[[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]]
    np.testing.assert_array_equal(pullback(y)[0][0], image)


def test_class_token_and_positions_by_hand() -> None:
    x = [[[1.0, 2.0]], [[3.0, 4.0]]]
    y, pullback, _ = apply(ops.ClassToken(features=2), x, weight=[[5.0, 6.0]])
    assert y.tolist() == [[[5, 6], [1, 2]], [[5, 6], [3, 4]]]
    (dx,), gradients = pullback(y)
    assert (dx.tolist(), gradients["weight"].tolist()) == (x, [[10, 12]])
    y, pullback, _ = apply(ops.Positions(length=1, features=2), x, weight=[[10.0, 20.0]])
    assert y.tolist() == [[[11, 22]], [[13, 24]]]
    assert pullback(y)[1]["weight"].tolist() == [[24, 46]]


def test_pooling_and_taking_a_token_by_hand() -> None:
    x = [[[1.0, 2.0], [3.0, 6.0]]]
    pooled, taken = apply(ops.GlobalAvgPool(), x), apply(ops.TakeToken(index=1), x)
    assert (pooled.output.tolist(), taken.output.tolist()) == ([[2, 4]], [[3, 6]])
    dy = np.array([[2.0, 4.0]])
    assert pooled.pullback(dy)[0][0].tolist() == [[[1, 2], [1, 2]]]
    assert taken.pullback(dy)[0][0].tolist() == [[[0, 0], [2, 4]]]


def test_causal_attention_does_not_see_what_follows() -> None:
    op = ops.Attention(heads=2, kv_heads=1, causal=True, rotary_base=10.0)
    q, k, v = rng(0).normal(size=(1, 4, 4)), rng(1).normal(size=(1, 4, 2)), rng(2).normal(size=(1, 4, 2))
    before = apply(op, q, k, v).output
    k[:, 2:], v[:, 2:] = 7.0, -7.0
    after = apply(op, q, k, v).output
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert (before[:, 2:] != after[:, 2:]).all()


def test_query_heads_share_key_and_value_heads_in_runs() -> None:
    # Scores are 0, so that each query head gives the mean of its value head.
    op = ops.Attention(heads=4, kv_heads=2)
    values = [[[1.0, 10.0], [3.0, 30.0]]]
    out = apply(op, np.zeros((1, 2, 4)), np.ones((1, 2, 2)), values).output
    assert out.tolist() == [[[2, 2, 20, 20], [2, 2, 20, 20]]]


def test_rotary_positions_are_relative_and_keep_lengths() -> None:
    q, k = rng(0).normal(size=(2, 1, 1, 1, 6))
    op = ops.Attention(heads=1, kv_heads=1, rotary_base=50.0)
    angles = op.frequencies(np.arange(0, 6, 2) / 6) * np.arange(5)[:, None]
    turned_q, turned_k = rotate(np.repeat(q, 5, 2), angles), rotate(np.repeat(k, 5, 2), angles)
    np.testing.assert_allclose(np.linalg.norm(turned_q, axis=-1), np.linalg.norm(q), rtol=1e-12)
    scores = (turned_q @ turned_k.swapaxes(2, 3))[0, 0]
    for offset in range(-4, 5):
        np.testing.assert_allclose(np.diff(np.diagonal(scores, offset)), 0, atol=1e-12)
    np.testing.assert_allclose(rotate(turned_q, -angles), np.repeat(q, 5, 2), rtol=1e-12)


# Whole ensembles.


def drawn(case: Case, seed: int = 0) -> tuple[dict[str, Array], Array]:
    values, x = random_values(case.layout, seed), random_input(case.graph, case.batch, seed)
    for array in (x, *values.values()):
        array.setflags(write=False)
    return values, x


@given(cases())
@slow
def test_examples_do_not_touch_in_evaluation(case: Case) -> None:
    values, x = drawn(case)
    whole = forward(case.layout, values, x)
    assert whole.shape == (case.structure.members, len(x), *case.graph.output_shape)
    for i in range(len(x)):
        alone = forward(case.layout, values, x[i : i + 1])
        np.testing.assert_allclose(whole[:, i : i + 1], alone, atol=1e-9 * max(1, np.abs(whole).max()))


@given(cases())
@slow
def test_gradients_of_an_ensemble_are_the_derivative(case: Case) -> None:
    values, x = drawn(case)
    upstream = rng(1).normal(size=(case.structure.members, len(x), *case.graph.output_shape))
    result = value_and_gradients(case.layout, values, x, upstream)
    np.testing.assert_array_equal(result.logits, forward(case.layout, values, x, training=True))
    assert set(result.gradients) == {p.name for p in case.layout.weights if p.weight.trainable}
    assert set(result.running) == {p.name for p in case.layout.weights if not p.weight.trainable}
    step, directions = 1e-6, {n: rng(2).normal(size=g.shape) for n, g in result.gradients.items()}
    ahead, behind = (
        forward(case.layout, moved(values, directions, sign * step), x, training=True) for sign in (1, -1)
    )
    terms = upstream * (ahead - behind) / (2 * step)
    slope = sum((g * directions[n]).sum() for n, g in result.gradients.items())
    np.testing.assert_allclose(slope, terms.sum(), atol=1e-5 * np.abs(terms).sum() + 1e-6)


def moved(values: Mapping[str, Array], directions: Mapping[str, Array], by: float) -> dict[str, Array]:
    return {
        name: value + by * directions[name] if name in directions else value for name, value in values.items()
    }


@given(block_graphs(), st.data())
@slow
def test_heads_with_equal_weights_are_copies_of_the_single_network(graph, data: st.DataObject) -> None:
    heads = data.draw(st.integers(1, 3))
    split = MultiHead(split=data.draw(st.integers(0, len(graph.counted))), heads=heads).layout(graph)
    single = Single().layout(graph)
    values = random_values(single, 0)
    copies = {p.name: values[f"head1/{p.name.partition('/')[2]}"] for p in split.weights}
    x = random_input(graph, 4, 0)
    upstream = rng(0).normal(size=(heads, 4, *graph.output_shape))
    found = value_and_gradients(split, copies, x, upstream)
    alone = [value_and_gradients(single, values, x, upstream[m : m + 1]) for m in range(heads)]
    np.testing.assert_array_equal(found.logits, np.concatenate([a.logits for a in alone]))
    for name, gradient in found.gradients.items():
        part, _, rest = name.partition("/")
        chosen = alone if part == "backbone" else [alone[int(part.removeprefix("head")) - 1]]
        expected = sum(a.gradients[f"head1/{rest}"] for a in chosen)
        np.testing.assert_allclose(gradient, expected, atol=1e-9 * max(1, np.abs(expected).max()))
    for name, new in found.running.items():
        np.testing.assert_array_equal(new, alone[0].running[f"head1/{name.partition('/')[2]}"])


def test_independent_members_are_single_networks() -> None:
    graph = nt_models.mlp(inputs=5, hidden=(4,), classes=3, norm=True)
    both, single = Independent(count=2).layout(graph), Single().layout(graph)
    values, x = random_values(both, 0), random_input(graph, 6, 0)
    for m, logits in enumerate(forward(both, values, x), start=1):
        own = {p.name: values[p.name.replace("head1/", f"head{m}/")] for p in single.weights}
        np.testing.assert_array_equal(logits, forward(single, own, x)[0])


def test_wide_resnet_runs_in_either_dtype() -> None:
    graph = nt_models.wide_resnet(depth=10, width=1, size=8, channels=1, classes=10)
    layout = MultiHead(split=1, heads=2).layout(graph)
    for dtype in (np.float32, np.float64):
        values, x = random_values(layout, 0, dtype), random_input(graph, 4, 0, dtype)
        result = value_and_gradients(layout, values, x, np.ones((2, 4, 10), dtype))
        assert {a.dtype for a in (result.logits, *result.gradients.values())} == {np.dtype(dtype)}


def test_a_block_without_ops_hands_on_what_it_reads() -> None:
    net = GraphBuilder(Features(count=2))
    with net.block("only") as b:
        b.out = b.linear(b.inp, 3)
    with net.classifier() as b:
        b.out = b.inp
    layout = MultiHead(split=1, heads=2).layout(net.build())
    values = random_values(layout, 0)
    x, upstream = rng(0).normal(size=(4, 2)), rng(1).normal(size=(2, 4, 3))
    result = value_and_gradients(layout, values, x, upstream)
    np.testing.assert_allclose(result.gradients["backbone/only/linear1.bias"], upstream.sum((0, 1)))


# What a user can get wrong.


def test_dropout_in_training_is_refused_with_its_place() -> None:
    graph = nt_models.wide_resnet(depth=10, width=1, size=4, classes=2, dropout=0.5)
    layout = Single().layout(graph)
    values, x = random_values(layout, 0), random_input(graph, 2, 0)
    forward(layout, values, x)
    with pytest.raises(NeuroTrailsError, match=r"block 'stage1.1', op 'dropout1': dropout: expected rate 0"):
        forward(layout, values, x, training=True)


def test_batch_norm_of_one_value_is_refused() -> None:
    graph = nt_models.mlp(inputs=2, hidden=(3,), classes=2, norm=True)
    layout = Single().layout(graph)
    with pytest.raises(NeuroTrailsError, match=r"'norm1': batch_norm: expected more than one value"):
        forward(layout, random_values(layout, 0), np.ones((1, 2)), training=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"values: no 'head1/classifier/linear1.weight'"),
        ("shape", r"linear1.weight': expected shape \(2, 3\), found \(3, 2\)"),
        ("input", r"input: expected shape \(4, 3\), found \(4, 5\)"),
        ("upstream", r"upstream: expected shape \(1, 4, 2\), found \(4, 2\)"),
    ],
)
def test_wrong_arrays_are_named(change: str, message: str) -> None:
    layout = Single().layout(nt_models.mlp(inputs=3, hidden=(), classes=2))
    values, x, upstream = random_values(layout, 0), np.ones((4, 3)), np.ones((1, 4, 2))
    weight = values.pop("head1/classifier/linear1.weight")
    if change != "missing":
        values["head1/classifier/linear1.weight"] = weight.T if change == "shape" else weight
    with pytest.raises(NeuroTrailsError, match=message):
        value_and_gradients(
            layout,
            values,
            np.ones((4, 5)) if change == "input" else x,
            upstream[0] if change == "upstream" else upstream,
        )


def test_a_norm_as_builders_write_it_takes_a_tenth_of_each_batch_into_its_running_statistics() -> None:
    layout = Single().layout(nt_models.mlp(inputs=3, hidden=(2,), classes=2, norm=True))
    values = dict(initial_values(layout, seed=0))
    x = np.random.default_rng(0).normal(size=(8, 3))
    hidden = x @ values["head1/hidden1/linear1.weight"].T + values["head1/hidden1/linear1.bias"]
    running = value_and_gradients(layout, values, x, np.zeros((1, 8, 2))).running
    mean, variance = (running[f"head1/hidden1/norm1.running_{name}"] for name in ("mean", "var"))
    np.testing.assert_allclose(mean, 0.1 * hidden.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(variance, 0.9 + 0.1 * hidden.var(axis=0, ddof=1), rtol=1e-6)
