"""The op of attention."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nt_core.errors import GraphError
from nt_core.graph.ops.base import Op
from nt_core.values import Count, Shape


class Attention(Op):
    """Scaled dot-product attention (Vaswani et al. 2017, §3.2) of projected queries, keys and values.

    Inputs: queries (T, heads·d), keys and values (T, kv_heads·d); output (T, heads·d). With fewer
    ``kv_heads`` than ``heads``, each key/value head is shared by heads/kv_heads query heads (Ainslie et al.
    2023). ``rotary_base`` rotates queries and keys by rotary positions (Su et al. 2021) in the half-split
    layout: component i is paired with i + d/2.
    """

    kind: Literal["attention"] = "attention"
    arity: ClassVar[int | None] = 3
    heads: Count
    kv_heads: Count
    causal: bool = False
    rotary_base: Annotated[float, Field(gt=0)] | None = None

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
        return queries

    def product_multiply_adds(self, *inputs: Shape) -> int:
        length, features = inputs[0]
        return 2 * length * length * features
