"""The reference as a backend, as an example of one and for tests of the suite itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nt_core.graph.ops import Op
from nt_core.masks import Mask
from nt_core.reference import REFERENCE, Array, Evaluated, Reference, Values, forward, value_and_gradients
from nt_core.testing.cases import Case


@dataclass(frozen=True)
class NumpyBackend:
    """Implementation of :class:`nt_core.testing.conformance.Backend` in NumPy.

    Attributes:
        references: the reference of each op; a wrong reference makes a backend that the suite must refuse.

    Example:
        >>> from nt_core.testing import check_gradients, op_cases
        >>> check_gradients(NumpyBackend(), op_cases()[0], np.float32)
    """

    references: Mapping[type[Op], Reference] = field(default_factory=lambda: REFERENCE)

    def evaluate(self, case: Case, values: Values, x: Array, upstream: Array) -> Evaluated:
        """Return logits, gradients and running statistics of a training pass."""
        return value_and_gradients(case.layout, values, x, upstream, references=self.references)

    def forward(self, case: Case, values: Values, x: Array, *, training: bool) -> Array:
        """Return the logits, (M, B, *output shape)."""
        return forward(case.layout, values, x, training=training, references=self.references)

    def gradients(self, case: Case, values: Values, x: Array, upstream: Array) -> Mapping[str, Array]:
        """Return the gradient of every trainable weight."""
        return self.evaluate(case, values, x, upstream).gradients

    def running(self, case: Case, values: Values, x: Array) -> Mapping[str, Array]:
        """Return every running statistic after one training pass."""
        logits = self.forward(case, values, x, training=True)
        return self.evaluate(case, values, x, np.zeros_like(logits)).running

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
        """Return all values after one step of SGD that keeps to the masks."""
        result = self.evaluate(case, values, x, upstream)
        after = dict(values) | result.running
        for name, gradient in result.gradients.items():
            moved = values[name] - learning_rate * gradient
            after[name] = moved * masks[name].dense() if name in masks else moved
        return after
