"""Rests that a network cannot be trained on are left out, and no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nt_models
from nt_core import MIMO, BatchEnsemble, BlockGraph, DataError, MultiHead, Single
from nt_core.structure import Structure
from nt_core.testing import Blobs
from nt_core.training import Share, Training, member_batches, trainable

NORMED = nt_models.mlp(inputs=6, hidden=(8,), classes=3, norm=True)
PLAIN = nt_models.mlp(inputs=6, hidden=(8,), classes=3)
IMAGES = nt_models.wide_resnet(depth=10, width=1, classes=3, size=8, channels=1)
STRUCTURES = [
    Single(),
    MultiHead(split=0, heads=3),
    MIMO(count=2),
    MIMO(count=3, repetitions=2),
    BatchEnsemble(count=2),
    BatchEnsemble(count=3, norms="per_member"),
    BatchEnsemble(count=2, batch="tile", norms="per_member"),
]


def prepared(data: Blobs, size: int, structure: Structure, graph: BlockGraph = NORMED, **how: Any) -> Any:
    return trainable(data, Training(batch_size=size), structure, structure.layout(graph), classes=3, **how)


@pytest.mark.parametrize("structure", STRUCTURES, ids=repr)
@settings(max_examples=20)
@given(count=st.integers(1, 40), size=st.integers(1, 12), processes=st.integers(1, 3))
def test_every_batch_has_a_variance_in_every_process(
    structure: Structure, count: int, size: int, processes: int
) -> None:
    layout = structure.layout(NORMED)
    try:
        found = prepared(Blobs(count), size, structure, processes=processes)
    except DataError:
        whole = structure.network_rows(layout, size, processes)
        assert whole < layout.least_rows or count < size
        return
    assert len(found) == count - found.dropped
    assert found.dropped in (0, count % size)
    for index in range(processes):
        share = Share(index, processes)
        batches = list(member_batches(structure, found, 1, size, seed=0, share=share))
        assert sum(batch.examples for batch in batches) == len(found)
        for batch in batches:
            rows = len(batch.labels)
            if structure.kind == "mimo":
                rows //= structure.members
            if structure.kind == "batch_ensemble" and not layout.own_rows:
                rows *= structure.members
            assert rows >= layout.least_rows


def test_the_examples_left_out_are_the_last_of_each_epoch() -> None:
    data, found = Blobs(13), prepared(Blobs(13), 4, Single())
    assert found.dropped == 1
    for number in (1, 2):
        whole, kept = ([x for x, _ in each.epoch(number, 4)] for each in (data, found))
        np.testing.assert_array_equal(np.concatenate(kept), np.concatenate(whole)[:12])
        later = [x for x, _ in found.epoch(number, 4, first=2)]
        np.testing.assert_array_equal(np.concatenate(later), np.concatenate(whole)[8:12])
        np.testing.assert_array_equal(next(found.epoch(number, 100))[0], np.concatenate(whole)[:12])
        assert not list(found.epoch(number, 4, first=3))


@pytest.mark.parametrize("graph", [PLAIN, IMAGES], ids=["no norm", "pixels"])
def test_one_example_is_enough_without_batch_norm_or_with_pixels(graph: BlockGraph) -> None:
    found = prepared(Blobs(1), 1, Single(), graph)
    assert (len(found), found.dropped) == (1, 0)


def test_the_smallest_number_of_rows() -> None:
    found = [structure.layout(NORMED).least_rows for structure in STRUCTURES]
    assert found == [2, 2, 2, 2, 2, 6, 4]
    assert {structure.layout(PLAIN).least_rows for structure in STRUCTURES} == {1}
    assert BatchEnsemble(count=3, norms="per_member").layout(IMAGES).least_rows == 3
    pooled = nt_models.wide_resnet(depth=10, width=1, classes=3, size=4, channels=1)
    assert Single().layout(pooled).least_rows == 2  # its last images are one pixel


def test_messages() -> None:
    with pytest.raises(DataError, match="4 examples in 1 micro-batches for 3 processes: batch norm"):
        prepared(Blobs(12), 4, Single(), processes=3)
    with pytest.raises(DataError, match="expected at least one training example, found none"):
        prepared(Blobs(0), 4, Single())
    data = Blobs(8, shuffle=False)
    data.labels[5] = 3
    batches = prepared(data, 4, Single()).epoch(1, 4)
    next(batches)
    with pytest.raises(DataError, match="data, epoch 1: labels: 3 at position 1, expected 0 to 2"):
        next(batches)
