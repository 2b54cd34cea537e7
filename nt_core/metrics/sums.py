"""Metrics of an ensemble as exact sums that stream over batches and reduce over processes.

A batch becomes a record of sums and counts. Records are added. The properties of the total are the metrics
over all examples, so means are taken only at the end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from nt_core.errors import DataError
from nt_core.metrics.aggregation import Fitted, log_mixture
from nt_core.metrics.figures import FIGURES, RECORDED
from nt_core.metrics.labels import IGNORED, expect_labels

Aggregation: TypeAlias = Literal["mean_prob", "mean_logit"] | Fitted
"""Mean over members: of probabilities (FreeTickets), of logits (published NeuroTrails code), or of
probabilities with fitted weights and temperature."""

ECE_BINS: Final = 15
"""Equal-width confidence bins of the calibration error; Guo et al. 2017, §2 and §5."""

MATRIX_MEMBERS: Final = 16
"""Most members whose pairwise disagreement is recorded in every epoch of a history."""

_EDGES: Final = np.arange(1, ECE_BINS) / ECE_BINS
_CHUNK: Final = 1 << 19  # logits turned into float64 at a time
_BATCH, _BATCH_LOGITS = 256, 1 << 26  # examples, and logits, that are computed at a time


def evaluation_batch_size(members: int, output: Sequence[int]) -> int:
    """Return the number of examples to predict at a time: 256, or fewer where each has many logits.

    Args:
        members: M.
        output: the shape of one example's logits.

    Example:
        >>> evaluation_batch_size(3, (10,)), evaluation_batch_size(3, (1024, 32_000))
        (256, 1)
    """
    return min(_BATCH, max(1, _BATCH_LOGITS // (members * math.prod(output))))


def aggregate(logits: NDArray[Any], how: Aggregation = "mean_prob") -> NDArray[np.float64]:
    """Turn the members' logits into the ensemble's log-probabilities.

    Args:
        logits: (M, B, C), real; the member axis first. Large logits (±1e4) lose nothing.
        how: ``"mean_prob"`` averages probabilities, ``"mean_logit"`` logits (then normalised);
            :class:`~nt_core.metrics.Fitted` as it was fitted.

    Returns:
        (B, C) float64 log-probabilities.

    Raises:
        DataError: another shape, a logit that is not finite, or an unknown ``how``.

    Example:
        >>> logits = np.log([[[0.8, 0.2]], [[0.4, 0.6]]])
        >>> np.exp(aggregate(logits)).round(6)
        array([[0.6, 0.4]])
        >>> np.exp(aggregate(logits, "mean_logit")).round(6)
        array([[0.620204, 0.379796]])
    """
    _check_logits(logits)
    return _average(log_softmax(logits.astype(np.float64), axis=-1), how)


def _average(log_probabilities: NDArray[np.float64], how: Aggregation) -> NDArray[np.float64]:
    """Average over members; the logits of a member are its log-probabilities up to a constant."""
    result: NDArray[np.float64]
    if isinstance(how, Fitted):
        result = how.pool(log_probabilities)
    elif how == "mean_prob":
        result = log_mixture(log_probabilities)
    elif how == "mean_logit":
        result = log_softmax(log_probabilities.mean(axis=0), axis=-1)
    else:
        raise DataError(
            f"aggregation: {how!r} is neither 'mean_prob' nor 'mean_logit' nor what nt_core.metrics.fit found"
        )
    return result


@dataclass(frozen=True, eq=False, repr=False)
class Metrics:
    """Metrics of an ensemble as sums over examples; two records are merged by addition, in any order.

    Attributes:
        nll_sum: negative log-likelihood of the aggregated prediction, in nats, summed over examples.
        member_correct: (M,) int64, number of examples that each member classifies correctly.
        member_nll_sum: (M,) float64, nats.
        disagreements: (M, M) int64, number of examples on which two members predict different classes.
        bin_counts: (15,) int64, number of examples by confidence of the aggregated prediction.
        bin_confidence_sums: (15,) float64.
        bin_correct: (15,) int64.

    Example:
        >>> logits = np.log([[[0.8, 0.2], [0.7, 0.3]], [[0.6, 0.4], [0.1, 0.9]]])
        >>> total = Metrics.of(logits[:, :1], np.array([0])) + Metrics.of(logits[:, 1:], np.array([0]))
        >>> total.accuracy, total.member_accuracy, total.disagreement
        (0.5, array([1. , 0.5]), 0.5)
        >>> round(total.nll, 6), round(-math.log(0.7 * 0.4) / 2, 6)  # probabilities are averaged
        (0.636483, 0.636483)
    """

    nll_sum: float
    member_correct: NDArray[np.int64]
    member_nll_sum: NDArray[np.float64]
    disagreements: NDArray[np.int64]
    bin_counts: NDArray[np.int64]
    bin_confidence_sums: NDArray[np.float64]
    bin_correct: NDArray[np.int64]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), np.ndarray):
                value = value.copy()
                value.setflags(write=False)
                object.__setattr__(self, field.name, value)

    @staticmethod
    def of(logits: NDArray[Any], labels: NDArray[Any], aggregation: Aggregation = "mean_prob") -> Metrics:
        """Measure one batch.

        Args:
            logits: (M, B, C), or (M, B, T, C) where each token counts as an example; finite, the member axis
                first; B may be 0.
            labels: (B,) or (B, T) integers in [0, C), or :data:`~nt_core.metrics.IGNORED` where an example or
                token does not count.
            aggregation: of the members' predictions.

        Raises:
            DataError: shapes that do not fit, a logit that is not finite, a label outside the classes.

        Example:
            >>> Metrics.of(np.zeros((3, 2, 10)), np.array([0, 9])).correct  # ties go to the lowest class
            1
            >>> Metrics.of(np.zeros((3, 2, 5, 10)), np.zeros((2, 5), int)).count
            10
        """
        if logits.ndim == 4 and logits.shape[1:3] == labels.shape:
            logits, labels = logits.reshape(len(logits), labels.size, -1), labels.reshape(-1)
        _check_logits(logits)
        _check_labels(labels, *logits.shape[1:])
        if (counted := labels != IGNORED).all():
            return Metrics._in_parts(logits, labels, aggregation)
        return Metrics._in_parts(logits[:, counted], labels[counted], aggregation)

    @staticmethod
    def _in_parts(logits: NDArray[Any], labels: NDArray[Any], aggregation: Aggregation) -> Metrics:
        members, batch, classes = logits.shape
        rows = max(1, _CHUNK // (members * classes))
        parts = (slice(start, start + rows) for start in range(0, max(batch, 1), rows))
        return Metrics.sum(_measure(logits[:, part], labels[part], aggregation) for part in parts)

    @staticmethod
    def sum(parts: Iterable[Metrics]) -> Metrics:
        """Merge any number of records, at least one.

        Raises:
            DataError: there are no records, or they differ in the number of members.

        Example:
            >>> one = Metrics.of(np.zeros((2, 4, 3)), np.zeros(4, int))
            >>> Metrics.sum([one, one, one]).count
            12
        """
        remaining = iter(parts)
        total = next(remaining, None)
        if total is None:
            raise DataError("no examples: nothing to sum; give at least one record")
        for part in remaining:
            total += part
        return total

    def __add__(self, other: Metrics) -> Metrics:
        """Merge two records of the same number of members."""
        if len(self.member_correct) != len(other.member_correct):
            raise DataError(
                f"members: cannot add metrics of {len(self.member_correct)} and {len(other.member_correct)}"
            )
        names = [field.name for field in dataclasses.fields(self)]
        return Metrics(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def __str__(self) -> str:
        """Return the figures in one line, then each member's.

        Example:
            >>> print(Metrics.of(np.zeros((2, 4, 5)), np.zeros(4, int)))
            4 examples: accuracy 1.0000, NLL 1.6094, perplexity 5.0000, ECE 0.8000, disagreement 0.0000
            accuracy of each member: 1.0000, 1.0000
        """
        counted = f"{self.count:,} example{'s' * (self.count != 1)}"
        if not self.count:
            return counted
        line = ", ".join(f"{figure.title} {getattr(self, figure.name):.4f}" for figure in RECORDED)
        alone = len(self.member_correct) == 1
        members = ", ".join(f"{accuracy:.4f}" for accuracy in self.member_accuracy)
        return f"{counted}: {line}" + ("" if alone else f"\naccuracy of each member: {members}")

    def __repr__(self) -> str:
        return f"<Metrics of {str(self).replace(chr(10), '; ')}>"

    @property
    def count(self) -> int:
        """Number of measured examples; 0 is legal, but has no metrics."""
        return int(self.bin_counts.sum())

    @property
    def correct(self) -> int:
        """Number of examples that the aggregated prediction classifies correctly."""
        return int(self.bin_correct.sum())

    @property
    def accuracy(self) -> float:
        """Share of examples that the aggregated prediction classifies correctly."""
        return self.correct / self._examples

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of the aggregated prediction over all examples, in nats."""
        return float(self.nll_sum) / self._examples

    @property
    def perplexity(self) -> float:
        """Exponential of `nll`; infinite beyond the range of float64, which JSON has as ``null``."""
        return _exp(self.nll)

    @property
    def ece(self) -> float:
        """Expected calibration error Σ n_b/N·|acc_b − conf_b| over 15 bins (lo, hi]; Guo et al. 2017, §2."""
        return float(np.abs(self.bin_correct - self.bin_confidence_sums).sum()) / self._examples

    @property
    def member_accuracy(self) -> NDArray[np.float64]:
        """Share of examples that each member classifies correctly, (M,)."""
        return self.member_correct / self._examples

    @property
    def member_nll(self) -> NDArray[np.float64]:
        """Mean negative log-likelihood of each member, in nats, (M,)."""
        return self.member_nll_sum / self._examples

    @property
    def member_perplexity(self) -> NDArray[np.float64]:
        """Exponential of `member_nll`, (M,); infinite beyond float64, which JSON has as ``null``."""
        return np.array([_exp(nll) for nll in self.member_nll])

    @property
    def disagreement_matrix(self) -> NDArray[np.float64]:
        """Share of examples on which two members predict different classes, (M, M), with zero diagonal."""
        return self.disagreements / self._examples

    @property
    def disagreement(self) -> float:
        """Prediction disagreement: mean over pairs i < j of P(argmax_i ≠ argmax_j); 0 for one member."""
        pairs = math.comb(len(self.disagreements), 2)
        return int(self.disagreements.sum()) / 2 / (self._examples * max(pairs, 1))

    @property
    def disagreement_full_matrix(self) -> float:
        """Mean over the full matrix with its zero diagonal: (M−1)/M of `disagreement`; NeuroTrails' code."""
        return int(self.disagreements.sum()) / (self._examples * self.disagreements.size)

    def summary(self) -> dict[str, float]:
        """Return the figures of an epoch's record, :data:`nt_core.metrics.RECORDED`."""
        return {figure.name: getattr(self, figure.name) for figure in RECORDED}

    def pairs(self) -> dict[str, list[list[float]]]:
        """Return the disagreement matrix for a history; empty unless there are 2 to 16 members.

        Example:
            >>> Metrics.of(np.eye(3)[:2, None], np.zeros(1, int)).pairs()
            {'disagreement_matrix': [[0.0, 1.0], [1.0, 0.0]]}
        """
        if not 2 <= len(self.member_correct) <= MATRIX_MEMBERS:
            return {}
        return {"disagreement_matrix": self.disagreement_matrix.tolist()}

    def to_dict(self) -> dict[str, float | list[float]]:
        """Return all metrics as numbers for JSON.

        Raises:
            DataError: no examples.

        Example:
            >>> Metrics.of(np.zeros((2, 4, 5)), np.zeros(4, int)).to_dict()["member_accuracy"]
            [1.0, 1.0]
        """
        of_members = [figure.of_members for figure in FIGURES if figure.of_members is not None]
        return {
            "count": self.count,
            **{figure.name: getattr(self, figure.name) for figure in FIGURES},
            **{name: getattr(self, name).tolist() for name in of_members},
        }

    def to_record(self) -> dict[str, Any]:
        """Return all metrics and the disagreement matrix, as a run records them.

        Example:
            >>> Metrics.of(np.zeros((1, 4, 5)), np.zeros(4, int)).to_record()["disagreement_matrix"]
            [[0.0]]
        """
        return {**self.to_dict(), "disagreement_matrix": self.disagreement_matrix.tolist()}

    @property
    def _examples(self) -> int:
        if not (count := self.count):
            raise DataError("no examples: measure at least one before asking for a metric")
        return count


