"""Cost: weights, FLOPs, memory, and communication of a spec, by arithmetic on its graph alone.

Input: a spec. Output: tables of exact figures, none of them measured. This room imports ``graph``,
``masks``, ``structure``, ``policies``, ``topology``, ``training``, ``spec``, and the ground.
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
