"""State of a training in Keras: all values that its next step reads, as arrays and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nt_core import CheckpointError
from nt_keras.compile import Ensemble
from nt_keras.engines import engine
from nt_keras.network.kernels import set_masks
from nt_keras.topology.sparse import Sparse, find_sparse


def content(model: Ensemble) -> dict[str, Any]:
    """Return the variables of a compiled model and of its optimiser, between two steps."""
    engine.sync(model)
    return {
        "model": _read(_own(model)),
        "optimizer": _read(model.optimizer.variables),
        "masks": _masks(model),
    }


def restore_model(found: Mapping[str, Any], model: Ensemble) -> None:
    """Restore weights, masks, statistics and the states of random generators."""
    _write(_own(model), found["model"], "the model")


def restore_optimizer(found: Mapping[str, Any], model: Ensemble) -> None:
    """Restore a compiled model's optimiser, with the topology's variables in it."""
    model.build_optimizer()
    _write(model.optimizer.variables, found["optimizer"], "the optimiser")
    if model.masked:
        find_sparse(model.optimizer).load_own_variables(found["masks"])


def _own(model: Ensemble) -> Sequence[Any]:
    metrics = {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in metrics]


def _masks(model: Ensemble) -> dict[str, Any]:
    store: dict[str, Any] = {}
    if model.masked:
        optimizer: Sparse = find_sparse(model.optimizer)
        optimizer.save_own_variables(store)
    return store


def _read(variables: Sequence[Any]) -> list[Any]:
    return [engine.to_numpy(variable).copy() for variable in variables]


def _write(variables: Sequence[Any], values: Sequence[Any], what: str) -> None:
    shapes = [tuple(variable.shape) for variable in variables]
    found = [tuple(value.shape) for value in values]
    if shapes != found:
        raise CheckpointError(
            f"state: expected {len(shapes)} variables of {what}, found {len(found)}, or of other shapes; "
            "go on with the version of Keras that it was saved with"
        )
    set_masks(variables, values)  # which decide what stays
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
