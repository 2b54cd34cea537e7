"""Architectures as pure block graphs, each citing its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from nt_core import BlockGraph
from nt_models.llama import (
    llama,
    llama_1b,
    llama_7b,
    llama_13b,
    llama_34b,
    llama_70b,
    llama_130m,
    llama_250m,
    llama_350m,
    llama_tiny,
)
from nt_models.mixer import mixer, mixer_s16
from nt_models.mlp import mlp
from nt_models.resnet import resnet
from nt_models.vit import vit, vit_s16, vit_tiny32
from nt_models.wide_resnet import wide_resnet

ARCHITECTURES: Mapping[str, Callable[..., BlockGraph]] = MappingProxyType(
    {
        make.__name__: make
        for make in (
            llama,
            llama_130m,
            llama_250m,
            llama_350m,
            llama_1b,
            llama_7b,
            llama_13b,
            llama_34b,
            llama_70b,
            llama_tiny,
            mixer,
            mixer_s16,
            mlp,
            resnet,
            vit,
            vit_s16,
            vit_tiny32,
            wide_resnet,
        )
    }
)
"""The architectures a spec file can name."""

__all__ = [
    "ARCHITECTURES",
    "llama",
    "llama_1b",
    "llama_7b",
    "llama_13b",
    "llama_34b",
    "llama_70b",
    "llama_130m",
    "llama_250m",
    "llama_350m",
    "llama_tiny",
    "mixer",
    "mixer_s16",
    "mlp",
    "resnet",
    "vit",
    "vit_s16",
    "vit_tiny32",
    "wide_resnet",
]
