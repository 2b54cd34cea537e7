"""The NumPy truth of what each op, and a whole ensemble of ops, computes: forward and gradient.

In go a layout, values by name, and inputs; out come logits and gradients in the dtype of the inputs. Every
backend is compared with it (:mod:`nt_core.testing`), so it is written to be read. It imports ``graph``,
``structure``, and the ground.
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
