"""Check that topology updates on a backend's arrays make the same selections as NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nt_core.masks import NUMPY, Array, Arrays, Moment
from nt_core.policies import GROWS, PRUNES, Criterion, Layer
from nt_core.random import Random
from nt_core.topology import DeclaredTopology, DropFraction, Dynamic, GradualPruning, Semantics, update


def update_cases() -> tuple[DeclaredTopology, ...]:
    """Return a topology for every exact prune and grow, scope, semantics and rounding."""
    grown = [
        Dynamic(
            sparsity=0.5, prune=prune, grow=grow, scope=scope, semantics=Semantics(regrow=regrow), interval=1
        )
        for prune in exact(PRUNES)
        for grow in exact(GROWS)
        for scope in ("layer", "global")
        for regrow in ("out", "return")
        if not (prune.by_sign and scope == "global")
    ]
    rounded = [
        Dynamic(
            sparsity=0.5,
            drop_fraction=DropFraction(floor=0.1),
            semantics=Semantics(regrow="return", rounding=rounding),
            interval=1,
        )
        for rounding in ("ceil", "nearest")
    ]
    return (
        *grown,
        *rounded,
        *(GradualPruning(sparsity=0.5, interval=1, scope=scope) for scope in ("layer", "global")),
    )


def exact(criteria: Mapping[str, type[Criterion]]) -> list[Any]:
    """Return the criteria that every backend computes to the same bits, with their defaults."""
    return [criterion.model_validate({}) for criterion in criteria.values() if criterion.exact]


def check_update(
    arrays: Arrays,
    topology: DeclaredTopology,
    layers: Sequence[Layer],
    *,
    put: Callable[[NDArray[Any]], Array],
    get: Callable[[Array], NDArray[Any]],
    step: int = 1,
    total_steps: int = 4,
    seed: int = 0,
) -> None:
    """Compare one update on a backend's arrays with NumPy's.

    Args:
        arrays: array functions of the backend.
        topology: of the update.
        layers: NumPy arrays.
        put: NumPy array → the backend's array.
        get: the backend's array → NumPy array.
        step: number of optimiser steps taken.
        total_steps: of the whole training.
        seed: of the run's randomness.

    Raises:
        AssertionError: the selections differ in any position.
    """
    targets = {layer.name: layer.active.size // 2 for layer in layers}
    theirs = [
        Layer(
            name=layer.name,
            weights=put(layer.weights),
            gradients=None if layer.gradients is None else put(layer.gradients),
            active=put(layer.active),
        )
        for layer in layers
    ]
    wanted = update(
        topology, layers, Moment(step, Random(seed), NUMPY), total_steps=total_steps, targets=targets
    )
    found = update(
        topology, theirs, Moment(step, Random(seed), arrays), total_steps=total_steps, targets=targets
    )
    np.testing.assert_equal(sorted(found), sorted(wanted))
    for name, swap in wanted.items():
        np.testing.assert_array_equal(get(found[name].pruned), swap.pruned, f"{name}: pruned")
        np.testing.assert_array_equal(get(found[name].grown), swap.grown, f"{name}: grown")
        np.testing.assert_equal(found[name].returned, swap.returned, f"{name}: returned")
