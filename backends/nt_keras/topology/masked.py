"""One masked weight of a model: its kernel, its mask, and its optimiser's variables, changed together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import TopologyError
from nt_core.policies import Layer, Swap
from nt_core.random import Stream
from nt_core.structure import PlacedWeight
from nt_core.topology import Bits, draw, pack
from nt_keras.engines import engine
from nt_keras.engines.layouts import kernel_axes, to_canonical, to_keras
from nt_keras.network.model import Network
from nt_keras.topology.sparse import Sparse


@dataclass(frozen=True, slots=True)
class MaskedWeight:
    """A weight and its mask, in the layout of policies and in that of Keras.

    Attributes:
        placed: name, shape and initial distribution of the weight.
        kernel: the variable, dense, with exact zeros where inactive; ``kernel.mask`` is its mask.
    """

    placed: PlacedWeight
    kernel: Any

    @property
    def name(self) -> str:
        """The weight's full name."""
        return self.placed.name

    def layer(self, optimizer: Sparse) -> Layer:
        """Return the arrays for a policy: flat NumPy arrays in the canonical layout.

        Raises:
            TopologyError: replicas have different masks.
        """
        beside = optimizer.beside(self.kernel)
        kept, gradients, momentum = beside.gradient, None, None
        if kept is not None:
            gradients = self._flat(engine.to_numpy(kept)) / np.float32(optimizer.gradient_scale)
        if beside.momentum is not None:
            momentum = self._flat(engine.to_numpy(beside.momentum))
        return Layer(
            name=self.name,
            weights=self._flat(engine.to_numpy(self.kernel)),
            gradients=gradients,
            active=self.active(),
            momentum=momentum,
            shape=self.placed.weight.shape,
        )

    def active(self) -> NDArray[np.bool_]:
        """Return the mask, flat and canonical.

        Raises:
            TopologyError: replicas have different masks.
        """
        first, *others = engine.replicas(self.kernel.mask)
        for number, other in enumerate(others, start=1):
            if not np.array_equal(first, other):
                raise TopologyError(
                    f"weight {self.name!r}: replica {number} has another mask than replica 0; change masks "
                    "by model.set_mask only, outside of replicas"
                )
        return self._flat(first)

    def apply(self, swap: Swap, active: NDArray[np.bool_], grown_values: Stream | None) -> Bits:
        """Change the mask and return it, packed; grown values are drawn here if given a stream.

        The mask sets inactive elements to zero, in the kernel and in the optimiser.
        """
        active = active.copy()
        active[swap.pruned], active[swap.grown] = False, True
        self.kernel.mask.assign(self._shaped(active))
        if grown_values is not None and len(swap.grown):
            values = self._flat(engine.to_numpy(self.kernel)).copy()
            values[swap.grown] = draw(self.placed.weight, grown_values, swap.grown)
            self.kernel.assign(self._shaped(values))
        return pack(active)

    def _flat(self, array: NDArray[Any]) -> NDArray[Any]:
        return to_canonical(array, self._axes).reshape(-1)

    def _shaped(self, flat: NDArray[Any]) -> NDArray[Any]:
        return to_keras(flat.reshape(self.placed.weight.shape), self._axes)

    @property
    def _axes(self) -> tuple[int, ...] | None:
        return kernel_axes(self.placed.node.op, self.placed.weight.name)


def masked_weights(model: Network) -> tuple[MaskedWeight, ...]:
    """List the weights of a model that have a mask, in the layout's order."""
    names = set(model.masked)
    return tuple(
        MaskedWeight(p, model.variable(p.name)) for p in model.spec.layout.sparsifiable if p.name in names
    )
