"""Weights that something computes at each use: refused by name, wherever their own values are needed."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import nt_models
import nt_torch
from nt_core import PRESETS, TopologyError

GRAPH = nt_models.mlp(inputs=6, hidden=(5, 4), classes=3)
NAME = "head1/hidden2/linear1.weight"


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def old_weight_norm(module):
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(module)


CHANGES = {
    "_WeightNorm": parametrizations.weight_norm,
    "_SpectralNorm": parametrizations.spectral_norm,
    "WeightNorm": old_weight_norm,
    "SpectralNorm": nn.utils.spectral_norm,
    "L1Unstructured": lambda module: prune.l1_unstructured(module, "weight", 0.5),
    "Doubled": lambda module: parametrize.register_parametrization(module, "weight", Doubled()),
}


@pytest.fixture
def model():
    return nt_torch.compile(PRESETS["neurotrails"](GRAPH, sparsity=0.5))


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def uses(model, folder):
    return {
        "topology": lambda: nt_torch.Topology(model, optimizer_of(model), total_steps=10),
        "checkpoint": lambda: nt_torch.checkpoint(model),
        "save": lambda: nt_torch.save(folder, model),
    }


@pytest.mark.parametrize("maker", CHANGES)
def test_a_computed_weight_is_refused_by_name(model, maker, tmp_path):
    CHANGES[maker](model.owner(NAME))
    for use in uses(model, tmp_path).values():
        with pytest.raises(TopologyError, match=rf"weight '{NAME}': expected a parameter .* by {maker};"):
            use()
    assert not list(tmp_path.iterdir())


def test_one_that_comes_while_training_is_refused_too(model):
    topology = nt_torch.Topology(model, optimizer := optimizer_of(model), total_steps=10)
    model.loss(torch.randn(4, 6), torch.tensor([0, 1, 2, 0])).backward()
    parametrizations.weight_norm(model.owner(NAME))
    with pytest.raises(TopologyError, match="computed by _WeightNorm"):
        optimizer.step(), topology.step()


def test_a_pruned_bias_is_refused(model):
    prune.random_unstructured(model.owner(NAME), "bias", 0.5)
    with pytest.raises(TopologyError, match=r"linear1.bias': .* 'bias' computed by RandomUnstructured"):
        nt_torch.checkpoint(model)


def test_a_mask_that_pruning_deleted_is_missed(model):
    """Its ``remove`` deletes a buffer of the same name."""
    prune.l1_unstructured(model.owner(NAME), "weight", 0.5)
    prune.remove(model.owner(NAME), "weight")
    with pytest.raises(TopologyError, match=f"weight '{NAME}': expected a mask"):
        nt_torch.Topology(model, optimizer_of(model), total_steps=10)
