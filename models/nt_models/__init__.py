"""Architectures as pure block graphs, each citing its source.

An architecture is exported, and named by spec files, by its import here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from nt_core import BlockGraph
from nt_models.llama import llama as llama
from nt_models.llama import llama_1b as llama_1b
from nt_models.llama import llama_7b as llama_7b
from nt_models.llama import llama_13b as llama_13b
from nt_models.llama import llama_34b as llama_34b
from nt_models.llama import llama_70b as llama_70b
from nt_models.llama import llama_130m as llama_130m
from nt_models.llama import llama_250m as llama_250m
from nt_models.llama import llama_350m as llama_350m
from nt_models.llama import llama_tiny as llama_tiny
from nt_models.mixer import mixer as mixer
from nt_models.mixer import mixer_s16 as mixer_s16
from nt_models.mlp import mlp as mlp
from nt_models.resnet import resnet as resnet
from nt_models.vit import vit as vit
from nt_models.vit import vit_s16 as vit_s16
from nt_models.vit import vit_tiny32 as vit_tiny32
from nt_models.wide_resnet import wide_resnet as wide_resnet

ARCHITECTURES: Mapping[str, Callable[..., BlockGraph]] = MappingProxyType(
    {name: make for name, make in dict(globals()).items() if getattr(make, "is_architecture", False)}
)
"""The architectures a spec file can name."""

__all__ = ["ARCHITECTURES", *ARCHITECTURES]
