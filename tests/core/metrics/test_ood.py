from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from nt_core.errors import DataError
from nt_core.metrics import aggregate, detection, ood_score

# Few distinct values, so that ties within and between the sets are common.
values = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1, width=32))
scores = hnp.arrays(np.float64, st.integers(1, 25), elements=values)


def by_pairs(inside: NDArray[Any], outside: NDArray[Any]) -> float:
    higher, equal = outside[:, None] > inside, outside[:, None] == inside
    return float((higher + equal / 2).mean())


def by_thresholds(inside: NDArray[Any], outside: NDArray[Any]) -> tuple[float, float]:
    """Average precision and FPR at 95 % TPR, one threshold after another."""
    precision_sum, recall, fpr95 = 0.0, 0.0, None
    for threshold in sorted({*inside.tolist(), *outside.tolist()}, reverse=True):
        true, false = int((outside >= threshold).sum()), int((inside >= threshold).sum())
        precision_sum += (true / len(outside) - recall) * true / (true + false)
        recall = true / len(outside)
        if fpr95 is None and 20 * true >= 19 * len(outside):
            fpr95 = false / len(inside)
    assert fpr95 is not None
    return precision_sum, fpr95


@given(scores, scores)
def test_detection_is_what_counting_gives(inside: NDArray[Any], outside: NDArray[Any]) -> None:
    found = detection(inside, outside)
    aupr, fpr95 = by_thresholds(inside, outside)
    assert found.auroc == pytest.approx(by_pairs(inside, outside), abs=1e-12)
    assert found.aupr == pytest.approx(aupr, abs=1e-12)
    assert found.fpr95 == fpr95


@given(scores, scores, st.randoms())
def test_the_order_of_examples_plays_no_part(
    inside: NDArray[Any], outside: NDArray[Any], random: Any
) -> None:
    shuffled = [np.array(random.sample(part.tolist(), len(part))) for part in (inside, outside)]
    assert detection(*shuffled) == detection(inside, outside)


@given(scores, scores)
def test_swapping_the_sets_and_the_sign_keeps_the_area(inside: NDArray[Any], outside: NDArray[Any]) -> None:
    assert detection(-outside, -inside).auroc == pytest.approx(detection(inside, outside).auroc, abs=1e-12)


def test_a_constant_score_detects_nothing() -> None:
    found = detection(np.zeros(30), np.zeros(10))
    assert (found.auroc, found.aupr, found.fpr95) == (0.5, 0.25, 1.0)


def test_nineteen_of_twenty_are_95_percent() -> None:
    outside = np.array([1.0] * 19 + [0.0])
    assert detection(np.array([0.5] * 4), outside).fpr95 == 0


@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_the_score_is_one_less_the_confidence(members: int, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(members, 5, 4)) * 5
    probabilities = np.exp(aggregate(logits))
    np.testing.assert_allclose(ood_score(aggregate(logits)), 1 - probabilities.max(axis=-1), atol=1e-12)


def test_scores_of_the_nearly_certain_are_still_told_apart() -> None:
    assert ood_score(np.array([[-1e-20, -50.0], [-1e-19, -50.0]])).tolist() == [1e-20, 1e-19]


@pytest.mark.parametrize(("inside", "outside"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0])])
def test_empty_or_broken_scores_are_errors(inside: list[float], outside: list[float]) -> None:
    with pytest.raises(DataError, match="expected finite scores, at least one"):
        detection(np.array(inside), np.array(outside))
