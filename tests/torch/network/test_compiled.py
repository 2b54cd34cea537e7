"""``torch.compile``: one graph for the whole model, which a topology update does not compile again."""

import functools
import itertools

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import nt_models
import nt_torch
from nt_core import PRESETS
from nt_torch import Execution

GRAPHS = {
    "mlp": nt_models.mlp(inputs=6, hidden=(16, 16), classes=3),
    "wide_resnet": nt_models.wide_resnet(depth=10, width=1, classes=3, size=8, channels=1),
    "vit": nt_models.vit(size=8, channels=1, patch=4, width=8, hidden=16, blocks=2, heads=2, classes=3),
}


EXECUTIONS = {
    "loop": Execution(),
    "batched": Execution(heads="batched"),
    "loop again": Execution(activation_checkpointing=True),
    "batched again": Execution(heads="batched", activation_checkpointing=True),
}


def spec_of(graph, preset):
    spec = PRESETS[preset](GRAPHS[graph])
    return spec.replace(topology=spec.topology.replace(interval=2, sparsity=0.5))


def trained(spec, wrap, execution=EXECUTIONS["loop"], autocast=False, dtype=torch.float32):
    """Ten steps, with an update after every other; the loss is in the graph."""
    model = nt_torch.compile(spec, dtype=dtype)
    model.execution = execution

    def loss_of(x, y):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(x)
        return nt_torch.ensemble_loss(logits.float() if autocast else logits, y)

    called = wrap(loss_of)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    topology = nt_torch.Topology(model, optimizer, total_steps=100)
    draw, updates = torch.Generator().manual_seed(0), 0
    for _ in range(10):
        x = torch.randn(8, *spec.layout.input_shape, generator=draw).to(dtype)
        y = torch.randint(0, 3, (8,), generator=draw)
        called(x, y).backward()
        optimizer.step()
        updates += topology.step() is not None
        optimizer.zero_grad()
        for name in model.masked:
            assert not model.array(name)[~model.mask(name)].any()
    assert updates == 5
    return nt_torch.checkpoint(model)


CASES = [
    *itertools.product(GRAPHS, ["neurotrails", "rigl"], ["loop"]),
    *itertools.product(GRAPHS, ["neurotrails"], ["batched"]),
    ("wide_resnet", "neurotrails", "loop again"),
    ("wide_resnet", "neurotrails", "batched again"),
]


@pytest.mark.parametrize(("graph", "preset", "execution"), CASES)
def test_it_compiles_once_and_gives_the_same(graph, preset, execution):
    found, frames = compiled(graph, preset, execution, torch.float64)
    wanted = trained(spec_of(graph, preset), lambda run: run, dtype=torch.float64)
    assert frames == 1
    assert found.masks == wanted.masks
    for name, value in wanted.values.items():
        np.testing.assert_allclose(found.values[name], value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("graph", "preset", "execution"), CASES)
def test_in_single_precision_rounding_decides_between_near_ties_alone(graph, preset, execution):
    found, frames = compiled(graph, preset, execution, torch.float32)
    wanted = trained(spec_of(graph, preset), lambda run: run)
    assert frames == 1
    different = 0
    for name, mask in wanted.masks.items():
        assert found.masks[name].count == mask.count
        both = found.masks[name].dense() & mask.dense()
        different += mask.count - both.sum()
        np.testing.assert_allclose(found.values[name][both], wanted.values[name][both], rtol=1e-3, atol=1e-4)
    assert different <= 0.001 * sum(mask.count for mask in wanted.masks.values())


def compiled(graph, preset, execution, dtype):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    wrap = functools.partial(torch.compile, backend=counter, fullgraph=True)
    return trained(spec_of(graph, preset), wrap, EXECUTIONS[execution], dtype=dtype), counter.frame_count


@pytest.mark.parametrize("execution", ["loop", "batched"])
def test_under_autocast_too(execution):
    torch._dynamo.reset()
    spec, counter = spec_of("wide_resnet", "neurotrails"), CompileCounterWithBackend("aot_eager")
    wrap = functools.partial(torch.compile, backend=counter, fullgraph=True)
    found = trained(spec, wrap, EXECUTIONS[execution], autocast=True)
    assert counter.frame_count == 1
    wanted = trained(spec, lambda run: run, autocast=True)
    for name, mask in wanted.masks.items():
        assert found.masks[name].count == mask.count
