from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nt_core.errors import TopologyError
from nt_core.masks import Mask
from nt_core.testing.strategies import masks, weight_shapes
from nt_core.values import Shape

SHAPES: tuple[Shape, ...] = ((1, 1), (1, 2000), (2000, 1), (3, 70_000), (4, 3, 2, 5), (7,), (), (1, 1, 1, 1))


def rows_and_columns(shape: Shape) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def assert_csr(mask: Mask) -> None:
    """Hold for every mask."""
    rows, columns = rows_and_columns(mask.shape)
    assert mask.indptr.dtype == np.int64
    assert mask.indices.dtype in (np.int32, np.int64)
    assert mask.indptr.shape == (rows + 1,)
    assert mask.indptr[0] == 0
    assert mask.indptr[-1] == mask.indices.size == mask.count
    assert (np.diff(mask.indptr) >= 0).all()
    assert mask.size == rows * columns
    assert 0 <= mask.count <= mask.size
    assert mask.density == mask.count / mask.size
    for start, end in zip(mask.indptr, mask.indptr[1:], strict=False):
        row = mask.indices[start:end]
        assert (np.diff(row) > 0).all()
        assert not row.size or (row[0] >= 0 and row[-1] < columns)
    for array in (mask.indptr, mask.indices):
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@settings(max_examples=200)
@given(masks())
def test_random_masks_are_csr(mask: Mask) -> None:
    assert_csr(mask)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_masks_of_extreme_shapes_are_csr(shape: Shape, share: float) -> None:
    size = math.prod(shape)
    chosen = np.sort(np.random.default_rng(0).permutation(size)[: round(share * size)])
    mask = Mask.from_flat(shape, chosen)
    assert_csr(mask)
    np.testing.assert_array_equal(mask.flat(), chosen)


@settings(max_examples=200)
@given(masks())
def test_flat_and_dense_views_give_the_mask_back(mask: Mask) -> None:
    flat, dense = mask.flat(), mask.dense()
    assert flat.dtype == np.int64
    assert dense.dtype == np.bool_
    assert dense.shape == mask.shape
    assert (np.diff(flat) > 0).all()
    np.testing.assert_array_equal(np.flatnonzero(dense), flat)
    for again in (Mask.from_flat(mask.shape, flat), Mask.from_dense(dense)):
        assert again == mask
        assert hash(again) == hash(mask)
        assert again.digest() == mask.digest()


@given(masks(), st.sampled_from([np.uint8, np.int16, np.uint32, np.uint64, np.int64]))
def test_any_integers_are_positions(mask: Mask, dtype: Any) -> None:
    flat = mask.flat()
    if flat.size and flat[-1] > np.iinfo(dtype).max:
        return
    assert Mask.from_flat(mask.shape, flat.astype(dtype)) == mask


@given(masks())
def test_views_are_fresh_arrays(mask: Mask) -> None:
    dense, flat = mask.dense(), mask.flat()
    dense[...] = ~dense
    flat[...] = -1
    assert_csr(mask)
    assert (mask.dense() == ~dense).all()


@given(masks())
def test_making_a_mask_leaves_its_source_alone(mask: Mask) -> None:
    flat, dense = mask.flat(), mask.dense()
    Mask.from_flat(mask.shape, flat)
    Mask.from_dense(dense)
    assert flat.flags.writeable
    assert dense.flags.writeable


@given(weight_shapes())
def test_full_and_empty_masks(shape: Shape) -> None:
    full, empty = Mask.full(shape), Mask.from_flat(shape, np.empty(0, np.int64))
    assert full.dense().all()
    assert (full.count, full.density) == (full.size, 1.0)
    assert not empty.dense().any()
    assert (empty.count, empty.density) == (0, 0.0)
    assert empty == Mask.from_flat(shape, np.array([], dtype=np.float64))
    assert_csr(full)
    assert_csr(empty)


@pytest.mark.parametrize(
    "positions",
    [[-1], [6], [0, 0], [2, 1], [0, 6], [-3, 2], [0.5], [True, False], [[0, 1]], [2**63 + 1]],
    ids=str,
)
def test_positions_doubled_out_of_order_or_outside_are_an_error(positions: Any) -> None:
    with pytest.raises(TopologyError, match=r"shape \(2, 3\): expected ascending flat positions below 6"):
        Mask.from_flat((2, 3), np.array(positions))


