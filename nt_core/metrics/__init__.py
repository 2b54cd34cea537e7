"""Metrics of an ensemble's predictions, and the aggregation of its members.

In go logits of shape (M, B, classes) and labels; out come sums that stream and merge, the figures they
stand for, and fitted weights of members. This room imports the ground.
"""

from nt_core.metrics.aggregation import GAP, Fitted, fit, fit_temperature, fit_weights, log_mixture
from nt_core.metrics.figures import FIGURES, IN_TABLES, RECORDED, Figure, leading
from nt_core.metrics.labels import IGNORED, expect_labels
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
    "FIGURES",
    "GAP",
    "IGNORED",
    "IN_TABLES",
    "MATRIX_MEMBERS",
    "RECORDED",
    "TPR",
    "Aggregation",
    "Detection",
    "Figure",
    "Fitted",
    "Metrics",
    "aggregate",
    "detection",
    "evaluation_batch_size",
    "expect_labels",
    "fit",
    "fit_temperature",
    "fit_weights",
    "leading",
    "log_mixture",
    "ood_score",
]
