"""Under every optimiser of PyTorch, fixed masks give the weights of masking weights and gradients by hand."""

import inspect

import pytest
import torch
from by_hand import expect_elementwise, expect_equal

from nt_torch.topology.state import KNOWN

MAKES = {
    "ASGD": lambda p: torch.optim.ASGD(p, lr=1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, weight_decay=1e-2),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "Muon": lambda p: torch.optim.Muon([each for each in p if each.ndim == 2], lr=1e-2),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
}
REFUSES_DENSE = {"SparseAdam"}
"""It takes sparse gradients alone."""


def test_every_optimizer_of_pytorch_is_known():
    found = {
        name
        for name, each in vars(torch.optim).items()
        if inspect.isclass(each) and issubclass(each, torch.optim.Optimizer)
    }
    assert found - {"Optimizer"} - REFUSES_DENSE == set(MAKES) == {*KNOWN["torch"], "LBFGS"}


@pytest.mark.parametrize("name", MAKES)
def test_the_trajectory_is_that_of_masking_by_hand(name):
    expect_equal(lambda model: MAKES[name](model.parameters()), closure=name == "LBFGS")


@pytest.mark.parametrize("name", sorted(set(MAKES) - {"LBFGS", "Adafactor"}))
def test_elementwise_state_is_permuted_with_the_weight(name):
    """Elements of weight and gradient in another order give elementwise state in that order."""
    expect_elementwise(MAKES[name], KNOWN["torch"][name])
