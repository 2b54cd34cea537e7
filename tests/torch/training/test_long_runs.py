"""A training does not grow: ten thousand updates take the memory of a thousand."""

import resource
import tracemalloc
from pathlib import Path

import pytest
import torch

import nt_models
import nt_torch
from nt_core import PRESETS, DropFraction

UPDATES = 10_000
RESIDENT = Path("/proc/self/statm")


def resident_bytes():
    return int(RESIDENT.read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not RESIDENT.exists(), reason="only Linux says how much memory a process holds now")
@pytest.mark.parametrize("preset", ["snfs"])
def test_ten_thousand_updates_take_no_more_memory_than_a_thousand(preset):
    spec = PRESETS[preset](nt_models.mlp(inputs=4, hidden=(6,), classes=3))
    changes = {"interval": 1, "sparsity": 0.5, "drop_fraction": DropFraction()}
    spec = spec.replace(topology=spec.topology.replace(**changes))
    model = nt_torch.compile(spec)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    topology = nt_torch.Topology(model, optimizer, total_steps=UPDATES + 2)
    inputs, labels = torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    updates, held = 0, {}
    for step in range(1, UPDATES + 1):
        nt_torch.ensemble_loss(model(inputs), labels).backward()
        optimizer.step()
        updates += topology.step() is not None
        optimizer.zero_grad()
        if step == 500:
            tracemalloc.start()
        if step in {1000, UPDATES}:
            held[step] = tracemalloc.get_traced_memory()[0], resident_bytes()
            tracemalloc.stop()
        if step == UPDATES - 500:
            tracemalloc.start()
    assert updates > 0.9 * UPDATES
    (traced, resident), (traced_after, resident_after) = held[1000], held[UPDATES]
    assert traced_after < traced + 20_000
    assert resident_after < resident + 3_000_000
