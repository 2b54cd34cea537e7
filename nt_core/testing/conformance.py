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
from dataclasses import dataclass
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
"""The least tolerance, as a share of the largest magnitude expected in an array, or of 1 where that is below
1: some gradients are exactly 0 but for rounding, a bias before batch normalisation say."""

ROUNDING = 32.0
"""The tolerance as a multiple of the reference's own rounding error, where that exceeds :data:`TOLERANCES`.

Errors of rounding grow with depth, and with divisions by small deviations, in every implementation alike.
So the reference is evaluated in float32, too, and its distance from float64 says how large they are. PyTorch
was found at up to 12 times that distance, in a network of 17 inverted residual blocks."""

OF_FLOAT64 = float(np.finfo(np.float64).eps / np.finfo(np.float32).eps)
"""The rounding error of float64 as a share of that of float32."""


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


@dataclass(frozen=True, slots=True)
class Expected:
    """The reference's answer to one check, and the rounding that may lead away from it.

    Attributes:
        given: the arrays of the comparison.
        results: evaluates the reference for such arrays: name → array.
        least: the least tolerance, as a share of an array's largest magnitude, or of 1.
        dtype: the backend's.
    """

    given: Problem
    results: Callable[[Problem], Mapping[str, Array]]
    least: float
    dtype: FloatType

    @property
    def exact(self) -> Mapping[str, Array]:
        """The results in float64."""
        return self.results(self.given.exact())

    def tolerance(self, exact: Mapping[str, Array]) -> float:
        """Return the tolerance that rounding asks for, at least the least."""
        shares = [
            float(np.abs(other[name] - array).max(initial=0.0)) / _scale(array)
            for other in map(self.results, self.given.rounded())
            for name, array in exact.items()
        ]
        rounding = max(shares, default=0.0) * (1.0 if np.dtype(self.dtype) == np.float32 else OF_FLOAT64)
        return max(self.least, ROUNDING * rounding)


def check_forward(backend: Backend, case: Case, dtype: FloatType) -> None:
    """Compare logits in evaluation and in training.

    Raises:
        AssertionError: they differ by more than rounding explains, or in shape or dtype.
    """
    given = problem(case, dtype)
    for training in (False, True):

        def logits(of: Problem, training: bool = training) -> Mapping[str, Array]:
            return {"logits": forward(case.layout, of.values, of.x, training=training)}

        found = {"logits": backend.forward(case, given.values, given.x, training=training)}
        _compare(found, Expected(given, logits, TOLERANCES[case.kind, dtype], dtype), f"{case}: {training=}")


def check_gradients(backend: Backend, case: Case, dtype: FloatType) -> None:
    """Compare the gradients of all trainable weights, in training.

    Raises:
        AssertionError: they differ by more than rounding explains, or one is missing.
    """
    given = problem(case, dtype)
    found = backend.gradients(case, given.values, given.x, given.upstream)
    wanted = Expected(given, lambda of: evaluated(case, of).gradients, TOLERANCES[case.kind, dtype], dtype)
    _compare(found, wanted, f"{case}: gradient")


def check_running_statistics(backend: Backend, case: Case, dtype: FloatType) -> None:
    """Compare running statistics after one batch; a case without statistics must give none.

    Raises:
        AssertionError: they differ by more than rounding explains, or one is missing.
    """
    given = problem(case, dtype)
    found = backend.running(case, given.values, given.x)
    wanted = Expected(given, lambda of: evaluated(case, of).running, TOLERANCES[case.kind, dtype], dtype)
    _compare(found, wanted, f"{case}: running statistic")


def check_step(backend: Backend, case: Case, dtype: FloatType) -> None:
    """Compare all values after a step of SGD under masks: w' = mask·(w − lr·g), inactive values exactly 0.

    Raises:
        AssertionError: values differ by more than rounding explains, or an inactive one is not 0.
    """
    masks = random_masks(case.layout, zlib.crc32(case.name.encode()))
    given = problem(case, dtype, masks)

    def after(of: Problem) -> Mapping[str, Array]:
        result = evaluated(case, of)
        moved = {**of.values, **result.running}
        for name, gradient in result.gradients.items():
            moved[name] = masked(moved[name] - LEARNING_RATE * gradient, masks.get(name))
        return moved

    found = backend.step(case, given.values, masks, given.x, given.upstream, learning_rate=LEARNING_RATE)
    _compare(
        found, Expected(given, after, TOLERANCES[case.kind, dtype], dtype), f"{case}: value after a step"
    )
    for name, mask in masks.items():
        np.testing.assert_array_equal(found[name][~mask.dense()], 0, f"{case}: inactive elements of {name!r}")


def evaluated(case: Case, given: Problem) -> Evaluated:
    """Evaluate a case by the reference, in the dtype of the problem."""
    return value_and_gradients(case.layout, given.values, given.x, given.upstream)


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
    tolerance = TOLERANCES[case.kind, dtype]
    x: Array = np.linspace(1, 2, batch * size, dtype=dtype).reshape(batch, size)
    assert_close(
        backend.forward(case, {}, x, training=False), x[None], tolerance, dtype, "dropout: evaluation"
    )
    found = backend.forward(case, {}, x, training=True)
    kept = found != 0
    assert_close(found, np.where(kept, x / (1 - rate), 0), tolerance, dtype, "dropout: training")
    deviation = math.sqrt(rate * (1 - rate) / x.size)
    np.testing.assert_allclose(1 - kept.mean(), rate, atol=5 * deviation, err_msg="dropout: share of zeros")
    np.testing.assert_array_equal(len(np.unique(kept[0], axis=0)), batch, "dropout: examples dropped alike")


Check = Callable[[Backend, Case, FloatType], None]
CHECKS: tuple[Check, ...] = (check_forward, check_gradients, check_running_statistics, check_step)
"""The checks that every backend passes on every case."""


def _compare(found: Mapping[str, Array], wanted: Expected, what: str) -> None:
    """Compare with the least tolerance; where that is not enough, with the one that rounding asks for."""
    exact = wanted.exact
    try:
        _assert_all_close(found, exact, wanted.least, wanted.dtype, what)
    except AssertionError:
        if (tolerance := wanted.tolerance(exact)) <= wanted.least:
            raise
        _assert_all_close(found, exact, tolerance, wanted.dtype, what)


def _assert_all_close(
    found: Mapping[str, Array], wanted: Mapping[str, Array], tolerance: float, dtype: FloatType, what: str
) -> None:
    """Compare arrays by name: the names must be the same, then shape, dtype, and each element."""
    np.testing.assert_equal(sorted(found), sorted(wanted), f"{what}: names")
    for name, array in wanted.items():
        assert_close(found[name], array, tolerance, dtype, f"{what} {name!r}")


def assert_close(found: Array, wanted: Array, tolerance: float, dtype: FloatType, where: str) -> None:
    """Compare shapes, dtypes, and each element, to a share of the largest magnitude or of 1."""
    np.testing.assert_equal((found.shape, found.dtype), (wanted.shape, np.dtype(dtype)), where)
    atol = tolerance * _scale(wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol, equal_nan=False, err_msg=where)


def _scale(wanted: Array) -> float:
    return max(1.0, float(np.abs(wanted).max(initial=0.0)))
