"""Pruning at initialisation, held to the NumPy reference."""

import numpy as np
import pytest

from nt_core import (
    DataError,
    EnsembleSpec,
    Features,
    GraphBuilder,
    Grasp,
    Independent,
    OneRun,
    PruneAtInit,
    Single,
    Snip,
    Static,
    TopologyError,
)
from nt_core.testing import Blobs
from nt_core.testing.saliency import reference_gradients
from nt_core.topology import saliency_masks
from nt_core.training import SGD, Training, first_examples

BOTH = pytest.mark.parametrize("criterion", [Snip(), Grasp()], ids=lambda each: each.kind)


def compiled(backend, case, dtype):
    model = backend.compile(case.spec, dtype=dtype)
    for name, value in case.values.items():
        backend.assign(model, name, value)
    return model


def expect_gradients(backend, model, case, criterion):
    """Return the reference's, which the model's are held to."""
    truth = reference_gradients(case)
    found = backend.saliency_gradients(model, case.inputs, case.labels, criterion)
    for key, array in truth.items():
        np.testing.assert_allclose(found[key], array, rtol=0, atol=1e-5 * np.abs(array).max(), err_msg=key)
    return truth


def expect_masks(backend, model, rounded, case, truth):
    """Those of a model in float64 are the reference's, nearly all those of one in a lower precision too."""
    masks = saliency_masks(case.spec.topology, case.spec.layout, case.values, truth)
    for each in (model, rounded):
        backend.prune_at_init(each, case.inputs, case.labels)
    assert backend.checkpoint(model).masks == masks
    found = backend.checkpoint(rounded).masks
    differ = sum(int((found[key].dense() != mask.dense()).sum()) for key, mask in masks.items())
    assert differ <= 1e-3 * sum(mask.size for mask in masks.values())


@BOTH
def test_training_prunes_by_the_first_examples_and_keeps_the_masks(backend, criterion):
    spec = EnsembleSpec(
        graph=with_dropout(),
        structure=Independent(count=2),
        topology=PruneAtInit(sparsity=0.7, criterion=criterion, scope="layer", examples=50),
        plan=OneRun(epochs=2),
    )
    recipe = Training(batch_size=30, optimizer=SGD(lr=0.05))
    joint, alone = (
        backend.train(each, recipe, Blobs())
        for each in (spec, spec.replace(plan=OneRun(epochs=2, at_once=1)))
    )
    model = backend.compile(spec)
    backend.prune_at_init(model, *first_examples(Blobs(), 50))
    chosen = backend.checkpoint(model).masks
    assert backend.checkpoint(joint.model).masks == chosen
    assert backend.checkpoint(alone.model).masks == chosen
    assert {name: mask.count for name, mask in chosen.items()} == spec.counts


def with_dropout():
    """With dropout, which must not decide which connections are kept."""
    net = GraphBuilder(Features(count=6))
    with net.block("hidden") as b:
        b.out = b.dropout(b.relu(b.linear(b.inp, 16)), 0.5)
    with net.classifier() as b:
        b.out = b.linear(b.inp, 3)
    return net.build()


def test_training_before_data_has_chosen_is_an_error(backend):
    model = backend.compile(EnsembleSpec(graph=with_dropout(), topology=PruneAtInit(sparsity=0.7)))
    with pytest.raises(TopologyError, match="the masks come from data; call prune_at_init"):
        backend.own_loop(model, total_steps=5)
    with pytest.raises(DataError, match="expected examples for the topology prune_at_init"):
        backend.prune_at_init(model, np.zeros((0, 6), np.float32), np.zeros(0, np.int64))
    dense = backend.compile(
        EnsembleSpec(graph=with_dropout(), structure=Single(), topology=Static(sparsity=0.5))
    )
    with pytest.raises(TopologyError, match="expected prune_at_init, found static"):
        backend.prune_at_init(dense, *first_examples(Blobs(), 5))
