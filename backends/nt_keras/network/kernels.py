"""Masked kernels: variables that are zero outside of their masks, whoever writes to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import local
from typing import Any
from weakref import WeakSet

import keras
import numpy as np
from keras import ops

from nt_core.errors import TopologyError
from nt_keras.engines import engine

_here = local()
"""Of this thread: whether an optimiser that keeps to masks takes a step; whether values are only moved."""


class Kernel(keras.Variable):  # type: ignore[misc]
    """Kernel with a mask, to which only zeros are written where a connection is inactive.

    Attributes:
        mask: its :class:`KernelMask`.
    """

    def _direct_assign(self, value: Any) -> None:
        if not _moves(self.mask):
            value = ops.where(self.mask.value, value, ops.zeros((), self.dtype))
        super()._direct_assign(value)

    @property
    def constraint(self) -> Callable[[Any], Any] | None:
        """What Keras' optimisers ask for in a step: None in a step that keeps to masks, else an error."""
        return None if getattr(_here, "keeps_masks", False) else self._refuse

    @constraint.setter
    def constraint(self, value: Any) -> None:
        raise TopologyError(
            f"weight {self.path!r}: expected no constraint, found {value}; its mask is one already"
        )

    def _refuse(self, _: Any) -> None:
        raise TopologyError(
            f"weight {self.path!r}: an optimiser takes a step that would train inactive connections, because "
            "it does not keep to masks; wrap it by nt_keras.sparse(optimizer, model), with the model that "
            "nt_keras.compile returned, also where that is a part of another"
        )


class KernelMask(keras.Variable):  # type: ignore[misc]
    """Mask of a kernel; a change of it sets to zero what is inactive now.

    Attributes:
        kernel: the kernel.
        chosen: whether it was ever set, which it is not in a model that Keras made from a config.
        followers: optimisers with variables for the kernel.
    """

    def assign(self, value: Any) -> Any:
        """Set the mask, and zeros where it is False, in the kernel and in its optimisers' variables.

        Raises:
            TopologyError: a value is neither true nor false, as in an average of masks.
        """
        if not isinstance(value, np.ndarray) and "float" in str(getattr(value, "dtype", "")):
            value = engine.to_numpy(value)
        if isinstance(value, np.ndarray) and ((value != 0) & (value != 1)).any():
            found = value[(value != 0) & (value != 1)].flat[0]
            raise TopologyError(
                f"mask {self.path!r}: expected true or false, found {found}; do not average masks: average "
                "weights, with use_ema=True of Keras' optimisers"
            )
        return super().assign(value)

    def _direct_assign(self, value: Any) -> None:
        moved = _moves(self)
        super()._direct_assign(value)
        if not moved:
            self.chosen = True
            self.kernel.assign(self.kernel)
            for optimizer in self.followers:
                optimizer.follow([self.kernel])


def _moves(mask: KernelMask) -> bool:
    """Return whether JAX's training loop, which takes values away while it runs, moves them back."""
    return mask._value is None or getattr(_here, "moves", False)


def mask_kernel(kernel: Any, mask: Any) -> None:
    """Turn two variables that a layer of Keras made into a kernel and its mask."""
    kernel.__class__, mask.__class__ = Kernel, KernelMask
    kernel.mask = mask
    mask.kernel, mask.chosen, mask.followers = kernel, False, WeakSet()


def set_masks(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Set those of some variables that are masks, if the values fit."""
    if [tuple(each.shape) for each in variables] == [np.shape(each) for each in values]:
        for variable, value in zip(variables, values, strict=True):
            if isinstance(variable, KernelMask):
                variable.assign(value)


@contextmanager
def keeping_masks() -> Iterator[None]:
    """Make a context, of this thread, in which an optimiser's step keeps to masks."""
    with _set("keeps_masks"):
        yield


@contextmanager
def moving() -> Iterator[None]:
    """Make a context, of this thread, in which JAX moves values back into variables, unchanged."""
    with _set("moves"):
        yield


@contextmanager
def _set(name: str) -> Iterator[None]:
    before = getattr(_here, name, False)
    setattr(_here, name, True)
    try:
        yield
    finally:
        setattr(_here, name, before)
