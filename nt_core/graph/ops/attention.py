"""The op of attention, and the scaling of its rotary positions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from nt_core.errors import GraphError
from nt_core.graph.ops.base import Op
from nt_core.values import Count, Shape, Value

_Positive = Annotated[float, Field(gt=0)]


class RotaryScaling(Value, ABC):
    """A change of the frequencies of rotary positions, for sequences longer than those trained on at first.

    Attributes:
        factor: by which the sequences are longer.
    """

    kind: str
    factor: _Positive

    @abstractmethod
    def of(self, frequencies: Any) -> Any:
        """Return the changed frequencies: an array of any library, in radians per position."""


class LinearScaling(RotaryScaling):
    """Position interpolation: all frequencies divided by the factor (Chen et al. 2023, arXiv 2306.15595).

    Example:
        >>> import numpy as np
        >>> LinearScaling(factor=4).of(np.array([1.0, 0.1])).tolist()
        [0.25, 0.025]
    """

    kind: Literal["linear"] = "linear"

    def of(self, frequencies: Any) -> Any:
        return frequencies / self.factor


class Llama3Scaling(RotaryScaling):
    """The scaling of Llama 3.1: low frequencies are divided by the factor, high ones stay (arXiv 2407.21783).

    A frequency is high that turns at least ``high_turns`` times within the original length, low below
    ``low_turns``; in between both values are mixed, linearly in the number of turns.

    Attributes:
        factor: by which the sequences are longer.
        low_turns: ``low_freq_factor`` in Hugging Face's configs.
        high_turns: ``high_freq_factor``.
        original_length: ``original_max_position_embeddings``, in tokens.

    Raises:
        GraphError: ``high_turns`` does not exceed ``low_turns``.

    Example:
        >>> import numpy as np
        >>> scaling = Llama3Scaling(factor=8, low_turns=1, high_turns=4, original_length=100)
        >>> scaling.of(np.array([1.0, 0.1, 0.01])).round(6).tolist()
        [1.0, 0.029754, 0.00125]
    """

    kind: Literal["llama3"] = "llama3"
    low_turns: _Positive = 1.0
    high_turns: _Positive = 4.0
    original_length: Count

    def model_post_init(self, _: Any) -> None:
        if self.high_turns <= self.low_turns:
            raise GraphError(
                f"rotary_scaling: expected high_turns above low_turns={self.low_turns:g}, "
                f"found {self.high_turns:g}"
            )

    def of(self, frequencies: Any) -> Any:
        turns = frequencies * (self.original_length / (2 * math.pi))
        kept = ((turns - self.low_turns) / (self.high_turns - self.low_turns)).clip(0.0, 1.0)
        return frequencies * (kept + (1.0 - kept) / self.factor)


AnyRotaryScaling = Annotated[LinearScaling | Llama3Scaling, Field(discriminator="kind")]
"""Any scaling of the frequencies of rotary positions, for texts longer than those of the training."""


class Attention(Op):
    """Scaled dot-product attention (Vaswani et al. 2017, §3.2) of projected queries, keys and values.

    Inputs: queries (T, heads·d), keys and values (T, kv_heads·d); output (T, heads·d). With fewer
    ``kv_heads`` than ``heads``, each key/value head is shared by heads/kv_heads query heads (Ainslie et al.
    2023). ``rotary_base`` rotates queries and keys by rotary positions (Su et al. 2021) in the half-split
    layout: component i is paired with i + d/2. ``rotary_scaling`` changes the frequencies of these rotations.
    """

    kind: Literal["attention"] = "attention"
    arity: ClassVar[int | None] = 3
    heads: Count
    kv_heads: Count
    causal: bool = False
    rotary_base: _Positive | None = None
    rotary_scaling: AnyRotaryScaling | None = None

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave a scaling that is not there out of files, so that they are those of older versions."""
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if key != "rotary_scaling" or value is not None}

    def output_shape(self, *inputs: Shape) -> Shape:
        queries, keys, values = inputs
        if any(len(shape) != 2 for shape in inputs):
            raise GraphError(f"expected three shapes (length, features), found {list(inputs)}")
        if self.heads % self.kv_heads or queries[1] % self.heads:
            raise GraphError(
                f"expected heads={self.heads} to divide the {queries[1]} query features "
                f"and kv_heads={self.kv_heads} to divide heads"
            )
        size = queries[1] // self.heads
        expected = (queries[0], self.kv_heads * size)
        if keys != expected or values != expected:
            raise GraphError(f"expected keys and values of shape {expected}, found {keys} and {values}")
        if self.rotary_base is not None and size % 2:
            raise GraphError(f"expected an even head size for rotary positions, found {size}")
        if self.rotary_base is None and self.rotary_scaling is not None:
            raise GraphError("rotary_scaling: expected a rotary_base to scale, found none; give one")
        return queries

    def product_multiply_adds(self, *inputs: Shape) -> int:
        length, features = inputs[0]
        return 2 * length * length * features

    def frequencies(self, exponents: Any) -> Any:
        """Return the frequencies of rotary positions, in radians per position, in any array library.

        Args:
            exponents: 2i/d of each pair of components, (d/2,).

        Example:
            >>> import numpy as np
            >>> Attention(heads=1, kv_heads=1, rotary_base=100.0).frequencies(np.array([0.0, 0.5])).tolist()
            [1.0, 0.1]
        """
        assert self.rotary_base is not None
        plain = self.rotary_base**-exponents
        return plain if self.rotary_scaling is None else self.rotary_scaling.of(plain)
