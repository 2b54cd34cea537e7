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


def trained(spec, wrap, execution=EXECUTIONS["loop"], autocast=False):
    """Ten steps, with an update after every other; the loss is in the graph."""
    model = nt_torch.compile(spec)
    model.execution = execution

    def loss_of(x, y):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(x)
        return nt_torch.ensemble_loss(logits.float(), y)

    called = wrap(loss_of)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    topology = nt_torch.Topology(model, optimizer, total_steps=100)
    draw, updates = torch.Generator().manual_seed(0), 0
    for _ in range(10):
        x = torch.randn(8, *spec.layout.input_shape, generator=draw)
        y = torch.randint(0, 3, (8,), generator=draw)
        called(x, y).backward()
        optimizer.step()
        updates += topology.step() is not None
        optimizer.zero_grad()
        for name in model.masked:
            assert not model.array(name)[~model.mask(name)].any()
    assert updates == 5
    return nt_torch.checkpoint(model)


@pytest.mark.parametrize(
    ("graph", "preset", "execution"),
    [
        *itertools.product(GRAPHS, ["neurotrails", "rigl"], ["loop"]),
        *itertools.product(GRAPHS, ["neurotrails"], ["batched"]),
        ("wide_resnet", "neurotrails", "loop again"),
        ("wide_resnet", "neurotrails", "batched again"),
    ],
)
def test_it_compiles_once_and_gives_the_same(graph, preset, execution):
    torch._dynamo.reset()
    spec, counter = spec_of(graph, preset), CompileCounterWithBackend("aot_eager")
    compiled = functools.partial(torch.compile, backend=counter, fullgraph=True)
    found = trained(spec, compiled, EXECUTIONS[execution])
    assert counter.frame_count == 1
    wanted = trained(spec, lambda run: run)
    assert found.masks == wanted.masks
    for name, value in wanted.values.items():
        np.testing.assert_allclose(found.values[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("execution", ["loop", "batched"])
def test_under_autocast_too(execution):
    torch._dynamo.reset()
    spec, counter = spec_of("wide_resnet", "neurotrails"), CompileCounterWithBackend("aot_eager")
    compiled = functools.partial(torch.compile, backend=counter, fullgraph=True)
    found = trained(spec, compiled, EXECUTIONS[execution], autocast=True)
    assert counter.frame_count == 1
    wanted = trained(spec, lambda run: run, autocast=True)
    for name, mask in wanted.masks.items():
        assert found.masks[name].count == mask.count
