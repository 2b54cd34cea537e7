from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from nt_core.errors import DataError
from nt_core.metrics import IGNORED, Metrics, aggregate, fit
from nt_core.metrics import sums as metrics

Aggregation = Literal["mean_prob", "mean_logit"]
aggregations = st.sampled_from(["mean_prob", "mean_logit"])


@st.composite
def batches(draw: st.DrawFn, min_batch: int = 1) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Logits (M, B, C) with ties and extremes, and labels."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(min_batch, 12), st.integers(1, 6)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    elements = draw(st.sampled_from([st.floats(-1e4, 1e4, width=32), st.sampled_from([-1.0, 0.0, 0.5, 2.0])]))
    logits = draw(hnp.arrays(dtype, shape, elements=elements))
    return logits, draw(hnp.arrays(np.int64, shape[1], elements=st.integers(0, shape[2] - 1)))


def one_hot_logits(probabilities: Any) -> NDArray[np.float64]:
    return np.log(np.asarray(probabilities, np.float64))


def assert_same(a: Metrics, b: Metrics) -> None:
    for field in dataclasses.fields(Metrics):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if np.issubdtype(np.asarray(left).dtype, np.integer):
            np.testing.assert_array_equal(left, right, err_msg=field.name)
        else:
            np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-12, err_msg=field.name)


@given(batches(), aggregations)
def test_aggregate_is_a_distribution_and_ignores_the_order_of_members(batch: Any, how: Aggregation) -> None:
    logits, _ = batch
    found = aggregate(logits, how)
    assert found.dtype == np.float64
    np.testing.assert_allclose(np.exp(found).sum(axis=-1), 1, rtol=1e-9)
    np.testing.assert_allclose(aggregate(logits[::-1], how), found, rtol=1e-9, atol=1e-9)


@given(
    hnp.arrays(np.float64, st.tuples(*(st.integers(1, n) for n in (4, 5, 6))), elements=st.floats(-20, 20)),
    st.floats(-1e4, 1e4),
)
def test_aggregate_is_the_naive_formula_and_ignores_a_shift(
    logits: NDArray[np.float64], shift: float
) -> None:
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.exp(aggregate(logits)), probabilities.mean(axis=0), rtol=1e-9)
    mean = np.exp(logits.mean(axis=0))
    np.testing.assert_allclose(np.exp(aggregate(logits, "mean_logit")), mean / mean.sum(-1, keepdims=True))
    for how in ("mean_prob", "mean_logit"):
        np.testing.assert_allclose(
            np.exp(aggregate(logits + shift, how)), np.exp(aggregate(logits, how)), rtol=1e-7, atol=1e-9
        )


def test_aggregate_keeps_what_probabilities_would_lose() -> None:
    logits = np.array([[[1e4, -1e4]], [[1e4, -1e4]]])
    np.testing.assert_array_equal(aggregate(logits), [[0.0, -2e4]])
    np.testing.assert_array_equal(aggregate(logits, "mean_logit"), [[0.0, -2e4]])


def test_the_two_aggregations_differ() -> None:
    logits = one_hot_logits([[[0.98, 0.02]], [[0.1, 0.9]]])
    np.testing.assert_allclose(np.exp(aggregate(logits)), [[0.54, 0.46]])
    odds = math.sqrt(49 / 9)
    np.testing.assert_allclose(np.exp(aggregate(logits, "mean_logit")), [[odds / (1 + odds), 1 / (1 + odds)]])


@given(batches(), aggregations, st.data())
def test_streaming_in_any_split_and_order_is_the_whole(
    batch: Any, how: Aggregation, data: st.DataObject
) -> None:
    logits, labels = batch
    cuts = sorted(data.draw(st.lists(st.integers(0, len(labels)), max_size=4)))
    parts = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, len(labels)], strict=True)]
    order = data.draw(st.permutations(parts))
    streamed = Metrics.sum(Metrics.of(logits[:, part], labels[part], how) for part in order)
    assert_same(streamed, Metrics.of(logits, labels, how))


