"""Saved states of a training, from which an interrupted training is resumed.

Input: arrays and plain values of a backend's trainer. Output: the last two states in a folder, complete and
with checksums, or a training that stops at a state. This room imports ``files``, ``structure``,
``training``, ``spec``, and the ground.
"""

from nt_core.states.file import State
from nt_core.states.folder import States, Stopped, differences, identity

__all__ = [
    "State",
    "States",
    "Stopped",
    "differences",
    "identity",
]
