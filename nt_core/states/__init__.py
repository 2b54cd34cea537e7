"""States of a training: everything that an interrupted training continues from.

In go arrays and plain values of a backend's trainer; out come the last two states in a folder, whole and
with checksums, or a training that stops at a state. It imports ``spec``, ``structure``, ``training``,
``files``, and the ground.
"""

from nt_core.states.file import State
from nt_core.states.folder import States, Stopped, identity

__all__ = [
    "State",
    "States",
    "Stopped",
    "identity",
]
