"""Sparse inference on CPUs: compiles a trained ensemble into a program that multiplies no zeros.

Example:
    >>> import numpy as np, nt_core, nt_models, nt_cpu
    >>> spec = nt_core.PRESETS["single"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
    >>> engine = nt_cpu.compile((spec, dict(nt_core.initial_values(spec.layout, seed=0))), batch=2)
    >>> engine(np.zeros((2, 8), np.float32)).shape
    (2, 3)
"""

from nt_cpu.engine import Engine, compile  # noqa: A004
from nt_cpu.packed import load, pack

__all__ = ["Engine", "compile", "load", "pack"]
