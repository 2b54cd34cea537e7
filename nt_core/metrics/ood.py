"""Out-of-distribution detection by a score: AUROC, AUPR and FPR at 95 % TPR, with ties counted exactly."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import DataError
from nt_core.values import Value

TPR: Final = 0.95
"""The share of out-of-distribution examples that must be found at the threshold of FPR."""


class Detection(Value):
    """Detection of out-of-distribution examples, the positive class, by a score.

    Attributes:
        auroc: area under the ROC curve: P(score of an outsider > score of an insider), ties half.
        aupr: average precision Σ (R_k − R_{k−1})·P_k over the distinct thresholds, not interpolated.
        fpr95: the lowest share of insiders flagged by a threshold that flags at least 95 % of outsiders.
    """

    auroc: float
    aupr: float
    fpr95: float


def ood_score(log_probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Return 1 − max p, the baseline of Hendrycks & Gimpel 2017 (§3). (B, C) log-probabilities → (B,).

    Example:
        >>> ood_score(np.log([[0.9, 0.1], [0.5, 0.5]])).round(6)
        array([0.1, 0.5])
    """
    score: NDArray[np.float64] = -np.expm1(np.asarray(log_probabilities, np.float64).max(axis=-1))
    return score


def detection(inside: NDArray[Any], outside: NDArray[Any]) -> Detection:
    """Measure the detection of outsiders by scores; higher scores are more out of distribution.

    Examples of equal score are on the same side of every threshold, so their order has no influence.

    Args:
        inside: (N,) scores of the test set, finite.
        outside: (K,) scores of the out-of-distribution set, finite.

    Raises:
        DataError: one of the sets is empty, or a score is not finite.

    Example:
        >>> detection(np.array([0.1, 0.2, 0.2, 0.4]), np.array([0.2, 0.6, 0.7]))
        Detection(auroc=0.833..., aupr=0.833..., fpr95=0.75)
    """
    for name, scores in (("inside", inside), ("outside", outside)):
        if scores.ndim != 1 or not scores.size or not np.isfinite(scores).all():
            raise DataError(
                f"ood: {name}: expected finite scores, at least one; found shape {scores.shape}"
                + " with some that are not finite" * bool(scores.size)
            )
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1]
    false, true = (_flagged(scores, thresholds) for scores in (inside, outside))
    fpr, recall, precision = false / inside.size, true / outside.size, true / (true + false)
    area = np.diff(fpr, prepend=0.0) @ (recall + np.concatenate([[0.0], recall[:-1]])) / 2
    # Counts are compared instead of shares, because 0.95 as a float would refuse 19 of 20.
    enough = int((true * 100 >= round(TPR * 100) * outside.size).argmax())
    return Detection(
        auroc=float(area), aupr=float(np.diff(recall, prepend=0.0) @ precision), fpr95=float(fpr[enough])
    )


def _flagged(scores: NDArray[Any], thresholds: NDArray[Any]) -> NDArray[np.int64]:
    """Return the number of scores that reach each threshold."""
    return scores.size - np.searchsorted(np.sort(scores), thresholds, side="left")
