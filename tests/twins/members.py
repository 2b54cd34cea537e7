"""Members that share kernels: training, and what fission divides."""

import numpy as np
import pytest
from scipy.special import log_softmax
from small import GRAPH

from nt_core import (
    MIMO,
    PRESETS,
    BatchEnsemble,
    DataError,
    Dense,
    EnsembleSpec,
    Fission,
    Independent,
    MultiHead,
    OneRun,
    Static,
)
from nt_core.checkpoint import load_checkpoint
from nt_core.testing import Blobs
from nt_core.topology import PruneAtInit
from nt_core.training import SGD, Training

SHARING = {
    "batch_ensemble": EnsembleSpec(graph=GRAPH, structure=BatchEnsemble(count=3)),
    "tiled": EnsembleSpec(graph=GRAPH, structure=BatchEnsemble(count=3, batch="tile")),
    "mimo": EnsembleSpec(graph=GRAPH, structure=MIMO(count=2, repetitions=2, rho=0.5)),
    "fission": EnsembleSpec(graph=GRAPH, structure=Fission(count=2), topology=Static(sparsity=0.3)),
}


OWN_LOOPS = {
    **SHARING,
    "independent": EnsembleSpec(graph=GRAPH, structure=Independent(count=3)),
    "heads": EnsembleSpec(graph=GRAPH, structure=MultiHead(split=1, heads=3)),
    "heads summed": EnsembleSpec(graph=GRAPH, structure=MultiHead(split=1, heads=3), loss="sum"),
    "plain fission": EnsembleSpec(
        graph=GRAPH, structure=Fission(count=2, temperature=None), topology=Static(sparsity=0.3)
    ),
}
SUMMED = {"independent", "mimo", "fission", "plain fission", "heads summed"}


@pytest.mark.parametrize("name", OWN_LOOPS)
def test_the_loss_in_a_loop_of_ones_own_is_the_spec_s(backend, name):
    spec, data = OWN_LOOPS[name], Blobs(12)
    x, y = data.inputs.astype(np.float32), data.labels
    model = backend.compile(spec, seed=1)
    logits = log_softmax(backend.predict(model, x).astype(np.float64), axis=-1)
    each = -logits[:, np.arange(len(y)), y].mean(axis=1)
    if (t := spec.distillation) is not None:
        students = log_softmax(backend.predict(model, x).astype(np.float64) / t, axis=-1)
        teacher = log_softmax(backend.predict(model, x).astype(np.float64).mean(axis=0) / t, axis=-1)
        each = each + t**2 * (np.exp(teacher) * (teacher - students)).sum(axis=-1).mean(axis=1)
    wanted = each.sum() if name in SUMMED else each.mean()
    np.testing.assert_allclose(backend.own_loss(model, x, y), wanted, rtol=1e-5)


def test_density_is_that_of_the_weights_that_can_be_masked(backend):
    spec = EnsembleSpec(graph=GRAPH, topology=Static(sparsity=0.75))
    sizes = [placed.weight.size for placed in spec.layout.sparsifiable]
    assert backend.compile(spec).density == sum(spec.counts.values()) / sum(sizes)
    assert backend.compile(spec.replace(topology=Dense())).density == 1.0


def test_a_saved_model_loads(backend, tmp_path):
    model = backend.compile(SHARING["fission"], seed=4)
    backend.save(tmp_path / "model", model, record={"steps": 3})
    saved = load_checkpoint(tmp_path / "model")
    assert saved.record == {"steps": 3}
    x = Blobs(5).inputs.astype(np.float32)
    np.testing.assert_array_equal(
        backend.predict(backend.load(tmp_path / "model"), x), backend.predict(model, x)
    )


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