@st.composite
def swaps(draw: st.DrawFn) -> tuple[Mask, NDArray[np.int64], NDArray[np.int64]]:
    mask = draw(masks())
    active = mask.flat()
    inactive = np.flatnonzero(~mask.dense().reshape(-1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pruned = np.sort(rng.permutation(active)[: draw(st.integers(0, active.size))])
    grown = np.sort(rng.permutation(inactive)[: draw(st.integers(0, inactive.size))])
    return mask, pruned, grown


@settings(max_examples=200)
@given(swaps())
def test_a_swap_removes_the_pruned_and_adds_the_grown_and_nothing_else(drawn: Any) -> None:
    mask, pruned, grown = drawn
    before = mask.digest()
    after = mask.swap(pruned, grown)
    assert_csr(after)
    assert mask.digest() == before
    assert set(after.flat().tolist()) == (set(mask.flat().tolist()) - set(pruned.tolist())) | set(
        grown.tolist()
    )
    assert after.count == mask.count - len(pruned) + len(grown)
    assert after.swap(grown, pruned) == mask


@given(swaps())
def test_a_swap_that_prunes_the_inactive_or_grows_the_active_is_an_error(drawn: Any) -> None:
    mask, pruned, grown = drawn
    nothing = np.empty(0, np.int64)
    if grown.size:
        with pytest.raises(TopologyError, match="pruned positions must be active"):
            mask.swap(grown, nothing)
    kept = np.setdiff1d(mask.flat(), pruned)
    if kept.size:
        with pytest.raises(TopologyError, match="grown positions must be inactive"):
            mask.swap(pruned, kept)
    # A position just pruned is inactive: to return, it is in neither list.
    assert mask.swap(pruned, pruned) == mask


@pytest.mark.parametrize("positions", [[-1], [6], [1, 0], [0, 0], [-6]])
def test_a_swap_outside_the_weight_is_an_error_not_a_wrap_around(positions: list[int]) -> None:
    nothing, wrong = np.empty(0, np.int64), np.array(positions)
    with pytest.raises(TopologyError, match="ascending flat positions below 6"):
        Mask.full((2, 3)).swap(wrong, nothing)
    with pytest.raises(TopologyError, match="ascending flat positions below 6"):
        Mask.from_flat((2, 3), nothing).swap(nothing, wrong)


@settings(max_examples=200)
@given(masks(), st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32))
def test_to_csr_holds_the_active_values_and_multiplies_as_the_masked_weight(
    mask: Mask, dtype: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=mask.shape).astype(dtype)
    sparse = mask.to_csr(weights)
    masked = np.where(mask.dense(), weights, 0).reshape(rows_and_columns(mask.shape))
    assert sparse.dtype == dtype
    assert sparse.nnz == mask.count
    np.testing.assert_array_equal(sparse.toarray(), masked)
    x = rng.normal(size=masked.shape[1]).astype(dtype)
    np.testing.assert_allclose(sparse @ x, masked @ x, rtol=1e-3, atol=1e-3 if dtype == np.float32 else 1e-10)


def test_to_csr_keeps_active_zeros() -> None:
    mask = Mask.full((2, 2))
    assert mask.to_csr(np.zeros((2, 2))).nnz == 4


@settings(max_examples=200)
@given(masks(), masks())
def test_equality_digest_and_hash_agree(a: Mask, b: Mask) -> None:
    same = a.shape == b.shape and bool((a.dense() == b.dense()).all())
    assert (a == b) is same
    assert (a.digest() == b.digest()) is same
    assert not same or hash(a) == hash(b)


def test_masks_of_one_pattern_and_other_shape_differ() -> None:
    a, b = (Mask.from_flat(shape, np.array([0, 1])) for shape in ((2, 3), (3, 2)))
    assert a != b
    assert a.digest() != b.digest()
    assert a != "mask"


def test_digest_is_the_same_on_every_machine() -> None:
    mask = Mask.from_flat((2, 3, 1, 2), np.array([0, 5, 11]))
    assert mask.digest() == "33aa86cdf33fa3d639a72f97e5597e80"


def test_a_mask_holds_at_most_four_bytes_for_an_active_element() -> None:
    mask = Mask.from_flat((1000, 1000), np.arange(0, 10**6, 10))
    assert mask.indices.nbytes == 4 * mask.count
    assert mask.indptr.nbytes == 8 * 1001


def test_making_a_sparse_mask_makes_no_array_of_the_weights_size() -> None:
    positions = np.arange(0, 10**9, 10**5)
    tracemalloc.start()
    mask = Mask.from_flat((1000, 1000, 1000), positions)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mask.count == 10**4
    assert peak < 2**20
