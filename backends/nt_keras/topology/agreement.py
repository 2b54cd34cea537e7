"""Fields with which a training began, compared with those of the objects that resume it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import TopologyError


def expect_agreement(what: str, asked: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Check, field by field, that what is asked for is what a state says.

    Args:
        what: has the fields, for the error.
        asked: fields of the new object, plain values.
        state: fields of the object whose state is loaded; a field that is missing was not saved.

    Raises:
        TopologyError: a field differs; the message names it.

    Example:
        >>> expect_agreement("Topology", {"seed": 1}, {"seed": 1, "total_steps": 9})
    """
    for name, value in asked.items():
        if name not in state or state[name] == value:
            continue
        if isinstance(value, Mapping) and isinstance(state[name], Mapping):
            expect_agreement(f"{what}.{name}", value, state[name])
            continue
        raise TopologyError(
            f"{what}.{name}: expected {state[name]!r}, with which the training began, found {value!r}; give "
            "the same, or begin another training, with a new optimiser"
        )


def to_bytes(value: Any) -> NDArray[np.uint8]:
    """Return a plain value as an array, which files of Keras hold."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def from_bytes(array: Any) -> Any:
    """Return the value of :func:`to_bytes`.

    Example:
        >>> from_bytes(to_bytes({"seed": 1}))
        {'seed': 1}
    """
    return json.loads(np.array(array, np.uint8).tobytes())
