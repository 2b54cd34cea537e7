"""Sharded training: division of a model's weights among processes, which write their own parts of states.

Parts are written by ``torch.distributed.checkpoint`` as safetensors, and read by any number of processes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, distributed, nn

from nt_core.errors import DataError
from nt_core.spec import EnsembleSpec
from nt_core.training import Training
from nt_torch.network.model import Ensemble
from nt_torch.network.parts import PartModule
from nt_torch.processes.shards import is_sharded
from nt_torch.topology.masked import masked_weights

_SHARDED: Final = "$sharded"


def shard(
    model: Ensemble, mesh: Any = None, *, units: Literal["parts", "blocks"] = "parts", **options: Any
) -> Ensemble:
    """Divide a model's weights among processes (FSDP2).

    Make the optimiser and ``nt_torch.Topology`` afterwards. Masks and the optimiser's state are sharded like
    the weights; ``nt_torch.checkpoint`` gathers them.

    Args:
        model: the same in every process.
        mesh: of one dimension, ``torch.distributed.device_mesh.init_device_mesh``; None: all processes.
        units: unit that a process gathers for its computation: a part (the backbone or a head), or a block of
            it, which needs less memory and more messages.
        options: of ``torch.distributed.fsdp.fully_shard``, ``mp_policy`` say.

    Returns:
        The same model, whose parameters and masks are now DTensors.

    Raises:
        DataError: no process group is initialised.
    """
    if not distributed.is_initialized():
        raise DataError(
            "shard: expected several processes that can talk, found none; start them with torchrun and call "
            "torch.distributed.init_process_group()"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if mesh is None:
        mesh = init_device_mesh(next(model.parameters()).device.type, (distributed.get_world_size(),))
    for part in filter(None, (model.backbone, *model.heads)):
        for unit in [part] if units == "parts" else _blocks(part):
            fully_shard(unit, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    for masked in masked_weights(model):
        masked.shard_mask()
    return model


def _blocks(part: PartModule) -> list[list[nn.Module]]:
    """Return the modules with weights, for each block of a part."""
    blocks = [[part.ops[step.key] for step, _ in stage.steps] for stage in part.stages]
    owning = [[op for op in block if list(op.parameters())] for block in blocks]
    return [block for block in owning if block]


def expect_divisible(spec: EnsembleSpec, training: Training) -> None:
    """Check that a training can be sharded.

    Raises:
        DataError: the training needs a whole weight, or has an unsupported setting, which the message names.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise DataError("shard: expected several processes, found one; start them with torchrun")
    if spec.topology.examples_needed:
        raise DataError(
            f"shard: topology {spec.topology.kind} is chosen from the gradients of the whole network; train "
            "without --shard"
        )
    if training.precision == "float16":
        raise DataError("shard: float16 needs a loss scale, which is not sharded; use bfloat16 or float32")
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in {"1", "true"}:
        raise DataError("shard: accelerate is set up for FSDP too; leave --use_fsdp out of accelerate launch")


def without_shards(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Return a tree with sharded tensors replaced by names, and put them into ``tensors`` by path."""
    if isinstance(value, Mapping):
        return {key: without_shards(inner, tensors, f"{path}/{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_shards(inner, tensors, f"{path}/{i}") for i, inner in enumerate(value)]
    if not (isinstance(value, Tensor) and is_sharded(value)):
        return value
    tensors[path] = value.detach()
    return {_SHARDED: path, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}


def with_shards(value: Any, folder: Path | None, mesh: Any) -> Any:
    """Return a tree with the tensors that :func:`without_shards` replaced.

    Args:
        value: the tree.
        folder: of the written tensors; None: no tensors were written.
        mesh: over which tensors are sharded; None: tensors are whole.
    """
    if folder is None:
        return value
    tensors: dict[str, Tensor] = {}
    found = _empty(value, tensors, mesh)
    read_parts(folder, tensors)
    return found


def _empty(value: Any, tensors: dict[str, Tensor], mesh: Any) -> Any:
    if isinstance(value, Mapping):
        if _SHARDED not in value:
            return {key: _empty(inner, tensors, mesh) for key, inner in value.items()}
        from torch.distributed.tensor import Shard
        from torch.distributed.tensor import empty as divided

        shape, dtype = tuple(value["shape"]), getattr(torch, value["dtype"])
        tensor: Tensor = (
            torch.empty(shape, dtype=dtype)
            if mesh is None
            else divided(shape, dtype=dtype, device_mesh=mesh, placements=[Shard(0)])
        )
        tensors[value[_SHARDED]] = tensor
        return tensor
    return [_empty(inner, tensors, mesh) for inner in value] if isinstance(value, list) else value


def write_parts(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write each process's part of sharded tensors; all processes must call this, which waits for all."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_parts(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, whole or sharded over any number of processes, with the written values."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads files of many
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
