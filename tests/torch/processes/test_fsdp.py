"""FSDP2: weights, masks and optimiser state are sharded, and masks are those of one process."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter, load, save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import nt_models
import nt_torch
from nt_core import PRESETS
from nt_core.testing.data import Blobs
from nt_core.testing.resumption import expect_same

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import in_processes

GRAPHS = {
    "mlp": nt_models.mlp(inputs=6, hidden=(17, 16), classes=3),  # rows that do not divide evenly
    "llama": nt_models.llama(blocks=2, width=8, hidden=12, heads=2, vocabulary=5, length=6),
}


def spec_of(preset, graph):
    spec = PRESETS[preset](GRAPHS[graph])
    changes = {"interval": 2, "sparsity": min(spec.topology.sparsity, 0.6)}
    if preset == "gradual_pruning" and graph == "mlp":
        changes["scope"] = "layer"
    return spec.replace(topology=spec.topology.replace(**changes))


def batches(graph, rank, world):
    for epoch in range(6 if graph == "mlp" else 3):  # sums over processes take their time
        for inputs, labels in Blobs(96).epoch(epoch, 24):
            own = np.arange(24).reshape(world, -1)[rank]
            if graph == "llama":
                tokens = torch.from_numpy(labels[own][:, None] + np.arange(7)) % 5
                yield tokens[:, :-1], tokens[:, 1:]
            else:
                yield torch.from_numpy(inputs[own]).double(), torch.from_numpy(labels[own])


def own_loop(rank, preset, graph, world, units="parts"):
    """A user's own loop, in double precision; returns every mask after each update, and what was reported."""
    model = nt_torch.compile(spec_of(preset, graph), dtype=torch.float64)
    if world > 1:
        torch.distributed.init_process_group("gloo")
        nt_torch.shard(model, units=units)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    topology = nt_torch.Topology(model, optimizer, total_steps=40)
    masks, reports = [], []
    for x, y in batches(graph, rank, world):
        nt_torch.ensemble_loss(model(x), y).backward()
        optimizer.step()
        changed = topology.step()
        optimizer.zero_grad()
        if changed is None:
            continue
        found = {name: model.mask(name) for name in model.masked}
        if world > 1:
            assert all(isinstance(mask, DTensor) for mask in found.values())
            assert all(mask.to_local().shape[0] <= -(-mask.shape[0] // world) for mask in found.values())
            found = {name: mask.full_tensor() for name, mask in found.items()}
        masks.append({name: mask.numpy().copy() for name, mask in found.items()})
        reports.append({**changed.to_event(), "head_overlap": None, "density": topology.density})
    for name in model.masked:
        weight, mask = model.array(name), model.mask(name)
        for tensor in (weight.detach(), *optimizer.state[weight].values()):
            if tensor.shape == weight.shape:
                inactive = ~(mask.full_tensor() if world > 1 else mask)
                whole = tensor.full_tensor() if world > 1 else tensor
                assert not whole[inactive].any()
    saved = nt_torch.checkpoint(model)
    return masks, reports, dict(saved.values), {name: mask.dense() for name, mask in saved.masks.items()}


@pytest.mark.parametrize(
    ("preset", "graph", "world", "units"),
    [("rigl", "mlp", 3, "parts"), ("set", "mlp", 3, "parts"), ("neurotrails", "mlp", 2, "parts"),
     ("mest", "mlp", 3, "parts"), ("gradual_pruning", "mlp", 2, "parts"), ("rigl", "llama", 2, "parts"),
     ("neurotrails_lm", "llama", 2, "blocks")],
)  # fmt: skip
def test_masks_are_those_of_one_process_with_the_whole(preset, graph, world, units):
    alone, reports, values, masks = own_loop(0, preset, graph, 1)
    assert len(alone) >= 5
    for answer, error in in_processes(world, own_loop, preset, graph, world, units):
        assert error is None
        expect_same(answer[0], alone)
        expect_same(answer[1], reports)
        expect_same(answer[3], masks)
        for name, value in values.items():
            np.testing.assert_allclose(answer[2][name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("preset", "graph"), [("cht", "mlp"), ("snfs", "mlp"), ("gradual_pruning", "llama")])
def test_what_reads_more_than_a_part_is_refused(preset, graph):
    for _, error in in_processes(2, own_loop, preset, graph, 2):
        assert "weights are sharded, but" in error


def half_sharded(rank):
    torch.distributed.init_process_group("gloo")
    model = nt_torch.compile(spec_of("rigl", "mlp"))
    fully_shard(model.owner(model.masked[0]), mesh=init_device_mesh("cpu", (2,)))
    nt_torch.Topology(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=10)


def computed(rank, heads):
    torch.distributed.init_process_group("gloo")
    model = nt_torch.compile(spec_of("neurotrails", "mlp"), dtype=torch.float64)
    model.execution = nt_torch.Execution(heads=heads, activation_checkpointing=True)
    mesh = init_device_mesh("cpu", (2,))
    for part in (model.backbone, *model.heads, model):
        fully_shard(part, mesh=mesh)
    x, y = next(batches("mlp", 0, 1))
    nt_torch.ensemble_loss(model(x), y).backward()
    return [parameter.grad.full_tensor().numpy() for parameter in model.parameters()]


def test_sharded_blocks_are_computed_again_one_head_after_another():
    """Batched heads would need whole weights: FSDP2's hooks are on each block, so blocks are called."""
    whole = nt_torch.compile(spec_of("neurotrails", "mlp"), dtype=torch.float64)
    x, y = next(batches("mlp", 0, 1))
    nt_torch.ensemble_loss(whole(x), y).backward()
    for heads in ("loop", "batched"):
        for found, error in in_processes(2, computed, heads):
            assert error is None
            for own, parameter in zip(found, whole.parameters(), strict=True):
                np.testing.assert_allclose(own, parameter.grad.numpy(), rtol=1e-9, atol=1e-11)


def test_a_model_that_is_sharded_in_part_is_refused():
    for _, error in in_processes(2, half_sharded):
        assert "masked weights are sharded; expected all or none" in error


def halfway(rank, folder):
    """Train half way, write what a user's own loop has, sharded; return the masks at the end."""
    torch.distributed.init_process_group("gloo")
    parts = own_parts()
    for number, (x, y) in enumerate(batches("mlp", rank, torch.distributed.get_world_size())):
        if number == 7:
            save(
                tensors_of(parts), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True)
            )
        own_step(parts, x, y)
    return nt_torch.checkpoint(parts[0]).values, nt_torch.checkpoint(parts[0]).masks


def second_half(rank, folder):
    """Go on from what other processes wrote."""
    torch.distributed.init_process_group("gloo")
    every = list(batches("mlp", rank, torch.distributed.get_world_size()))
    model, _, topology = parts = own_parts()
    for x, y in every[:2]:
        own_step(parts, x, y)  # so that there is a state to be read into
    found = tensors_of(parts)
    load(found, storage_reader=HuggingFaceStorageReader(str(folder)))
    model.load_state_dict({name.removeprefix("model."): t for name, t in found.items() if "model." in name})
    topology.load_state_dict(
        {**topology.state_dict(), "steps": 7,
         "seen": {name.removeprefix("seen."): t for name, t in found.items() if name.startswith("seen.")}}
    )  # fmt: skip
    for x, y in every[7:]:
        own_step(parts, x, y)
    return nt_torch.checkpoint(model).values, nt_torch.checkpoint(model).masks


def own_parts():
    model = nt_torch.shard(nt_torch.compile(spec_of("neurotrails", "mlp"), dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model, optimizer, nt_torch.Topology(model, optimizer, total_steps=40)


def own_step(parts, x, y):
    model, optimizer, topology = parts
    nt_torch.ensemble_loss(model(x), y).backward()
    optimizer.step()
    topology.step()
    optimizer.zero_grad()


def tensors_of(parts):
    """All that is sharded, by name: weights, masks, momentum, what was seen."""
    model, optimizer, topology = parts
    momentum = {
        name: optimizer.state[parameter]["momentum_buffer"] for name, parameter in model.named_parameters()
    }
    return {
        **{f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        **{f"momentum.{name}": tensor for name, tensor in momentum.items()},
        **{f"seen.{name}": tensor for name, tensor in topology.state_dict()["seen"].items()},
    }


def test_state_dicts_are_saved_sharded_and_read_by_any_number_of_processes(tmp_path):
    (values, masks), error = in_processes(2, halfway, tmp_path)[0]
    assert error is None
    for (found, changed), error in in_processes(3, second_half, tmp_path):
        assert error is None
        assert changed == masks
        for name, value in values.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12)
