"""Sparse training with fixed masks as a person would write it: mask the gradient, step, mask the weight."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import nt_models
import nt_torch
from nt_core import EnsembleSpec, MultiHead, Static
from nt_torch.topology.state import leaves

STEPS = 12
SPEC = EnsembleSpec(
    graph=nt_models.mlp(inputs=16, hidden=(16, 12), classes=4),
    structure=MultiHead(split=1, heads=2),
    topology=Static(sparsity=0.7),
)
"""A network with a square weight, a tall and a wide one."""

Make = Callable[[nn.Module], Any]


def trajectories(make: Make, *, closure: bool = False) -> tuple[nn.Module, nn.Module]:
    """Train one model under a Topology and one by hand, from equal values, and return both."""
    ours = nt_torch.compile(SPEC, seed=3)
    theirs = copy.deepcopy(ours)
    for model, by_hand in ((ours, False), (theirs, True)):
        torch.manual_seed(0)
        optimizer = make(model)
        if hasattr(optimizer, "train"):
            optimizer.train()
        masks = [(model.stored(name), model.mask(name)) for name in model.masked]
        topology = None if by_hand else nt_torch.Topology(model, optimizer, total_steps=STEPS)
        for number in range(STEPS):
            run = _closure(model, optimizer, number, masks if by_hand else [])
            if closure:
                optimizer.step(run)
            else:
                run()
                optimizer.step()
            for weight, mask in masks if by_hand else []:
                weight.data.mul_(mask)
            if topology is not None:
                topology.step()
                assert topology.steps == number + 1
    return ours, theirs


def _closure(model, optimizer, number, masks):
    generator = torch.Generator().manual_seed(number)
    x, y = torch.randn(24, 16, generator=generator), torch.randint(4, (24,), generator=generator)

    def run():
        optimizer.zero_grad()
        loss = nt_torch.ensemble_loss(model(x), y, model.spec)
        loss.backward()
        for weight, mask in masks:
            weight.grad.mul_(mask)
        return loss

    return run


def expect_equal(make: Make, *, closure: bool = False, tolerance: float = 0.0) -> None:
    """Check that training under a Topology gives the weights of training by hand, and moves them."""
    ours, theirs = trajectories(make, closure=closure)
    start = nt_torch.compile(SPEC, seed=3)
    for name in ours.masked:
        a, b, mask = ours.stored(name), theirs.stored(name), ours.mask(name)
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )
        assert not a[~mask].any()
        assert a.isfinite().all()
    assert any(not torch.equal(ours.stored(name), start.stored(name)) for name in ours.masked)


def expect_elementwise(make: Callable[[list[nn.Parameter]], Any], names: str) -> None:
    """Check that state is permuted as the elements of weight and gradients are.

    Args:
        make: optimiser of one parameter.
        names: the state's, as in ``nt_torch.topology.state.KNOWN``.
    """
    generator = torch.Generator().manual_seed(0)
    value, *gradients = torch.randn(5, 6, 6, generator=generator)
    order = torch.randperm(value.numel(), generator=generator)
    states = []
    for shuffled in (False, True):
        torch.manual_seed(0)
        weight = nn.Parameter(value.reshape(-1)[order].view(6, 6) if shuffled else value.clone())
        optimizer = make([weight])
        if hasattr(optimizer, "train"):
            optimizer.train()
        for gradient in gradients:
            weight.grad = gradient.reshape(-1)[order].view(6, 6) if shuffled else gradient.clone()
            optimizer.step()
        states.append(dict(leaves(optimizer.state[weight])))
    found = {each.partition("=")[0] for each in names.split()} & set(states[0])
    for key in found:
        torch.testing.assert_close(states[0][key].reshape(-1)[order], states[1][key].reshape(-1))
