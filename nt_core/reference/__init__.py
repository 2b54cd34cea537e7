"""The NumPy truth of what each op, and a whole ensemble of ops, computes: forward and gradient.

Every backend is compared with this (:mod:`nt_core.testing`). Written to be read, in the dtype of its inputs.
"""

from nt_core.reference.contract import Applied, Array, Cotangents, Inputs, Pullback, Reference, Weights
from nt_core.reference.network import Evaluated, Values, forward, value_and_gradients
from nt_core.reference.table import REFERENCE

__all__ = [
    "REFERENCE",
    "Applied",
    "Array",
    "Cotangents",
    "Evaluated",
    "Inputs",
    "Pullback",
    "Reference",
    "Values",
    "Weights",
    "forward",
    "value_and_gradients",
]
