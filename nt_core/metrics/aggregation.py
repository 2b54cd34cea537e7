"""Fitted aggregation: weights of the members and a temperature, from held-out examples."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from nt_core.errors import DataError
from nt_core.metrics.labels import IGNORED, expect_labels
from nt_core.values import Value

GAP: Final = 1e-6
"""Largest excess of the fitted weights' mean NLL over the optimum, in nats."""

_ITERATIONS: Final = 10_000
_COLDEST, _HOTTEST = math.log(0.05), math.log(20.0)  # of log temperature

Weight = Annotated[float, Field(ge=0)]


class Fitted(Value):
    """Fitted aggregation: the ensemble predicts softmax(log Σ_m w_m·p_m / T).

    Attributes:
        weights: one for each member, at least 0, with sum 1.
        temperature: T, the divisor of the pooled log-probabilities; above 1 it lowers confidence.

    Example:
        >>> Fitted(weights=(0.75, 0.25), temperature=1.5)
        Fitted(weights=(0.75, 0.25), temperature=1.5)
    """

    weights: tuple[Weight, ...] = Field(min_length=1)
    temperature: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _check(self) -> Fitted:
        if not math.isclose(total := sum(self.weights), 1.0, abs_tol=1e-6):
            raise DataError(f"fitted.weights: expected a sum of 1, found {total:g}")
        return self

    def pool(self, log_probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the ensemble's log-probabilities. (M, B, C) float64 → (B, C).

        Raises:
            DataError: the number of members differs from the number of weights.
        """
        if len(log_probabilities) != len(self.weights):
            raise DataError(
                f"aggregation: fitted for {len(self.weights)} members, found {len(log_probabilities)}"
            )
        pooled = log_mixture(log_probabilities, np.array(self.weights))
        if self.temperature == 1.0:
            return pooled
        tempered: NDArray[np.float64] = log_softmax(pooled / self.temperature, axis=-1)
        return tempered


def fit(logits: NDArray[Any], labels: NDArray[Any], *, temperature: bool = True) -> Fitted:
    """Fit weights on the simplex, then one temperature, both by the NLL of held-out examples.

    Probabilities are pooled first and calibrated second (Rahaman & Thiery 2021, arXiv 2007.08792; one member:
    temperature scaling, Guo et al. 2017, §4.2). Each step is a convex problem, because the NLL of a mixture
    is convex in its weights, and the NLL of softmax(β·log q) is convex in β = 1/T. Therefore the result is
    never worse than equal weights and T = 1 on these examples, and does not depend on a start.

    Args:
        logits: (M, N, C), finite, N ≥ 1, the member axis first; of examples that were not trained on.
        labels: (N,) integers in [0, C), or :data:`~nt_core.metrics.IGNORED` where an example does not count.
        temperature: whether T is fitted; else it is 1.

    Raises:
        DataError: no examples, shapes that do not fit, a logit that is not finite, a label outside the
            classes.

    Example:
        >>> good, blind = np.eye(3)[[0, 1, 2, 0]] * 4, np.zeros((4, 3))
        >>> found = fit(np.stack([good, blind]), np.array([0, 1, 2, 0]), temperature=False)
        >>> [round(weight, 3) for weight in found.weights]
        [1.0, 0.0]
    """
    if logits.ndim != 3 or 0 in logits.shape or labels.shape != logits.shape[1:2]:
        raise DataError(
            "fit: expected logits (members, examples, classes) and a label for each example, at least one; "
            f"found shapes {logits.shape} and {labels.shape}"
        )
    if not np.isfinite(logits).all():
        raise DataError("fit: expected finite logits; a member has diverged")
    expect_labels(labels, logits.shape[-1], "fit: labels")
    if not (counted := labels != IGNORED).any():
        raise DataError("fit: expected an example that counts at least, found ignored ones alone")
    logits, labels = logits[:, counted], labels[counted]
    members = log_softmax(logits.astype(np.float64), axis=-1)
    weights = fit_weights(np.take_along_axis(members, labels[None, :, None], axis=-1)[..., 0])
    hot = fit_temperature(log_mixture(members, weights), labels) if temperature else 1.0
    return Fitted(weights=tuple(weights.tolist()), temperature=hot)


def fit_weights(log_likelihoods: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mixture weights of lowest mean NLL, by expectation maximisation.

    From equal weights, each step multiplies w_m by the mean of p_m / Σ w·p, which cannot raise the NLL
    (Dempster et al. 1977). Such steps are tiny where members are nearly alike, so ever higher powers of the
    factors are tried as long as the NLL falls. The largest factor, less 1, bounds the excess of the NLL over
    the optimum. The iteration ends when this bound is below :data:`GAP`, or after 10,000 steps.

    Args:
        log_likelihoods: (M, N), each member's log-probability of each example's label.

    Returns:
        (M,) float64, at least 0, with sum 1.

    Example:
        >>> fit_weights(np.log([[0.5, 0.5], [0.5, 0.5]]))
        array([0.5, 0.5])
    """
    likelihoods = np.exp(log_likelihoods - log_likelihoods.max(axis=0))
    weights, power = np.full(len(likelihoods), 1 / len(likelihoods)), 1.0
    for _ in range(_ITERATIONS):
        mixed = weights @ likelihoods
        factors = (likelihoods / mixed).mean(axis=1)
        highest = factors.max()
        if highest <= 1 + GAP:
            break
        bold = weights * (factors / highest) ** power
        bold /= bold.sum()
        with np.errstate(divide="ignore"):
            better = np.log(bold @ likelihoods).mean() >= np.log(mixed).mean()
        power = 2 * power if better else 1.0
        weights = bold if better else weights * factors
        weights /= weights.sum()
    return weights


def fit_temperature(log_probabilities: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """Return the temperature in [0.05, 20] of lowest mean NLL; 1 where no other is lower.

    Args:
        log_probabilities: (N, C).
        labels: (N,) integers.

    Example:
        >>> sure = np.log(np.array([[0.99, 0.01]] * 4))
        >>> fit_temperature(sure, np.array([0, 0, 0, 1])) > 1.5  # sure to 99 %, right in 75 %
        True
    """
    rows = np.arange(len(labels))

    def nll(log_temperature: float) -> float:
        tempered = log_softmax(log_probabilities / math.exp(log_temperature), axis=-1)
        return -float(tempered[rows, labels].mean())

    found = minimize_scalar(nll, bounds=(_COLDEST, _HOTTEST), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x) if found.fun < nll(0.0) else 1.0


def log_mixture(
    log_probabilities: NDArray[np.float64], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return log Σ_m w_m·p_m without leaving the range of floats. (M, …), (M,) → (…).

    Args:
        log_probabilities: the member axis first.
        weights: of the members; None: equal weights.

    Example:
        >>> np.exp(log_mixture(np.log([[0.2, 0.8], [0.6, 0.4]]), np.array([0.75, 0.25]))).round(6)
        array([0.3, 0.7])
    """
    if weights is not None:
        log_probabilities, weights = log_probabilities[weights > 0], weights[weights > 0]
    top = log_probabilities.max(axis=0)
    scaled = np.exp(log_probabilities - top)
    mixed = scaled.mean(axis=0) if weights is None else np.tensordot(weights, scaled, axes=1)
    mixture: NDArray[np.float64] = np.log(mixed) + top
    return mixture