@given(batches(), aggregations, st.integers(1, 50))
def test_the_size_of_internal_chunks_changes_nothing(batch: Any, how: Aggregation, chunk: int) -> None:
    logits, labels = batch
    whole = Metrics.of(logits, labels, how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_CHUNK", chunk)
        assert_same(Metrics.of(logits, labels, how), whole)


@given(batches(), batches(), batches())
def test_adding_is_associative_and_commutative(a: Any, b: Any, c: Any) -> None:
    x, y, z = (Metrics.of(np.resize(logits, (2, *logits.shape[1:])), labels) for logits, labels in (a, b, c))
    assert_same((x + y) + z, x + (y + z))
    assert_same(x + y, y + x)


@given(batches(), aggregations)
def test_metrics_are_their_definitions(batch: Any, how: Aggregation) -> None:
    logits, labels = batch
    found = Metrics.of(logits, labels, how)
    log_p, rows, members = aggregate(logits, how), np.arange(len(labels)), len(logits)
    assert found.count == len(labels)
    assert found.correct == (log_p.argmax(-1) == labels).sum()
    assert found.accuracy == found.correct / found.count
    assert found.nll == pytest.approx(-log_p[rows, labels].mean(), abs=1e-9)
    assert found.perplexity == pytest.approx(math.exp(found.nll) if found.nll < 700 else found.perplexity)
    for m in range(members):
        alone = Metrics.of(logits[m : m + 1], labels, how)
        assert found.member_nll[m] == pytest.approx(alone.nll, rel=1e-9, abs=1e-9)
        assert found.member_accuracy[m] == (logits[m].argmax(-1) == labels).mean()
    predictions = logits.argmax(-1)
    pairs = [(predictions[i] != predictions[j]).mean() for i in range(members) for j in range(i)]
    assert found.disagreement == pytest.approx(np.mean(pairs) if pairs else 0.0)
    assert found.disagreement_full_matrix == pytest.approx(found.disagreement * (members - 1) / members)
    np.testing.assert_array_equal(found.disagreement_matrix, found.disagreement_matrix.T)
    np.testing.assert_array_equal(np.diagonal(found.disagreement_matrix), 0)


@given(batches(), aggregations)
def test_ece_is_its_definition(batch: Any, how: Aggregation) -> None:
    logits, labels = batch
    log_p = aggregate(logits, how)
    confidence, right = np.exp(log_p.max(-1)), log_p.argmax(-1) == labels
    wanted = 0.0
    for b in range(15):
        low, high = b / 15 if b else -1.0, (b + 1) / 15 if b < 14 else 2.0
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert Metrics.of(logits, labels, how).ece == pytest.approx(wanted, abs=1e-9)


def test_disagreement_is_pairwise_not_full_matrix() -> None:
    # predictions: member 0 = (0, 0), member 1 = (0, 1), member 2 = (1, 1)
    logits = np.eye(2)[np.array([[0, 0], [0, 1], [1, 1]])]
    found = Metrics.of(logits, np.array([0, 0]))
    np.testing.assert_array_equal(found.disagreement_matrix, [[0, 0.5, 1], [0.5, 0, 0.5], [1, 0.5, 0]])
    assert found.disagreement == pytest.approx(2 / 3)
    assert found.disagreement_full_matrix == pytest.approx(4 / 9)


def test_one_member_does_not_disagree() -> None:
    found = Metrics.of(np.eye(3)[None], np.array([0, 1, 2]))
    assert found.disagreement == found.disagreement_full_matrix == 0.0


def test_nll_is_over_examples_not_mean_of_batch_means() -> None:
    logits = one_hot_logits([[[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.125, 0.875]]])
    found = Metrics.of(logits[:, :3], np.zeros(3, int)) + Metrics.of(logits[:, 3:], np.zeros(1, int))
    assert found.nll == pytest.approx(math.log(2) * (1 + 1 + 1 + 3) / 4)  # batch means would give 2·log 2
    assert found.perplexity == pytest.approx(2**1.5)


@pytest.mark.parametrize("bin_index", range(15))
def test_ece_bins_are_open_closed(bin_index: int) -> None:
    upper = (bin_index + 1) / 15
    edges = [upper, np.nextafter(upper, 2)]
    wanted = [bin_index, min(bin_index + 1, 14)]
    np.testing.assert_array_equal(np.searchsorted(metrics._EDGES, edges, side="left"), wanted)


def test_ece_puts_a_confidence_on_an_edge_below_it() -> None:
    # four equal logits: confidence 1/4; five: exactly 1/5 = 3/15, the closed end of the third bin
    found = Metrics.of(np.zeros((1, 1, 5)), np.array([0]))
    np.testing.assert_array_equal(np.flatnonzero(found.bin_counts), [2])
    assert found.ece == pytest.approx(0.8)


def test_ece_by_hand() -> None:
    # bin (8/15, 9/15]: 0.56 right, 0.58 wrong; bin (14/15, 1]: 0.95 right
    logits = one_hot_logits([[[0.56, 0.44], [0.58, 0.42], [0.95, 0.05]]])
    found = Metrics.of(logits, np.array([0, 1, 0]))
    assert found.ece == pytest.approx(2 / 3 * abs(0.5 - 0.57) + 1 / 3 * abs(1 - 0.95))
    assert found.bin_counts.sum() == found.count == 3


def test_ties_go_to_the_lowest_class() -> None:
    found = Metrics.of(np.zeros((2, 3, 4)), np.array([0, 1, 0]))
    assert found.correct == 2
    np.testing.assert_array_equal(found.member_correct, [2, 2])


def test_a_certain_error_has_finite_nll_and_infinite_perplexity() -> None:
    found = Metrics.of(np.array([[[1e4, -1e4]]]), np.array([1]))
    assert found.nll == 2e4
    assert found.perplexity == math.inf


def test_arrays_are_read_only_and_independent_of_the_caller() -> None:
    counts = np.zeros((1, 1), np.int64)
    found = dataclasses.replace(Metrics.of(np.zeros((1, 1, 2)), np.array([0])), disagreements=counts)
    counts[0, 0] = 7
    assert found.disagreements[0, 0] == 0
    for name in ("member_correct", "member_nll_sum", "disagreements", "bin_counts", "bin_correct"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(found, name)[...] = 0


def test_to_dict_is_json_with_every_metric() -> None:
    found = Metrics.of(np.random.default_rng(0).standard_normal((3, 8, 4)), np.arange(8) % 4)
    stored = json.loads(json.dumps(found.to_dict()))
    assert stored == found.to_dict()
    for name, value in stored.items():
        np.testing.assert_array_equal(value, getattr(found, name))


@pytest.mark.parametrize(
    "name", ["accuracy", "nll", "perplexity", "ece", "disagreement", "member_nll", "to_dict"]
)
def test_no_examples_have_no_metrics(name: str) -> None:
    empty = Metrics.of(np.zeros((2, 0, 3)), np.zeros(0, int))
    assert empty.count == 0
    with pytest.raises(DataError, match="no examples"):
        _ = empty.to_dict() if name == "to_dict" else getattr(empty, name)


def test_no_records_have_no_sum() -> None:
    with pytest.raises(DataError, match="no examples"):
        Metrics.sum([])


@given(batches(min_batch=0), aggregations)
def test_no_examples_are_neutral(batch: Any, how: Aggregation) -> None:
    logits, labels = batch
    found = Metrics.of(logits, labels, how)
    assert_same(found + Metrics.of(logits[:, :0], labels[:0], how), found)


@pytest.mark.parametrize(("label", "at"), [(-1, 0), (4, 2)])
def test_a_label_outside_the_classes_is_named(label: int, at: int) -> None:
    labels = np.zeros(3, int)
    labels[at] = label
    with pytest.raises(DataError, match=rf"^labels: {label} at position {at}, expected 0 to 3$"):
        Metrics.of(np.zeros((2, 3, 4)), labels)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_named(value: float) -> None:
    logits = np.zeros((2, 3, 4))
    logits[1, 2, 3] = value
    with pytest.raises(DataError, match=rf"^logits: {value} at member 1, row 2, class 3$"):
        Metrics.of(logits, np.zeros(3, int))
    with pytest.raises(DataError, match="row 2"):
        aggregate(logits)


@given(batches(min_batch=6), aggregations)
def test_each_token_is_an_example(batch: Any, how: Aggregation) -> None:
    logits, labels = batch
    logits, labels = logits[:, :6], labels[:6]
    members, _, classes = logits.shape
    tokens = Metrics.of(logits.reshape(members, 2, 3, classes), labels.reshape(2, 3), how)
    assert_same(tokens, Metrics.of(logits, labels, how))
    finite = tokens.member_nll < 700
    np.testing.assert_allclose(tokens.member_perplexity[finite], np.exp(tokens.member_nll[finite]))


@given(st.integers(1, 9), st.lists(st.integers(1, 4000), min_size=1, max_size=2))
def test_batches_of_an_evaluation_are_small_where_examples_have_many_logits(
    members: int, output: list[int]
) -> None:
    size = metrics.evaluation_batch_size(members, output)
    assert 1 <= size <= 256
    assert size == 1 or size * members * math.prod(output) <= 1 << 26


@pytest.mark.parametrize("shape", [(3, 4), (0, 3, 4), (2, 3, 0)])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"expected shape \(members, batch, classes\)"):
        Metrics.of(np.zeros(shape), np.zeros(3, int))


@pytest.mark.parametrize("labels", [np.zeros(2, int), np.zeros((3, 1), int), np.zeros(3)])
def test_labels_of_another_shape_or_type_are_refused(labels: NDArray[Any]) -> None:
    with pytest.raises(DataError, match=r"labels: expected integers of shape \(3,\)"):
        Metrics.of(np.zeros((2, 3, 4)), labels)


def test_another_number_of_members_and_an_unknown_aggregation_are_refused() -> None:
    two, three = (Metrics.of(np.zeros((m, 1, 2)), np.array([0])) for m in (2, 3))
    with pytest.raises(DataError, match="members: cannot add metrics of 2 and 3"):
        _ = two + three
    with pytest.raises(DataError, match="neither 'mean_prob' nor 'mean_logit'"):
        aggregate(np.zeros((1, 1, 2)), "mean")  # type: ignore[arg-type]


@given(batches(min_batch=1), aggregations, st.integers(0, 2**32 - 1))
def test_ignored_labels_count_nowhere(batch: Any, how: Aggregation, seed: int) -> None:
    logits, labels = batch
    counted = np.random.default_rng(seed).random(len(labels)) < 0.5
    found = Metrics.of(logits, np.where(counted, labels, IGNORED), how)
    assert_same(found, Metrics.of(logits[:, counted], labels[counted], how))


def test_ignored_tokens_and_the_fit_of_an_average() -> None:
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(2, 6, 5, 4)), draw.integers(0, 4, (6, 5))
    labels[draw.random((6, 5)) < 0.4] = IGNORED
    counted = labels != IGNORED
    assert Metrics.of(logits, labels).count == counted.sum()
    flat, kept = logits.reshape(2, 30, 4), counted.reshape(-1)
    assert fit(flat, labels.reshape(-1)) == fit(flat[:, kept], labels.reshape(-1)[kept])
    with pytest.raises(DataError, match="expected an example that counts at least"):
        fit(flat, np.full(30, IGNORED))
    for label in (-1, 4):
        with pytest.raises(DataError, match=f"fit: labels: {label} at position 0, expected 0 to 3"):
            fit(flat, np.full(30, label))
