"""State of a training in PyTorch: all values that its next step reads, as arrays and JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from nt_torch.network.execution import Execution
from nt_torch.network.model import Ensemble
from nt_torch.network.parts import present_name
from nt_torch.processes.group import from_main
from nt_torch.processes.shards import like
from nt_torch.topology.topology import Topology
from nt_torch.training.fsdp import without_shards, write_parts


def content(accelerator: Accelerator, topology: Topology, new_parts: Callable[[], Path]) -> dict[str, Any]:
    """Return model, optimiser, topology, loss scale and random numbers between two steps.

    Args:
        accelerator: of the training.
        topology: of the training.
        new_parts: makes, in the first process, the folder into which each process writes its part of sharded
            tensors.
    """
    scaler = accelerator.scaler
    sharded: dict[str, Tensor] = {}
    found = without_shards(
        {
            "model": topology.model.state_dict(),
            "optimizer": topology.optimizer.state_dict(),
            "topology": topology.state_dict(),
        },
        sharded,
    )
    if sharded:
        write_parts(from_main(new_parts), sharded)
    return {
        **_to_numpy(found),
        "scaler": None if scaler is None else scaler.state_dict(),
        "random": gather_object([_to_numpy(_random())]),
    }


def begun(wanted: Execution | None, found: Mapping[str, Any] | None) -> Execution:
    """Return the execution options of a training: the wanted options, completed from its state.

    Args:
        wanted: the wanted options; None: the options of the state.
        found: the state from which the training resumes, if any.
    """
    before = None if found is None else Execution(**found.get("execution", {}))
    if wanted is None or (wanted.heads == "auto" and before is not None):
        before = before or Execution()
        return before if wanted is None else wanted.replace(heads=before.heads)
    return wanted


def restore_model(found: Mapping[str, Any], model: Ensemble) -> None:
    """Restore weights, masks and statistics; whole tensors are sharded like the model."""
    own = model.state_dict()
    saved = {present_name(name): value for name, value in _to_torch(found["model"]).items()}
    model.load_state_dict({name: like(own[name], value) for name, value in saved.items()})


def restore_state(found: Mapping[str, Any], accelerator: Accelerator, topology: Topology) -> None:
    """Restore optimiser, topology and loss scale."""
    _restore_optimizer(topology.optimizer, _to_torch(found["optimizer"]))
    topology.load_state_dict(_to_torch(found["topology"]))
    if accelerator.scaler is not None and found["scaler"] is not None:
        accelerator.scaler.load_state_dict(found["scaler"])


def restore_random(found: Mapping[str, Any], rank: int) -> None:
    """Restore PyTorch's random generators of this process; a process without saved ones keeps its own."""
    if rank >= len(found["random"]):
        return
    states = _to_torch(found["random"][rank])
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _random() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_optimizer(optimizer: torch.optim.Optimizer, found: dict[str, Any]) -> None:
    """Load an optimiser's state in its weights' memory formats, because the order of sums depends on them."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {}
    for key, kept in found["state"].items():
        parameter = parameters[int(key)]
        state[int(key)] = {
            name: torch.empty_like(parameter, dtype=value.dtype).copy_(like(parameter, value))
            if isinstance(value, Tensor) and value.shape == parameter.shape
            else value
            for name, value in kept.items()
        }
    optimizer.load_state_dict({"state": state, "param_groups": found["param_groups"]})


def _to_numpy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, Mapping):
        return {key: _to_numpy(inner) for key, inner in value.items()}
    return [_to_numpy(inner) for inner in value] if isinstance(value, list | tuple) else value


def _to_torch(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    if isinstance(value, Mapping):
        return {key: _to_torch(inner) for key, inner in value.items()}
    return [_to_torch(inner) for inner in value] if isinstance(value, list) else value
