"""A conformance suite that any backend can call, and Hypothesis strategies for tests.

Input: a backend as a few functions. Output: failed comparisons with the reference, and small cases. The
suite needs no test runner. :mod:`nt_core.testing.strategies` needs Hypothesis and is imported by tests
only. This room imports ``graph``, ``masks``, ``structure``, ``policies``, ``topology``, ``training``,
``reference``, ``spec``, ``checkpoint``, ``states``, and the ground.
"""

from nt_core.testing.cases import Case, model_cases, op_cases
from nt_core.testing.conformance import (
    CHECKS,
    TOLERANCES,
    Backend,
    check_dropout,
    check_forward,
    check_gradients,
    check_running_statistics,
    check_step,
)
from nt_core.testing.data import Blobs, random_input, random_masks, random_values
from nt_core.testing.numpy_backend import NumpyBackend
from nt_core.testing.updates import check_update, update_cases

__all__ = [
    "CHECKS",
    "TOLERANCES",
    "Backend",
    "Blobs",
    "Case",
    "NumpyBackend",
    "check_dropout",
    "check_forward",
    "check_gradients",
    "check_running_statistics",
    "check_step",
    "check_update",
    "model_cases",
    "op_cases",
    "random_input",
    "random_masks",
    "random_values",
    "update_cases",
]
