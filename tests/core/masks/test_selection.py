from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from nt_core.errors import TopologyError
from nt_core.masks import selection, top_k
from nt_core.random import Random

chunks = st.sampled_from([1, 2, 3, 7, 16, 1000])
dtypes = st.sampled_from([np.float16, np.float32, np.float64])


def reference(scores: NDArray[Any], eligible: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
    where = np.flatnonzero(eligible)
    order = np.argsort(-scores[where], kind="stable")
    return np.sort(where[order[:k]])


@st.composite
def problems(draw: st.DrawFn, max_size: int = 60) -> tuple[NDArray[Any], NDArray[np.bool_], int, bool]:
    """Scores with ties, infinities and extremes, an eligibility, its sense, and a feasible k."""
    size = draw(st.integers(1, max_size))
    dtype = draw(dtypes)
    width = np.dtype(dtype).itemsize * 8
    anything = st.floats(allow_nan=False, width=width)  # type: ignore[arg-type]
    few = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf])
    scores = draw(hnp.arrays(dtype, size, elements=draw(st.sampled_from([anything, few]))))
    among = draw(hnp.arrays(np.bool_, size))
    inverse = draw(st.booleans())
    return scores, among, draw(st.integers(0, int((among != inverse).sum()))), inverse


@settings(max_examples=400)
@given(problems(), chunks, st.booleans())
def test_top_k_is_a_stable_sort(problem: Any, chunk: int, as_function: bool) -> None:
    scores, among, k, inverse = problem
    given_scores = (lambda part: scores[part].copy()) if as_function else scores
    found = top_k(given_scores, among, k, inverse=inverse, chunk=chunk)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, reference(scores, among != inverse, k))


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3000),
    st.sampled_from([0, 1, 3, 50, 10**6]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["mixed", "rising", "falling", "periodic"]),
    st.sampled_from([16, 64, 100]),
)
def test_top_k_of_many_chunks_is_a_stable_sort(
    seed: int, size: int, levels: int, density: float, share: float, order: str, chunk: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels + 1, size).astype(np.float32)
    if order in ("rising", "falling"):
        scores = np.sort(scores)[:: 1 if order == "rising" else -1]
    if order == "periodic":  # what a strided sample may fail to see
        scores[np.arange(size) % (size // chunk | 1) != 0] *= -1
    among = rng.random(size) < density
    k = int(share * among.sum())
    np.testing.assert_array_equal(top_k(scores, among, k, chunk=chunk), reference(scores, among, k))


@given(problems(), st.sampled_from([-np.inf, -1.0, 0.0, 1.0, np.inf]), chunks)
def test_the_sample_cannot_change_the_answer(problem: Any, pivot: float, chunk: int) -> None:
    scores, among, k, inverse = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_sampled_pivot", lambda *_: pivot)
        found = top_k(scores, among, k, inverse=inverse, chunk=chunk)
    np.testing.assert_array_equal(found, reference(scores, among != inverse, k))


@given(problems(), chunks, st.data())
def test_nan_is_refused_where_it_is_eligible_and_ignored_elsewhere(
    problem: Any, chunk: int, data: st.DataObject
) -> None:
    scores, among, k, inverse = problem
    eligible = among != inverse
    bad = data.draw(hnp.arrays(np.bool_, scores.size))
    with_nan = np.where(bad, np.nan, scores)
    if k and (bad & eligible).any():
        first = int((bad & eligible).argmax())
        with pytest.raises(TopologyError, match=rf"^scores: NaN at position {first};"):
            top_k(with_nan, among, k, inverse=inverse, chunk=chunk)
    else:
        found = top_k(with_nan, among, k, inverse=inverse, chunk=chunk)
        np.testing.assert_array_equal(found, reference(scores, eligible, k))


@given(problems(), chunks)
def test_a_function_is_asked_for_explicit_slices_and_arguments_stay_untouched(
    problem: Any, chunk: int
) -> None:
    scores, among, k, inverse = problem
    scores.setflags(write=False)
    among.setflags(write=False)

    def read(part: slice) -> Any:
        assert 0 <= part.start < part.stop <= scores.size
        assert part.step >= 1
        return scores[part]

    top_k(read, among, k, inverse=inverse, chunk=chunk)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_edges(size: int, inverse: bool) -> None:
    among = np.full(size, not inverse)
    tied = np.zeros(size, np.float32)
    for k in (0, 1, size):
        np.testing.assert_array_equal(top_k(tied, among, k, inverse=inverse, chunk=10), np.arange(k))
    assert top_k(tied, ~among, 0, inverse=inverse).size == 0


def test_nothing_is_read_for_k_0() -> None:
    def refuse(_: slice) -> NDArray[Any]:
        raise AssertionError

    assert top_k(refuse, np.ones(5, bool), 0).size == 0
    assert top_k(np.empty(0), np.empty(0, bool), 0).size == 0


@pytest.mark.parametrize("k", [-1, 3])
def test_an_impossible_k_states_what_is_available(k: int) -> None:
    with pytest.raises(TopologyError, match=rf"^k: {k} positions requested, 2 available; choose 0 to 2$"):
        top_k(np.zeros(4), np.array([True, False, True, False]), k)


def test_shapes_and_types_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TopologyError, match=r"scores: shape \(3,\) differs from the shape \(4,\)"):
        top_k(np.zeros(3), np.ones(4, bool), 1)
    with pytest.raises(
        TopologyError, match=r"expected bool of shape \(n,\), found float64 of shape \(2, 2\)"
    ):
        top_k(np.zeros((2, 2)), np.ones((2, 2)), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16])
def test_integer_scores_are_ordered_exactly(dtype: type[np.integer[Any]]) -> None:
    scores = np.array([3, 1, 2, 3, 0], dtype)
    np.testing.assert_array_equal(top_k(scores, np.ones(5, bool), 3, chunk=2), [0, 2, 3])


def test_the_order_of_large_scores_survives_the_sample() -> None:
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal(300_000, dtype=np.float32)
    among = rng.random(gradients.size) < 0.2
    found = top_k(lambda part: np.abs(gradients[part]), among, 6000, inverse=True)
    np.testing.assert_array_equal(found, reference(np.abs(gradients), ~among, 6000))


@pytest.mark.parametrize("inverse", [False, True])
def test_one_pass_and_a_sample_are_enough_for_ordinary_scores(inverse: bool) -> None:
    rng, size, chunk, parts = np.random.default_rng(0), 200_000, 4096, []
    among = rng.random(size) < 0.2
    scores = rng.standard_normal(size) * np.where(among != inverse, 1, 100)

    def read(part: slice) -> Any:
        parts.append(part)
        return scores[part]

    np.testing.assert_array_equal(
        top_k(read, among, 3000, inverse=inverse, chunk=chunk), reference(scores, among != inverse, 3000)
    )
    assert sum(len(range(size)[part]) for part in parts) <= size + chunk


def test_a_random_stream_is_a_score() -> None:
    stream = Random(0).at(weight="w", purpose="grow")
    among = stream.bits(slice(0, 5000)) % 3 == 0
    found = top_k(stream.gumbel, among, 100, chunk=64)
    np.testing.assert_array_equal(found, reference(stream.gumbel(slice(0, 5000)), among, 100))


@pytest.mark.parametrize("order", ["mixed", "tied", "rising"])
def test_memory_beyond_the_answer_is_a_few_candidates(order: str) -> None:
    size, k = 2_000_000, 100_000
    scores = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    if order == "tied":
        scores[:] = 0
    if order == "rising":
        scores.sort()
    among = np.ones(size, bool)
    tracemalloc.start()
    try:
        top_k(scores, among, k)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * k * 16
