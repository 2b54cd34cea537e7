"""Transforms of torch.func on a model and its loss."""

import pytest
import torch
from torch.func import functional_call, grad, vmap

import nt_models
import nt_torch
from nt_core import DataError, EnsembleSpec, MultiHead
from nt_core.structure import MIMO, BatchEnsemble

GRAPH = nt_models.mlp(inputs=6, hidden=(5, 4), classes=3, norm=True)
STRUCTURES = [MultiHead(split=1, heads=2), BatchEnsemble(count=2), MIMO(count=2)]


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 6, generator=generator), torch.tensor([0, 2, 1, 2])


@pytest.mark.parametrize(
    ("structure", "heads"),
    [(STRUCTURES[0], "batched"), *((structure, "loop") for structure in STRUCTURES)],
    ids=lambda value: getattr(value, "kind", value),
)
def test_vmap_gives_each_examples_gradient(structure, heads):
    model = nt_torch.compile(EnsembleSpec(graph=GRAPH, structure=structure)).eval()
    model.execution = nt_torch.Execution(heads=heads)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values, x, y):
        logits = functional_call(model, values, (x[None],))
        return nt_torch.ensemble_loss(logits, y[None], model.spec)

    x, y = batch()
    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    for number in range(len(x)):
        model.zero_grad()
        model.loss(x[number, None], y[number, None]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][number], parameter.grad, rtol=1e-4, atol=1e-6)


def test_vmap_of_the_loss_is_the_loss_of_each_batch():
    model = nt_torch.compile(EnsembleSpec(graph=GRAPH, structure=STRUCTURES[0])).eval()
    x, y = batch()
    found = vmap(model.loss)(torch.stack([x, -x]), torch.stack([y, y.flip(0)]))
    torch.testing.assert_close(found, torch.stack([model.loss(x, y), model.loss(-x, y.flip(0))]))
    with pytest.raises(DataError, match=r"expected classes from 0 to 2, or -100 to be ignored, found 3 to 3"):
        model.loss(x, torch.tensor([0, 1, 2, 3]))
