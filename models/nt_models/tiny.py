"""A tiny graph of each architecture, on which backends are compared with the NumPy reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from nt_core import BlockGraph
from nt_models.llama import llama
from nt_models.mixer import mixer
from nt_models.resnet import resnet
from nt_models.vit import vit
from nt_models.wide_resnet import wide_resnet

TINY: Mapping[str, Callable[[], BlockGraph]] = MappingProxyType(
    {
        "llama": lambda: llama(
            blocks=2, width=16, hidden=12, heads=4, kv_heads=2, vocabulary=11, length=5, rotary_base=100.0
        ),
        "mixer": lambda: mixer(blocks=2, width=6, tokens=5, hidden=8, patch=3, classes=3, size=9, channels=2),
        "resnet_basic": lambda: resnet(depth=10, width=3, classes=3, size=40, channels=2),
        "resnet_bottleneck": lambda: resnet(depth=14, width=2, classes=3, size=40, channels=1),
        "vit": lambda: vit(blocks=2, width=8, hidden=12, heads=2, patch=3, classes=3, size=9, channels=2),
        "wide_resnet": lambda: wide_resnet(depth=10, width=1, classes=10, size=8, channels=1),
    }
)
"""Name → function that makes the graph; :func:`nt_core.testing.model_cases` takes the graphs."""
