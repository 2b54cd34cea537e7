"""Training as NeuroTrails' own code does it, against NumPy's steps and updates from the rule's words.

The rule and its source are told in tests/core/topology/test_published.py.
"""

import math

import numpy as np
from small import GRAPH

from nt_core import PRESETS, OneRun, initial_masks, initial_values
from nt_core.reference import value_and_gradients
from nt_core.testing import Blobs
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
