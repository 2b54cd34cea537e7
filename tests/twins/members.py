"""Members that share kernels: training, and what fission divides."""

import numpy as np
import pytest
from small import GRAPH

from nt_core import MIMO, PRESETS, BatchEnsemble, DataError, EnsembleSpec, Fission, OneRun, Static
from nt_core.testing import Blobs
from nt_core.topology import PruneAtInit
from nt_core.training import SGD, Training

SHARING = {
    "batch_ensemble": EnsembleSpec(graph=GRAPH, structure=BatchEnsemble(count=3)),
    "tiled": EnsembleSpec(graph=GRAPH, structure=BatchEnsemble(count=3, batch="tile")),
    "mimo": EnsembleSpec(graph=GRAPH, structure=MIMO(count=2, repetitions=2, rho=0.5)),
    "fission": EnsembleSpec(graph=GRAPH, structure=Fission(count=2), topology=Static(sparsity=0.3)),
}


@pytest.mark.parametrize("name", SHARING)
def test_trains_with_accumulation_and_a_last_short_batch(backend, name):
    spec = SHARING[name].replace(plan=OneRun(epochs=12))
    recipe = Training(batch_size=24, accumulation=2, optimizer=SGD(lr=0.03))
    trained = backend.train(spec, recipe, Blobs(100), test=Blobs(60, shuffle=False))
    assert (trained.steps, trained.examples) == (60, 1200)
    assert trained.metrics.accuracy > 0.8


def test_a_batch_size_that_cannot_be_divided_is_an_error_before_training(backend):
    with pytest.raises(DataError, match="expected a multiple of 3, 30 or 33 say"):
        backend.train(
            SHARING["batch_ensemble"].replace(plan=OneRun(epochs=1)), Training(batch_size=32), Blobs()
        )


def test_fission_divides_what_snip_keeps_of_the_single_network(backend):
    x, y = Blobs(40).inputs, Blobs(40).labels
    single = backend.compile(EnsembleSpec(graph=GRAPH, topology=PruneAtInit(sparsity=0.5)), seed=2)
    model = backend.compile(PRESETS["fission"](GRAPH), seed=2)
    backend.prune_at_init(single, x, y)
    backend.prune_at_init(model, x, y, seed=2)
    whole, divided = backend.checkpoint(single), backend.checkpoint(model)
    masks, values = {}, {}
    for name, mask in divided.masks.items():
        own, source = mask.dense(), model.spec.layout.source(name)
        assert not (masks.get(source, False) & own).any()
        masks[source] = masks.get(source, False) | own
        values[source] = values.get(source, 0) + divided.values[name]
    for name, mask in whole.masks.items():
        np.testing.assert_array_equal(masks[name], mask.dense())
        np.testing.assert_array_equal(values[name], whole.values[name])
    assert sum(int(mask.sum()) for mask in masks.values()) == sum(model.spec.counts.values())
