"""What the conformance suite and the property tests draw from is as arbitrary as it says."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

import nt_models
from nt_core import Mask
from nt_core.graph import ops
from nt_core.testing import Case, model_cases, op_cases, random_masks, random_values
from nt_core.testing import strategies as nts
from nt_core.testing.problem import clearance, problem

OPS = op_cases()
MODELS = model_cases(
    {"wide_resnet": nt_models.wide_resnet(depth=10, width=1, size=8, channels=1, classes=10)}
)


def test_random_values_are_never_zero_and_do_not_depend_on_the_dtype_or_the_other_weights() -> None:
    for case in (*OPS, *MODELS):
        double, single = (random_values(case.layout, 3, dtype) for dtype in (np.float64, np.float32))
        for placed in case.layout.weights:
            assert double[placed.name].shape == placed.weight.shape
            assert (double[placed.name] != 0).all()
            np.testing.assert_array_equal(single[placed.name], double[placed.name].astype(np.float32))
            if placed.weight.name == "running_var":
                assert (double[placed.name] > 0).all()
    first, second = (next(c for c in MODELS if c.name == f"mlp/{s}") for s in ("single", "independent2"))
    one, two = random_values(first.layout, 3), random_values(second.layout, 3)
    assert all((two[name] == value).all() for name, value in one.items())
    assert any((one[name] != value).any() for name, value in random_values(first.layout, 4).items())


def test_random_masks_lie_on_every_kernel_and_nothing_else() -> None:
    for case in MODELS:
        masks = random_masks(case.layout, 0)
        assert {n: m.shape for n, m in masks.items()} == {
            p.name: p.weight.shape for p in case.layout.sparsifiable
        }
        assert any(0 < mask.count < mask.size for mask in masks.values())
        assert all(mask.dense().reshape(mask.shape[0], -1).any(1).all() for mask in masks.values())


@pytest.mark.parametrize("case", [*OPS, *MODELS], ids=str)
def test_rounding_decides_nothing_in_float32(case: Case) -> None:
    masks = random_masks(case.layout, zlib.crc32(case.name.encode()))
    for chosen in ({}, masks):
        assert case.ties or clearance(case, problem(case, np.float32, chosen)) >= 1


def test_masks_apply_to_a_problem() -> None:
    case = MODELS[0]
    masks = random_masks(case.layout, 0)
    values = problem(case, np.float32, masks).values
    for name, mask in masks.items():
        np.testing.assert_array_equal(values[name] != 0, mask.dense())


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(nts.cases())
def test_drawn_cases_are_valid(case: Case) -> None:
    assert len(case.layout.heads) == case.structure.members
    assert len({placed.name for placed in case.layout.weights}) == len(case.layout.weights)


def test_drawn_graphs_reach_every_op_but_dropout() -> None:
    seen: Counter[Any] = Counter()

    @settings(deadline=None, max_examples=400, database=None, derandomize=True)
    @given(nts.block_graphs())
    def collect(graph: Any) -> None:
        seen.update(type(node.op) for _, node in graph.nodes())

    collect()
    assert set(seen) == set(ops.OPS) - {ops.Dropout}


@pytest.mark.parametrize(
    "wanted",
    [
        lambda m: m.count == 0,
        lambda m: m.count == m.size > 50,
        lambda m: m.shape == (1, 1) and m.count == 1,
        lambda m: m.shape[0] > 100 and 0 < m.count < m.size,
        lambda m: m.shape[1] > 100 and m.shape[0] == 1,
        lambda m: len(m.shape) == 4 and m.shape[2] != m.shape[3],
    ],
)
def test_drawn_masks_reach_the_corners(wanted: Any) -> None:
    assert isinstance(
        find(nts.masks(), wanted, settings=settings(database=None, derandomize=True, max_examples=5000)), Mask
    )


@given(st.data(), st.sampled_from([np.float32, np.float64]))
def test_drawn_floats_are_finite_and_of_the_dtype(data: st.DataObject, dtype: Any) -> None:
    drawn = data.draw(nts.floats_with_ties((3, 4), dtype))
    assert drawn.dtype == dtype
    assert np.isfinite(drawn).all()


def test_drawn_floats_tie() -> None:
    tied = find(
        nts.floats_with_ties((6,)), lambda a: len(np.unique(a)) == 2, settings=settings(database=None)
    )
    assert tied.shape == (6,)
