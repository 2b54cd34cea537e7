"""The table of all references."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from nt_core.graph import ops
from nt_core.graph.ops import Op
from nt_core.reference.attention import attention
from nt_core.reference.contract import Reference
from nt_core.reference.dense import embedding, linear
from nt_core.reference.elementwise import activation, add, concat, dropout, flatten, multiply
from nt_core.reference.images import avg_pool2d, conv2d, global_avg_pool, max_pool2d
from nt_core.reference.members import each_member, with_factors
from nt_core.reference.norms import batch_norm, layer_norm, rms_norm
from nt_core.reference.sequences import class_token, positions, take_token, to_sequence, transpose

REFERENCE: Mapping[type[Op], Reference] = MappingProxyType(
    {
        ops.Conv2d: with_factors(conv2d, channels=1),
        ops.Linear: with_factors(linear, channels=-1),
        ops.Embedding: embedding,
        ops.ClassToken: class_token,
        ops.Positions: positions,
        ops.BatchNorm: each_member(batch_norm),
        ops.LayerNorm: each_member(layer_norm),
        ops.RMSNorm: each_member(rms_norm),
        ops.Activation: activation,
        ops.MaxPool2d: max_pool2d,
        ops.AvgPool2d: avg_pool2d,
        ops.GlobalAvgPool: global_avg_pool,
        ops.Flatten: flatten,
        ops.ToSequence: to_sequence,
        ops.Transpose: transpose,
        ops.TakeToken: take_token,
        ops.Dropout: dropout,
        ops.Add: add,
        ops.Multiply: multiply,
        ops.Concat: concat,
        ops.Attention: attention,
    }
)
"""The reference of each op; its keys are exactly :data:`nt_core.graph.ops.OPS`."""
