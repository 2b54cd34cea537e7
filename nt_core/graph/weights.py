"""Weights: the arrays that ops own, and their initial distributions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nt_core.values import Shape

Init = Literal["he_normal", "lecun_uniform", "normal_002"]
Role = Literal["kernel", "bias", "scale", "factor", "table", "running"]
"""The part that an array plays in its op."""

Spread = Literal["normal", "signs"]
"""Distribution of the factors of a BatchEnsemble: N(1, 0.5²), or ±1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One array that an op owns.

    Attributes:
        name: of the array within the op, ``"weight"`` or ``"bias"`` say.
        shape: of the array; axis 0 is the output axis and the rest is the fan-in.
        role: ``kernel`` (multiplies activations, may be sparse), ``bias``, ``scale``, ``factor`` (a member's
            own scale of a shared kernel), ``table`` (rows that are looked up or added) or ``running`` (a
            statistic that is kept, not trained).
        init: ``("constant", value)``, ``("normal", standard deviation)``, ``("around_one", standard
            deviation)``, ``("uniform", bound)`` or ``("signs", size)``, + or − with even chances.
    """

    name: str
    shape: Shape
    role: Role
    init: tuple[Literal["constant", "normal", "around_one", "uniform", "signs"], float]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def sparsifiable(self) -> bool:
        """Whether the array may have a mask."""
        return self.role == "kernel"

    @property
    def trainable(self) -> bool:
        """Whether an optimiser changes the array."""
        return self.role != "running"

    @property
    def decayed(self) -> bool:
        """Whether weight decay applies, except to factors, because they would shrink from ±1 to 0."""
        return self.role != "factor"


def kernel(shape: Shape, init: Init) -> Weight:
    """Declare the weight that multiplies an op's input.

    Args:
        shape: (out, in, …).
        init: ``he_normal``: N(0, 2 / fan-in), He et al. 2015; ``lecun_uniform``: U(±1/√fan-in), PyTorch's
            default for a linear layer; ``normal_002``: N(0, 0.02²), usual for language models.

    Example:
        >>> kernel((8, 2), "he_normal").init
        ('normal', 1.0)
    """
    fan_in = math.prod(shape[1:])
    match init:
        case "he_normal":
            return Weight(name="weight", shape=shape, role="kernel", init=("normal", math.sqrt(2 / fan_in)))
        case "lecun_uniform":
            return Weight(name="weight", shape=shape, role="kernel", init=("uniform", 1 / math.sqrt(fan_in)))
        case "normal_002":
            return Weight(name="weight", shape=shape, role="kernel", init=("normal", 0.02))


def table(rows: int, features: int) -> Weight:
    """Declare a table of learned vectors, drawn from N(0, 0.02²)."""
    return Weight(name="weight", shape=(rows, features), role="table", init=("normal", 0.02))


def vector(name: str, size: int, role: Role, value: float, members: int | None = None) -> Weight:
    """Declare a weight with a constant initial value, of one axis, or with a row for each member."""
    shape = (size,) if members is None else (members, size)
    return Weight(name=name, shape=shape, role=role, init=("constant", value))


def factor(name: str, size: int, members: int, spread: Spread) -> Weight:
    """Declare members' scales of a shared kernel's inputs or outputs.

    Args:
        name: ``"input_factor"`` or ``"output_factor"``.
        size: of the kernel's axis.
        members: M.
        spread: ``normal``: N(1, 0.5²); ``signs``: ±1.

    Example:
        >>> factor("input_factor", 8, 3, "signs").shape
        (3, 8)
    """
    init: tuple[Literal["around_one", "signs"], float] = (
        ("around_one", 0.5) if spread == "normal" else ("signs", 1.0)
    )
    return Weight(name=name, shape=(members, size), role="factor", init=init)
