"""Base class of ops, and checks of shapes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from nt_core.errors import GraphError
from nt_core.graph.weights import Spread, Weight, factor, vector
from nt_core.values import Count, Members, Shape, Value

Pair = tuple[Count, Count]
NotNegative = Annotated[int, Field(ge=0)]
Padding = tuple[tuple[NotNegative, NotNegative], tuple[NotNegative, NotNegative]]
"""((top, bottom), (left, right)), in pixels."""


class Op(Value, ABC):
    """The base of all ops: ``arity`` inputs (None: two or more), a shape, weights, multiply-adds.

    An op that owns weights derives from :class:`ScaledOp`, :class:`MemberNorm` or :class:`SharedOp`, which
    say how members share it, or defines :meth:`for_members` itself.

    Raises:
        TypeError: at its definition, if it owns weights and does not say how members share them.
    """

    kind: str
    arity: ClassVar[int | None] = 1

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls.weights is not Op.weights and cls.for_members is Op.for_members:
            raise TypeError(
                f"op {cls.__name__}: it owns weights, but does not say how members share them; derive it "
                "from ScaledOp, MemberNorm or SharedOp, or define for_members"
            )

    @abstractmethod
    def output_shape(self, *inputs: Shape) -> Shape:
        """Return the output shape for some input shapes.

        Raises:
            GraphError: an input does not fit; the message gives the expected and the found shape.
        """

    def weights(self) -> tuple[Weight, ...]:
        """Return the arrays that the op owns."""
        return ()

    def for_members(self, members: int, spread: Spread, *, own_norms: bool) -> Self:
        """Return the op as members have it that share every block (BatchEnsemble).

        Args:
            members: M.
            spread: how each member's scales of a kernel are drawn.
            own_norms: whether each member has normalisations of its own.
        """
        return self

    def positions(self, *inputs: Shape) -> int:
        """Return the number of uses of each kernel element for one example: the output's positions."""
        return 0

    def product_multiply_adds(self, *inputs: Shape) -> int:
        """Return the multiply-adds among activations (of attention), which masks do not save."""
        return 0


class Factors(Value):
    """Scales of each member on a kernel that members share (BatchEnsemble, Wen et al. 2020, §3.1).

    y_m = ((x_m ∘ r_m)·Wᵀ) ∘ s_m + b_m. The batch is member-major: its first 1/M belongs to member 1.

    Attributes:
        members: M.
        spread: distribution of r and s: ``normal``: N(1, 0.5²); ``signs``: ±1 with even chances.
    """

    members: Members
    spread: Spread = "normal"

    def weights(self, inputs: int, outputs: int, *, bias: bool) -> tuple[Weight, ...]:
        """Return r (M, inputs), s (M, outputs) and b (M, outputs)."""
        return (
            factor("input_factor", inputs, self.members, self.spread),
            factor("output_factor", outputs, self.members, self.spread),
            *([vector("bias", outputs, "bias", 0.0, self.members)] if bias else []),
        )


class ScaledOp(Op, ABC):
    """An op whose kernel members share and scale, each by factors of its own.

    Attributes:
        factors: each member's scales; None: the kernel is one network's.
    """

    factors: Factors | None = None

    def for_members(self, members: int, spread: Spread, *, own_norms: bool) -> Self:
        return self.replace(factors=Factors(members=members, spread=spread))


class MemberNorm(Op, ABC):
    """A normalisation that members share, or of which each has its own.

    Attributes:
        members: how many have their own; None: it is one for all.
    """

    members: Members | None = None

    def for_members(self, members: int, spread: Spread, *, own_norms: bool) -> Self:
        return self.replace(members=members) if own_norms else self


class SharedOp(Op, ABC):
    """An op whose weights all members share as they are."""

    def for_members(self, members: int, spread: Spread, *, own_norms: bool) -> Self:
        return self


def expect_image(shape: Shape, channels: int | None = None) -> None:
    """Check that a shape is (channels, height, width)."""
    if len(shape) != 3 or (channels is not None and shape[0] != channels):
        wanted = "channels" if channels is None else channels
        raise GraphError(f"expected an image ({wanted}, height, width), found shape {shape}")


def expect_sequence(shape: Shape) -> tuple[int, int]:
    """Check that a shape is (length, features), and return it."""
    if len(shape) != 2:
        raise GraphError(f"expected a sequence (length, features), found shape {shape}")
    return shape[0], shape[1]


def expect_features(shape: Shape, features: int, instead: str) -> None:
    """Check that a shape is (features,) or (length, features).

    Args:
        shape: of one example.
        features: number of elements of the last axis.
        instead: what to write for an image, whose last axis is its width.
    """
    if len(shape) > 2:
        raise GraphError(
            f"expected features or a sequence (…, {features}), found an image {shape}, whose last axis is "
            f"its width; write {instead}"
        )
    if not shape or shape[-1] != features:
        raise GraphError(f"expected {features} features on the last axis, found shape {shape}")


def expect_same(shapes: tuple[Shape, ...] | list[Shape]) -> Shape:
    """Check that all shapes are equal, and return that shape."""
    if len(set(shapes)) != 1:
        raise GraphError(f"expected equal shapes, found {' and '.join(map(str, shapes))}")
    return shapes[0]


def windows(shape: Shape, kernel: Pair, stride: Pair, padding: Padding) -> tuple[int, int]:
    """Return the number of windows along height and width."""
    sizes = [
        (size + sum(pads) - k) // s + 1
        for size, k, s, pads in zip(shape[1:], kernel, stride, padding, strict=True)
    ]
    if min(sizes) < 1:
        raise GraphError(f"expected room for a {kernel} window, found image {shape} with padding {padding}")
    return sizes[0], sizes[1]
