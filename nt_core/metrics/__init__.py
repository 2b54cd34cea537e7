"""Metrics of an ensemble's predictions, and the aggregation of its members.

Input: logits of shape (M, B, classes) and labels. Output: sums that stream and merge, the metrics that follow
from them, and fitted weights of members. This room imports the ground (``values``, ``errors``) and nothing
else.
"""

from nt_core.metrics.aggregation import GAP, Fitted, fit, fit_temperature, fit_weights, log_mixture
from nt_core.metrics.ood import TPR, Detection, detection, ood_score
from nt_core.metrics.sums import (
    ECE_BINS,
    MATRIX_MEMBERS,
    Aggregation,
    Metrics,
    aggregate,
    evaluation_batch_size,
)

__all__ = [
    "ECE_BINS",
    "GAP",
    "MATRIX_MEMBERS",
    "TPR",
    "Aggregation",
    "Detection",
    "Fitted",
    "Metrics",
    "aggregate",
    "detection",
    "evaluation_batch_size",
    "fit",
    "fit_temperature",
    "fit_weights",
    "log_mixture",
    "ood_score",
]
