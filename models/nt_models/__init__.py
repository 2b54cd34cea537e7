"""Architectures as pure block graphs, each citing its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from nt_core import BlockGraph
from nt_models.mlp import mlp
from nt_models.wide_resnet import wide_resnet

ARCHITECTURES: Mapping[str, Callable[..., BlockGraph]] = MappingProxyType(
    {"mlp": mlp, "wide_resnet": wide_resnet}
)
"""The architectures a spec file can name."""

__all__ = ["ARCHITECTURES", "mlp", "wide_resnet"]