def _exp(nll: float) -> float:
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def _measure(logits: NDArray[Any], labels: NDArray[Any], aggregation: Aggregation) -> Metrics:
    member_log_probabilities = log_softmax(logits.astype(np.float64), axis=-1)
    log_probabilities = _average(member_log_probabilities, aggregation)
    rows = np.arange(len(labels))
    confidence = np.exp(log_probabilities.max(axis=-1))
    bins = np.searchsorted(_EDGES, confidence, side="left")  # left: an edge belongs to the bin below it
    correct = log_probabilities.argmax(axis=-1) == labels
    predictions = logits.argmax(axis=-1)
    return Metrics(
        nll_sum=-float(log_probabilities[rows, labels].sum()),
        member_correct=(predictions == labels).sum(axis=-1),
        member_nll_sum=-member_log_probabilities[:, rows, labels].sum(axis=-1),
        disagreements=(predictions[:, None] != predictions).sum(axis=-1),
        bin_counts=np.bincount(bins, minlength=ECE_BINS),
        bin_confidence_sums=np.bincount(bins, confidence, ECE_BINS).astype(np.float64),
        bin_correct=np.bincount(bins[correct], minlength=ECE_BINS),
    )


def _check_logits(logits: NDArray[Any]) -> None:
    if logits.ndim != 3 or 0 in (logits.shape[0], logits.shape[2]):
        raise DataError(f"logits: expected shape (members, batch, classes), found {logits.shape}")
    if logits.size and not (np.isfinite(logits.min()) and np.isfinite(logits.max())):
        member, row, label = (int(i) for i in np.argwhere(~np.isfinite(logits))[0])
        raise DataError(f"logits: {logits[member, row, label]} at member {member}, row {row}, class {label}")


def _check_labels(labels: NDArray[Any], batch: int, classes: int) -> None:
    if labels.shape != (batch,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels: expected integers of shape ({batch},), found {labels.dtype} {labels.shape}")
    expect_labels(labels, classes)
