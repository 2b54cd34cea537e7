"""Ops: the closed, small set of operations of which networks are composed.

An op knows its output shape, its weights and its multiply-adds. :mod:`nt_core.reference` defines its
computation. Layouts are canonical: images are (channels, height, width), sequences (length, features),
convolution weights (out, in, kernel height, kernel width), linear weights (out, in). Shapes never contain the
batch axis. Paddings are explicit pairs.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from nt_core.graph.ops.attention import Attention
from nt_core.graph.ops.base import Factors, MemberNorm, Op, Padding, Pair, ScaledOp, SharedOp
from nt_core.graph.ops.dense import Embedding, Linear
from nt_core.graph.ops.elementwise import Activation, Add, Concat, Dropout, Flatten, Multiply
from nt_core.graph.ops.images import AvgPool2d, Conv2d, GlobalAvgPool, MaxPool2d
from nt_core.graph.ops.norms import BatchNorm, LayerNorm, RMSNorm
from nt_core.graph.ops.sequences import ClassToken, Positions, TakeToken, ToSequence, Transpose
from nt_core.graph.weights import Weight

AnyOp = Annotated[
    Conv2d
    | Linear
    | Embedding
    | ClassToken
    | Positions
    | BatchNorm
    | LayerNorm
    | RMSNorm
    | Activation
    | MaxPool2d
    | AvgPool2d
    | GlobalAvgPool
    | Flatten
    | ToSequence
    | Transpose
    | TakeToken
    | Dropout
    | Add
    | Multiply
    | Concat
    | Attention,
    Field(discriminator="kind"),
]
OPS: tuple[type[Op], ...] = get_args(get_args(AnyOp)[0])
"""All ops; each backend's table of lowerings has exactly these keys."""

__all__ = [
    "OPS",
    "Activation",
    "Add",
    "AnyOp",
    "Attention",
    "AvgPool2d",
    "BatchNorm",
    "ClassToken",
    "Concat",
    "Conv2d",
    "Dropout",
    "Embedding",
    "Factors",
    "Flatten",
    "GlobalAvgPool",
    "LayerNorm",
    "Linear",
    "MaxPool2d",
    "MemberNorm",
    "Multiply",
    "Op",
    "Padding",
    "Pair",
    "Positions",
    "RMSNorm",
    "ScaledOp",
    "SharedOp",
    "TakeToken",
    "ToSequence",
    "Transpose",
    "Weight",
]
