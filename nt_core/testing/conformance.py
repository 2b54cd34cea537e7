"""The conformance suite, which compares every backend with the NumPy reference.

A backend offers the methods of :class:`Backend` on plain arrays, and its tests call every check on every
case::

    @pytest.mark.parametrize("case", [*op_cases(), *model_cases()], ids=str)
    @pytest.mark.parametrize("check", CHECKS)
    def test_conforms(check, case):
        check(MyBackend(), case, np.float64)
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np

from nt_core.graph import Features, GraphBuilder
from nt_core.masks import Mask
from nt_core.reference import Array, Evaluated, Values, forward, value_and_gradients
from nt_core.structure import Single
from nt_core.testing.cases import Case
from nt_core.testing.data import random_masks
from nt_core.testing.problem import FloatType, Problem, masked, problem

LEARNING_RATE = 0.25

TOLERANCES: Mapping[tuple[Literal["op", "model"], FloatType], float] = MappingProxyType(
    {
        # Rounding alone is about 1e-16 an operation; anything above shows another formula, not another order.
        ("op", np.float64): 1e-10,
        ("model", np.float64): 1e-10,
        # Half a unit in the last place is 6e-8; sums of some hundred terms, a softmax or a division by a
        # small deviation lose one to two digits.
        ("op", np.float32): 1e-5,
        # Ten to twenty such ops in a row, forward and back.
        ("model", np.float32): 1e-4,
    }
)
"""The largest allowed difference, relative to the largest expected magnitude in the array, or to 1 where that
magnitude is below 1, because some gradients are 0 up to rounding, of a bias before batch norm say."""


class Backend(Protocol):
    """Methods of a backend for the checks; all arrays are NumPy arrays, in the dtype of the values.

    ``case.layout`` is the layout to compile. ``values`` holds every weight of the layout by its full name;
    results are keyed in the same way. ``x`` is (B, *input shape), int64 for token numbers; ``upstream`` is
    (M, B, *output shape). No argument may be changed.
    """

    def forward(self, case: Case, values: Values, x: Array, *, training: bool) -> Array:
        """Return the logits, (M, B, *output shape)."""

    def gradients(self, case: Case, values: Values, x: Array, upstream: Array) -> Mapping[str, Array]:
        """Return, in training mode, ∂(Σ upstream·logits)/∂weight for every trainable weight."""

    def running(self, case: Case, values: Values, x: Array) -> Mapping[str, Array]:
        """Return every running statistic after one forward pass in training mode."""

    def step(
        self,
        case: Case,
        values: Values,
        masks: Mapping[str, Mask],
        x: Array,
        upstream: Array,
        *,
        learning_rate: float,
    ) -> Mapping[str, Array]:
        """Return all values after one training step of plain SGD that keeps to the masks."""


def expected(case: Case, given: Problem) -> Evaluated:
    """Evaluate a case by the reference, in float64 for any dtype of the problem."""
    exact = given.exact()
    return value_and_gradients(case.layout, exact.values, exact.x, exact.upstream)


def check_forward(backend: Backend, case: Case, dtype: FloatType) -> None:
    """Compare logits in evaluation and in training.

    Raises:
        AssertionError: logits differ by more than :data:`TOLERANCES`, or in shape or dtype.
    """
    given = problem(case, dtype)
    exact = given.exact()
    for training in (False, True):
        logits = forward(case.layout, exact.values, exact.x, training=training)
        found = backend.forward(case, given.values, given.x, training=training)
        assert_close(found, logits, case, dtype, f"logits, training={training}")


def check_gradients(backend: Backend, case: Case, dtype: FloatType) -> None:
    """Compare the gradients of all trainable weights, in training.

    Raises:
        AssertionError: they differ by more than :data:`TOLERANCES`, or one is missing.
    """
    given = problem(case, dtype)
    found = backend.gradients(case, given.values, given.x, given.upstream)
    assert_all_close(found, expected(case, given).gradients, case, dtype, "gradient")


def check_running_statistics(backend: Backend, case: Case, dtype: FloatType) -> None:
    """Compare running statistics after one batch; a case without statistics must give none.

    Raises:
        AssertionError: they differ by more than :data:`TOLERANCES`, or one is missing.
    """
    given = problem(case, dtype)
    found = backend.running(case, given.values, given.x)
    assert_all_close(found, expected(case, given).running, case, dtype, "running statistic")


def check_step(backend: Backend, case: Case, dtype: FloatType) -> None:
    """Compare all values after a step of SGD under masks: w' = mask·(w − lr·g), inactive values exactly 0.

    Raises:
        AssertionError: values differ by more than :data:`TOLERANCES`, or an inactive value is not 0.
    """
    masks = random_masks(case.layout, zlib.crc32(case.name.encode()))
    given = problem(case, dtype, masks)
    result = expected(case, given)
    after = {**given.exact().values, **result.running}
    for name, gradient in result.gradients.items():
        after[name] = masked(after[name] - LEARNING_RATE * gradient, masks.get(name))
    found = backend.step(case, given.values, masks, given.x, given.upstream, learning_rate=LEARNING_RATE)
    assert_all_close(found, after, case, dtype, "value after a step")
    for name, mask in masks.items():
        np.testing.assert_array_equal(found[name][~mask.dense()], 0, f"{case}: inactive elements of {name!r}")


def check_dropout(backend: Backend, dtype: FloatType) -> None:
    """Check dropout: no effect in evaluation; in training the stated share is 0 and the rest is scaled.

    The share must lie within five standard deviations, examples must be dropped differently, and kept values
    must be x / (1 − rate).

    Raises:
        AssertionError: one of these conditions does not hold.
    """
    rate, size, batch = 0.25, 500, 8
    net = GraphBuilder(Features(count=size))
    with net.classifier() as b:
        b.out = b.dropout(b.inp, rate)
    case = Case(name="dropout", graph=net.build(), structure=Single(), kind="op", batch=batch)
    x: Array = np.linspace(1, 2, batch * size, dtype=dtype).reshape(batch, size)
    assert_close(backend.forward(case, {}, x, training=False), x[None], case, dtype, "logits, training=False")
    found = backend.forward(case, {}, x, training=True)
    kept = found != 0
    assert_close(found, np.where(kept, x / (1 - rate), 0), case, dtype, "logits, training=True")
    deviation = math.sqrt(rate * (1 - rate) / x.size)
    np.testing.assert_allclose(1 - kept.mean(), rate, atol=5 * deviation, err_msg="dropout: share of zeros")
    np.testing.assert_array_equal(len(np.unique(kept[0], axis=0)), batch, "dropout: examples dropped alike")


Check = Callable[[Backend, Case, FloatType], None]
CHECKS: tuple[Check, ...] = (check_forward, check_gradients, check_running_statistics, check_step)
"""The checks that every backend passes on every case."""


def assert_all_close(
    found: Mapping[str, Array], wanted: Mapping[str, Array], case: Case, dtype: FloatType, what: str
) -> None:
    """Compare arrays by name; the names must be the same."""
    np.testing.assert_equal(sorted(found), sorted(wanted), f"{case}: {what}: names")
    for name, array in wanted.items():
        assert_close(found[name], array, case, dtype, f"{what} {name!r}")


def assert_close(found: Array, wanted: Array, case: Case, dtype: FloatType, what: str) -> None:
    """Compare two arrays under :data:`TOLERANCES`: shape, dtype, and each element."""
    np.testing.assert_equal((found.shape, found.dtype), (wanted.shape, np.dtype(dtype)), f"{case}: {what}")
    scale = max(1.0, float(np.abs(wanted).max(initial=0.0)))
    atol = TOLERANCES[case.kind, dtype] * scale
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol, equal_nan=False, err_msg=f"{case}: {what}")
