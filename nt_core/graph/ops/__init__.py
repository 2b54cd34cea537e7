"""Ops: the closed, small set of operations of which networks are composed.

An op knows its output shape, its weights and its multiply-adds. :mod:`nt_core.reference` defines its
computation. Layouts are canonical: images are (channels, height, width), sequences (length, features),
convolution weights (out, in, kernel height, kernel width), linear weights (out, in). Shapes never contain the
batch axis. Paddings are explicit pairs.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from nt_core.graph.ops.attention import AnyRotaryScaling, Attention, LinearScaling, Llama3Scaling
from nt_core.graph.ops.base import Factors, MemberNorm, Op, Padding, Pair, ScaledOp, SharedOp
from nt_core.graph.ops.dense import AnyDense, Embedding, Linear
from nt_core.graph.ops.elementwise import Activation, Add, AnyElementwise, Concat, Dropout, Flatten, Multiply
from nt_core.graph.ops.images import AnyImageOp, AvgPool2d, Conv2d, GlobalAvgPool, MaxPool2d
from nt_core.graph.ops.norms import AnyNorm, BatchNorm, LayerNorm, RMSNorm
from nt_core.graph.ops.sequences import AnySequenceOp, ClassToken, Positions, TakeToken, ToSequence, Transpose
from nt_core.graph.weights import Weight

AnyOp = Annotated[
    AnyDense | AnyImageOp | AnyNorm | AnyElementwise | AnySequenceOp | Attention, Field(discriminator="kind")
]
"""Any op; each module above lists its own."""

OPS: tuple[type[Op], ...] = get_args(get_args(AnyOp)[0])
"""All ops; each backend's table of lowerings has exactly these keys."""

__all__ = [
    "OPS",
    "Activation",
    "Add",
    "AnyOp",
    "AnyRotaryScaling",
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
    "LinearScaling",
    "Llama3Scaling",
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
