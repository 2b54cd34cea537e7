"""The NumPy reference of each op and of a whole ensemble of ops: forward and gradient.

Input: a layout, values by name, and inputs. Output: logits and gradients in the dtype of the inputs. Every
backend is compared with the reference (:mod:`nt_core.testing`), so its code aims at clarity, not at speed.
This room imports ``graph``, ``structure``, and the ground.
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
