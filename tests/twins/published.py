"""Training as NeuroTrails' own code does it, against NumPy's steps and updates from the rule's words.

The rule and its source are told in tests/core/topology/test_published.py.
"""

import math

import numpy as np
from small import GRAPH

from nt_core import (
    PRESETS,
    DropFraction,
    Dynamic,
    EnsembleSpec,
    OneRun,
    Semantics,
    initial_masks,
    initial_values,
)
from nt_core.masks import Moment
from nt_core.policies import AtRandom, Layer, SoftMagnitude
from nt_core.random import Random
from nt_core.reference import value_and_gradients
from nt_core.testing import Blobs
from nt_core.topology import update
from nt_core.training import SGD, LearningRate, Training

STEPS, INTERVAL, LR, MOMENTUM = 9, 3, 0.1, 0.9


def told(spec, seed):
    """Return values and masks after the training, and how many connections came back with their values."""
    values = {name: value.astype(np.float64) for name, value in initial_values(spec.layout, seed)}
    masks = {name: mask.dense() for name, mask in initial_masks(spec.topology, spec.layout, seed)}
    momentum = {name: np.zeros(value.shape) for name, value in values.items()}
    returned = 0
    batches = Blobs().epoch(1, 10)
    for step in range(1, STEPS + 1):
        for name, mask in masks.items():
            values[name] *= mask
        gradients = gradients_of(spec, values, *next(batches))
        for name, gradient in gradients.items():
            momentum[name] = MOMENTUM * momentum[name] + gradient * masks.get(name, 1)
            values[name] -= LR * momentum[name]
        if step % INTERVAL == 0:
            fraction = 0.005 + 0.495 * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            for name, mask in masks.items():
                masks[name] = moved(values[name], gradients[name], mask, fraction)
                gone = ~masks[name]
                returned += math.ceil(fraction * mask.sum()) - int((mask & gone).sum())
                values[name][gone] = momentum[name][gone] = 0
    return values, masks, returned


def gradients_of(spec, values, x, y):
    silent = np.zeros((spec.members, len(y), 3))
    logits = value_and_gradients(spec.layout, values, x.astype(np.float64), silent).logits
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    upstream = (share - np.eye(3)[y]) / len(y) / spec.members
    return value_and_gradients(spec.layout, values, x.astype(np.float64), upstream).gradients


def moved(values, gradients, mask, fraction):
    """Return the mask after an update."""
    active = mask.reshape(-1).copy()
    there = np.flatnonzero(active)
    goes = math.ceil(fraction * there.size)
    active[there[np.argsort(abs(values.reshape(-1)[there]), kind="stable")[:goes]]] = False
    free = np.flatnonzero(~active)
    active[free[np.argsort(-abs(gradients.reshape(-1)[free]), kind="stable")[:goes]]] = True
    return active.reshape(mask.shape)


def test_the_published_code_is_followed_step_by_step(backend):
    """Values too: a connection that returns has the value and the momentum that it had."""
    spec = PRESETS["neurotrails_code"](GRAPH, sparsity=0.6).replace(plan=OneRun(steps=STEPS))
    spec = spec.replace(topology=spec.topology.replace(interval=INTERVAL))
    recipe = Training(
        batch_size=10,
        optimizer=SGD(lr=LR, momentum=MOMENTUM, weight_decay=0),
        learning_rate=LearningRate(schedule="constant"),
    )
    found = backend.checkpoint(backend.train(spec, recipe, Blobs(), seed=0).model)
    values, masks, returned = told(spec, 0)
    assert returned > 10
    for name, mask in masks.items():
        np.testing.assert_array_equal(found.masks[name].dense(), mask, err_msg=name)
    for name, value in values.items():
        np.testing.assert_allclose(found.values[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_zeros_are_pruned_by_the_same_chance_in_every_backend(backend):
    """Steps are replaced by updates, so that all grown weights are exactly 0 when the next update chooses."""
    topology = Dynamic(
        sparsity=0.4,
        prune=SoftMagnitude(),
        grow=AtRandom(),
        interval=1,
        drop_fraction=DropFraction(start=0.3, schedule="constant"),
        semantics=Semantics(optimizer_step="replaced"),
    )
    spec = EnsembleSpec(graph=GRAPH, topology=topology, plan=OneRun(steps=4))
    found = backend.checkpoint(backend.train(spec, Training(batch_size=10), Blobs(), seed=3).model)
    masks = {name: mask.dense().reshape(-1) for name, mask in initial_masks(topology, spec.layout, 3)}
    values = {name: value.reshape(-1) for name, value in initial_values(spec.layout, 3) if name in masks}
    for step in (1, 2, 3):
        layers = []
        for name, active in masks.items():
            values[name] *= active
            layers.append(Layer(name=name, weights=values[name], gradients=None, active=active))
        assert step == 1 or any(((each.weights == 0) & each.active).sum() > 10 for each in layers)
        swaps = update(topology, layers, Moment(step, Random(3)), total_steps=4, targets={})
        for name, swap in swaps.items():
            masks[name][swap.pruned], masks[name][swap.grown] = False, True
            values[name][swap.pruned] = 0
    for name, active in masks.items():
        np.testing.assert_array_equal(found.masks[name].dense().reshape(-1), active, err_msg=name)
