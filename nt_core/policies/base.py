"""Input and output of policies, and the base class of criteria."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from nt_core.masks import Array, Draws
from nt_core.values import Shape, Value

Scorer = Callable[[slice], Array]
"""Function that returns the scores of any slice of positions, with an explicit start, stop and step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Values, gradients and mask of one weight, for a policy. Arrays are flat, in C order, and only read.

    Attributes:
        name: the weight's full name, which keys its random numbers.
        weights: (n,) floats.
        gradients: (n,) floats, ∂L/∂w of every position, also inactive positions: reduced over ranks and
            micro-batches, unscaled. None where no criterion reads them.
        active: (n,) bool.
        momentum: (n,) floats, the exponentially smoothed gradient of every position, of the criterion's
            ``beta``. None where no criterion reads it.
        shape: the weight's shape; () where no criterion reads it.
    """

    name: str
    weights: Array
    gradients: Array | None
    active: Array
    momentum: Array | None = None
    shape: Shape = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """Pruned and grown connections of one weight in an update.

    Attributes:
        pruned: ascending positions that were active and are inactive now.
        grown: ascending positions that were inactive and are active now.
        returned: number of connections that were dropped and grown again at once. They keep value and
            optimiser state, and count as neither pruned nor grown.
    """

    pruned: Array
    grown: Array
    returned: int = 0


class Criterion(Value, ABC):
    """Base class of criteria, which score the positions of a weight elementwise, one slice at a time.

    The smallest scores are pruned; the largest scores are grown. A criterion whose scores are not elementwise
    overrides :meth:`scorer`.

    Attributes:
        uses_gradient: whether it reads ``layer.gradients``.
        uses_mask: whether it reads ``layer.active``; in growth that is the mask after the pruning.
        uses_random: whether it reads random numbers.
        from_start: whether its random numbers are those that the weight's initial values were drawn from, at
            every step the same.
        only_below_zero: whether, in pruning, only scores below 0 go, at most the drop fraction.
        by_sign: whether, in pruning, positive and negative weights give up their own shares.
        exact: whether it is plain arithmetic, which every backend computes to the same bits; others are
            computed by NumPy for all backends.
    """

    kind: str
    uses_gradient: ClassVar[bool] = False
    uses_mask: ClassVar[bool] = False
    uses_random: ClassVar[bool] = False
    from_start: ClassVar[bool] = False
    only_below_zero: ClassVar[bool] = False
    by_sign: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    @property
    def smoothing(self) -> float | None:
        """The beta of the smoothed gradient that it reads as ``layer.momentum``; None: it reads none."""
        return None

    @abstractmethod
    def __call__(self, layer: Layer, where: slice, draws: Draws) -> Array:
        """Return the scores of the positions in a slice, floats of the slice's length."""

    def scorer(self, layer: Layer, draws: Draws) -> Scorer:
        """Return the scores as a function of a slice; values common to all slices are computed here, once."""
        return lambda where: self(layer, where, draws)
