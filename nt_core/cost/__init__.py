"""Cost: weights, FLOPs, memory, and messages of a spec, by arithmetic on its graph alone.

In goes a spec; out come tables of exact figures, none of them measured. It imports ``spec`` and what a spec
is made of, ``masks``, and the ground.
"""

from nt_core.cost.flops import Cost, LayerCost, cost
from nt_core.cost.messages import Messages, update_messages
from nt_core.cost.per_process import WIDTHS, DeviceMemory, HostMemory, Scale, Widths, scale, state_tensors

__all__ = [
    "WIDTHS",
    "Cost",
    "DeviceMemory",
    "HostMemory",
    "LayerCost",
    "Messages",
    "Scale",
    "Widths",
    "cost",
    "scale",
    "state_tensors",
    "update_messages",
]
