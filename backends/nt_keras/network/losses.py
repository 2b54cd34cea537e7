"""The loss of an ensemble, and metrics of its members together, for ``model.compile``."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from nt_core.errors import DataError
from nt_core.metrics import IGNORED
from nt_core.spec import Aggregation, EnsembleSpec
from nt_core.structure import Reduction
from nt_keras.network.layers import register


def ensemble_loss(
    spec: EnsembleSpec | None = None,
    *,
    reduction: Reduction | None = None,
    label_smoothing: float = 0.0,
    distillation: float | None = None,
) -> EnsembleLoss:
    """Return the cross-entropy of every member, combined as a spec means it.

    Members of ``independent``, ``mimo``, and ``fission`` are summed, because their mean divides every
    member's gradient by M. A compiled model gives the loss its spec; in a loop of your own, give it here.

    Args:
        spec: the spec that the logits come from; its ``loss_reduction`` and ``distillation`` hold. None: that
            of the model for which it is compiled.
        reduction: over members, of each member's mean loss, instead of the spec's. Without a spec it is
            ``mean``, which is right for heads of one network.
        label_smoothing: share of each target that is spread over all classes.
        distillation: T; each member also learns from the mean of all members' logits, which is not trained
            by it: T²·KL(mean ‖ member), both at temperature T (Hinton et al. 2015). None: the spec's.

    Example:
        >>> loss = ensemble_loss()
        >>> round(float(loss(ops.array([4, 7]), ops.zeros((2, 3, 10)))), 4)
        2.3026
    """
    loss = EnsembleLoss(
        reduction_over_members=reduction, label_smoothing=label_smoothing, distillation=distillation
    )
    return loss if spec is None else loss.of_spec(spec)


@register
class EnsembleLoss(keras.losses.Loss):  # type: ignore[misc]
    """The loss of :func:`ensemble_loss`: (B,) or (B, T) class numbers, (B, M, …, classes) logits.

    (M·B,) class numbers are each member's own, member-major.
    """

    def __init__(
        self,
        reduction_over_members: Reduction | None = None,
        label_smoothing: float = 0.0,
        distillation: float | None = None,
        name: str = "ensemble_loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.reduction_over_members, self.label_smoothing = reduction_over_members, label_smoothing
        self.distillation = distillation

    def of_spec(self, spec: EnsembleSpec) -> EnsembleLoss:
        """Return the same loss with the spec's reduction and distillation where it has none of its own."""
        config = self.get_config()
        config["reduction_over_members"] = self.reduction_over_members or spec.loss_reduction
        config["distillation"] = spec.distillation if self.distillation is None else self.distillation
        return EnsembleLoss(**config)

    @property
    def dtype(self) -> None:
        """None: that of the logits, and class numbers stay integers; Keras rounds both to its ``floatx``."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return each example's loss, (B,) or (B, T); NaN where a class number is not one.

        Those of -100 are ignored: they are 0, and the others so much larger that their mean is that over the
        others.
        """
        targets = ops.cast(_targets(y_true, y_pred), "int32")
        logits = ops.cast(y_pred, keras.backend.result_type(y_pred.dtype, "float32"))
        classes = y_pred.shape[-1]
        counted = ops.not_equal(targets, IGNORED)
        labels = ops.where(counted, targets, 0)
        loss = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        loss = ops.where((labels >= 0) & (labels < classes), loss, np.nan)  # of which JAX makes 0
        if self.label_smoothing:
            uniform = ops.logsumexp(logits, axis=-1) - ops.sum(logits, axis=-1) / classes
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * uniform
        if self.distillation is not None:
            loss = loss + _divergence(logits, self.distillation)
        loss = ops.where(counted, loss, 0) * _upscale(ops.cast(counted, loss.dtype))
        return ops.sum(loss, axis=1) if self.reduction_over_members == "sum" else ops.mean(loss, axis=1)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that ``from_config`` needs."""
        names = ("reduction_over_members", "label_smoothing", "distillation")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@register
class EnsembleAccuracy(keras.metrics.MeanMetricWrapper):  # type: ignore[misc]
    """Share of examples that the members together classify right.

    Args:
        aggregation: the average over members: ``mean_prob`` or ``mean_logit``.

    Example:
        >>> metric = EnsembleAccuracy()
        >>> metric.update_state(ops.array([1]), ops.array([[[0.0, 3.0], [1.0, 0.0]]]))
        >>> float(metric.result())
        1.0
    """

    def __init__(
        self, aggregation: Aggregation = "mean_prob", name: str = "accuracy", dtype: Any = None
    ) -> None:
        super().__init__(fn=self._right, name=name, dtype=dtype)
        self.aggregation = aggregation
        self._direction = "up"  # for callbacks that monitor it

    def _right(self, y_true: Any, y_pred: Any) -> Any:
        targets = _targets(y_true, y_pred)
        votes = ops.softmax(y_pred, axis=-1) if self.aggregation == "mean_prob" else y_pred
        chosen = ops.argmax(ops.mean(votes, axis=1, keepdims=True), axis=-1)
        right = ops.cast(ops.equal(chosen, ops.cast(targets, chosen.dtype)), self.dtype)
        counted = ops.cast(ops.not_equal(targets, IGNORED), self.dtype)
        return ops.sum(right * counted, axis=1) / ops.maximum(ops.sum(counted, axis=1), 1)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Add a batch; examples of class -100 are ignored."""
        return super().update_state(y_true, y_pred, _weights(y_true, y_pred, sample_weight, self.dtype))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that ``from_config`` needs."""
        return {"aggregation": self.aggregation, "name": self.name, "dtype": self.dtype}


@register
class Disagreement(keras.metrics.MeanMetricWrapper):  # type: ignore[misc]
    """Share of pairs of members that choose different classes, over examples.

    Example:
        >>> metric = Disagreement()
        >>> metric.update_state(ops.array([1]), ops.array([[[0.0, 3.0], [1.0, 0.0]]]))
        >>> float(metric.result())
        1.0
    """

    def __init__(self, name: str = "disagreement", dtype: Any = None) -> None:
        super().__init__(fn=self._pairs, name=name, dtype=dtype)
        self._direction = "up"  # more diverse members are better, for callbacks that monitor it

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Add a batch; examples of class -100 are ignored."""
        return super().update_state(y_true, y_pred, _weights(y_true, y_pred, sample_weight, self.dtype))

    def _pairs(self, y_true: Any, y_pred: Any) -> Any:
        chosen, members = ops.argmax(y_pred, axis=-1), y_pred.shape[1]
        differ = ops.cast(ops.not_equal(ops.expand_dims(chosen, 1), ops.expand_dims(chosen, 2)), self.dtype)
        return ops.sum(differ, axis=(1, 2)) / max(1, members * (members - 1))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that ``from_config`` needs."""
        return {"name": self.name, "dtype": self.dtype}


def expect_classes(targets: NDArray[Any], classes: int) -> None:
    """Check class numbers that are on the host.

    Raises:
        DataError: one is not below ``classes``, or negative and not -100, which is ignored.

    Example:
        >>> expect_classes(np.array([0, 9, -100]), classes=10)
    """
    outside = targets[~((targets >= 0) & (targets < classes)) & (targets != IGNORED)]
    if outside.size:
        raise DataError(f"targets: expected class numbers from 0 to {classes - 1}, found {outside[0]}")


def _upscale(counted: Any) -> Any:
    """Return by how much a mean over all is smaller than that over what counts (1 there, else 0)."""
    total = ops.cast(ops.prod(ops.shape(counted)), counted.dtype)
    return total / ops.maximum(ops.sum(counted), 1)


def _divergence(logits: Any, temperature: float) -> Any:
    """Return T²·KL(mean of the members ‖ member) of each, (B, M, …)."""
    mean = ops.mean(ops.stop_gradient(logits), axis=1, keepdims=True)
    teacher = ops.log_softmax(mean / temperature, axis=-1)
    students = ops.log_softmax(logits / temperature, axis=-1)
    return temperature**2 * ops.sum(ops.exp(teacher) * (teacher - students), axis=-1)


def _weights(y_true: Any, y_pred: Any, given: Any, dtype: Any) -> Any:
    """Return the weight of each example in a metric, (B,) or (B, T): the share of its labels that count."""
    counted = ops.mean(ops.cast(ops.not_equal(_targets(y_true, y_pred), IGNORED), dtype), axis=1)
    if given is None:
        return counted
    given = ops.cast(given, dtype)
    while len(given.shape) < len(counted.shape):
        given = ops.expand_dims(given, -1)
    if len(given.shape) > len(counted.shape):
        given = ops.squeeze(given, -1)
    return counted * given


def _targets(y_true: Any, y_pred: Any) -> Any:
    """Return each member's class numbers, (B, M, …).

    Raises:
        DataError: they have another shape than logits ask for.
    """
    wanted = len(y_pred.shape) - 2
    if len(y_true.shape) == wanted + 1 and y_true.shape[-1] == 1:
        y_true = ops.squeeze(y_true, -1)
    if len(y_true.shape) != wanted:
        raise DataError(
            f"targets: expected class numbers of shape {('batch', *y_pred.shape[2:-1])}, found "
            f"{tuple(y_true.shape)}; logits are (batch, members, …, classes)"
        )
    rows, members = ops.shape(y_pred)[0], y_pred.shape[1]
    own = ops.swapaxes(ops.reshape(y_true, (-1, rows, *y_pred.shape[2:-1])), 0, 1)  # (B, 1 or M, …)
    return ops.broadcast_to(own, (rows, members, *y_pred.shape[2:-1]))
