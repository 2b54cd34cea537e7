"""Methods beyond RigL in somebody's own loop: what they keep, what they count, what survives a stop."""

import copy

import numpy as np
import pytest
import torch
from published import *  # noqa: F403
from torch import nn

import nt_models
import nt_torch
from nt_core import PRESETS, Dynamic, EnsembleSpec, MultiHead, Single
from nt_core.policies import Momentum
from nt_core.topology.exploration import count_bits

GRAPH = nt_models.mlp(inputs=6, hidden=(12, 8), classes=3)
BETA = 0.75
SNFS = Dynamic(sparsity=0.7, grow=Momentum(beta=BETA), scope="momentum", interval=2, drop_fraction=0.5)


def made(topology=SNFS, *, structure=None, lr=0.1, total=20, seed=0, keys=0):
    spec = EnsembleSpec(graph=GRAPH, structure=structure or Single(), topology=topology)
    model = nt_torch.compile(spec, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return model, optimizer, nt_torch.Topology(model, optimizer, total_steps=total, seed=keys)


def backward(model, number, scaled=lambda loss: loss):
    generator = torch.Generator().manual_seed(number)
    x, y = torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)
    scaled(nt_torch.ensemble_loss(model(x), y)).backward()


def dense_gradients(model, number):
    model.zero_grad()
    backward(model, number)
    found = {name: model.array(name).grad.clone() for name in model.masked}
    model.zero_grad()
    return found


def train(model, optimizer, topology, steps, first=0):
    found = []
    for number in range(first, first + steps):
        optimizer.zero_grad()
        backward(model, number)
        optimizer.step()
        found.append(topology.step())
    return [changed for changed in found if changed is not None]


@pytest.mark.parametrize("clips", [False, True])
def test_momentum_is_the_exponential_mean_of_dense_gradients_counted_once_for_each_step(clips):
    model, optimizer, topology = made(lr=0.0)
    expected = dict.fromkeys(model.masked, 0.0)
    for number in range(3):
        parts = [dense_gradients(model, 2 * number + part) for part in (0, 1)]
        for name in expected:
            expected[name] = BETA * expected[name] + (1 - BETA) * (parts[0][name] + parts[1][name])
        for part in (0, 1):
            backward(model, 2 * number + part)
        if clips:
            topology.mask_gradients()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        if number < 1:  # so that no update changes the masks, and with them the gradients
            topology.step()
        else:
            topology._steppers[0].stepped = False
            topology._gradients.forget()
        optimizer.zero_grad()
    for name, mean in expected.items():
        torch.testing.assert_close(topology._gradients.smoothed[name], mean, rtol=1e-5, atol=1e-8)
        assert (mean[~model.mask(name)] != 0).any()


def test_a_step_that_grad_scaler_skips_does_not_enter_the_momentum():
    model, optimizer, topology = made(SNFS.replace(interval=100), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    expected = dict.fromkeys(model.masked, 0.0)
    for number in range(4):
        overflows = number == 1
        if not overflows:
            dense = dense_gradients(model, number)
            expected = {name: BETA * mean + (1 - BETA) * dense[name] for name, mean in expected.items()}
        optimizer.zero_grad()
        backward(
            model, number, lambda loss, bad=overflows: scaler.scale(loss * float("inf") if bad else loss)
        )
        scaler.unscale_(optimizer)
        topology.mask_gradients()
        scaler.step(optimizer)
        topology.step()
        scaler.update()
    assert topology.steps == 3
    for name, mean in expected.items():
        torch.testing.assert_close(topology._gradients.smoothed[name], mean, rtol=1e-5, atol=1e-8)


def test_momentum_is_kept_only_for_topologies_that_read_it():
    model, optimizer, topology = made(PRESETS["rigl"](GRAPH).topology)
    train(model, optimizer, topology, 3)
    assert topology.state_dict()["momentum"] == {}


@pytest.mark.parametrize("preset", ["snfs", "mest", "deep_r", "cht", "chts"])
def test_totals_are_kept_and_what_is_inactive_is_exactly_zero(preset):
    """The optimiser's own momentum too, SNFS or not."""
    topology = PRESETS[preset](GRAPH, sparsity=0.7).topology.replace(interval=1)
    model, optimizer, updates = made(topology, structure=MultiHead(split=1, heads=2))
    counts = dict(model.spec.counts)
    rate = 0.0
    for number in range(8):
        for changed in train(model, optimizer, updates, 1, first=number):
            assert sum(changed.active.values()) == sum(counts.values())
            assert topology.scope == "momentum" or dict(changed.active) == counts
            assert changed.exploration_rate >= max(rate, 0.3 - 1e-9)
            assert 0 <= changed.head_overlap <= 1
            rate = changed.exploration_rate
        for name in model.masked:
            weight, inactive = model.array(name), ~model.mask(name)
            assert (weight[inactive] == 0).all()
            assert (optimizer.state[weight]["momentum_buffer"][inactive] == 0).all()
    assert rate > 0.3


def test_exploration_is_the_union_of_all_masks_and_survives_a_stop():
    whole = made()
    seen = {name: whole[0].mask(name).clone() for name in whole[0].masked}
    updates = []
    for number in range(6):
        updates += train(*whole, 1, first=number)
        seen = {name: seen[name] | whole[0].mask(name) for name in seen}
    for name, union in seen.items():
        assert updates[-1].explored[name] == union.sum() == count_bits(np.packbits(union.numpy()))
    assert updates[-1].head_overlap is None
    assert "head_overlap" not in updates[-1].to_event()
    half = made()
    train(*half, 3)
    states = copy.deepcopy([part.state_dict() for part in half])
    resumed = made(seed=3)
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    assert train(*resumed, 3, first=3) == updates[1:]
    ours, theirs = resumed[0].state_dict(), whole[0].state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_deep_r_reads_the_signs_that_compile_drew():
    model, optimizer, topology = made(PRESETS["deep_r"](GRAPH, sparsity=0.5).topology, lr=0.0, seed=7, keys=7)
    (changed,) = train(model, optimizer, topology, 1)
    assert sum(changed.pruned.values()) == 0
    weight = model.array("head1/hidden1/linear1.weight")
    with torch.no_grad():
        weight.neg_()
    (changed,) = train(model, optimizer, topology, 1, first=1)
    active, free = int(model.mask("head1/hidden1/linear1.weight").sum()), weight.numel() // 2
    assert changed.pruned["head1/hidden1/linear1.weight"] == min(active, free)
    assert sum(changed.pruned.values()) == min(active, free)
