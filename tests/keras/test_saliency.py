"""Pruning at initialisation in Keras, on the engine in use, held to the NumPy reference."""

import numpy as np
import pytest

import nt_keras
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
from nt_core.saliency import first_examples, saliency_masks
from nt_core.testing import Blobs, random_input, random_values
from nt_core.testing.saliency import SaliencyCase, reference_gradients, saliency_case
from nt_core.training import SGD, Training
from nt_models.tiny import TINY

BOTH = pytest.mark.parametrize("criterion", [Snip(), Grasp()], ids=lambda each: each.kind)


def compiled(case, dtype):
    model = nt_keras.compile(case.spec, dtype=dtype)
    for name, value in case.values.items():
        model.set_array(name, value)
    return model


@BOTH
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["mlp_norm", "skipping", "language_model"])
def test_gradients_and_masks_are_the_references(name, criterion):
    case = saliency_case(name, criterion)
    truth = reference_gradients(case)
    model = compiled(case, "float64")
    state = nt_keras.checkpoint(model)
    found = nt_keras.saliency_gradients(model, case.inputs, case.labels, criterion)
    for key, value in nt_keras.checkpoint(model).values.items():
        np.testing.assert_array_equal(value, state.values[key], err_msg=key)
    for key, array in truth.items():
        np.testing.assert_allclose(found[key], array, rtol=0, atol=1e-5 * np.abs(array).max(), err_msg=key)
    layout, topology = case.spec.layout, case.spec.topology
    masks = saliency_masks(topology, layout, case.values, truth)
    nt_keras.prune_at_init(model, case.inputs, case.labels)
    assert nt_keras.checkpoint(model).masks == masks
    # A half-precision policy is for training: masks are chosen in the precision of the variables.
    single = compiled(case, "mixed_bfloat16" if name == "mlp_norm" else "float32")
    nt_keras.prune_at_init(single, case.inputs, case.labels)
    rounded = nt_keras.checkpoint(single).masks
    differ = sum(int((rounded[key].dense() != mask.dense()).sum()) for key, mask in masks.items())
    assert differ <= 1e-3 * sum(mask.size for mask in masks.values())


@BOTH
def test_training_prunes_by_the_first_examples_and_keeps_the_masks(criterion):
    spec = EnsembleSpec(
        graph=with_dropout(),
        structure=Independent(count=2),
        topology=PruneAtInit(sparsity=0.7, criterion=criterion, scope="layer", examples=50),
        plan=OneRun(epochs=2),
    )
    recipe = Training(batch_size=30, optimizer=SGD(lr=0.05))
    joint, alone = (
        nt_keras.train(each, recipe, Blobs())
        for each in (spec, spec.replace(plan=OneRun(epochs=2, at_once=1)))
    )
    model = nt_keras.compile(spec)
    nt_keras.prune_at_init(model, *first_examples(Blobs(), 50))
    chosen = nt_keras.checkpoint(model).masks
    assert nt_keras.checkpoint(joint.model).masks == chosen
    assert nt_keras.checkpoint(alone.model).masks == chosen
    assert {name: mask.count for name, mask in chosen.items()} == spec.counts


def with_dropout():
    """With dropout, which must not decide which connections are kept."""
    net = GraphBuilder(Features(count=6))
    with net.block("hidden") as b:
        b.out = b.dropout(b.relu(b.linear(b.inp, 16)), 0.5)
    with net.classifier() as b:
        b.out = b.linear(b.inp, 3)
    return net.build()


def test_training_before_data_has_chosen_is_an_error():
    spec = EnsembleSpec(graph=with_dropout(), topology=PruneAtInit(sparsity=0.7))
    model = nt_keras.compile(spec)
    model.compile(optimizer=nt_keras.sparse("sgd", model), loss=nt_keras.ensemble_loss())
    batch = first_examples(Blobs(), 5)
    with pytest.raises(TopologyError, match="the masks come from data; call prune_at_init"):
        nt_keras.Topology(model, total_steps=5)
    with pytest.raises(TopologyError, match="the masks come from data; call prune_at_init"):
        model.train_on_batch(*batch)
    with pytest.raises(DataError, match="expected examples for the topology prune_at_init"):
        nt_keras.prune_at_init(model, np.zeros((0, 6), np.float32), np.zeros(0, np.int64))
    dense = nt_keras.compile(
        EnsembleSpec(graph=with_dropout(), structure=Single(), topology=Static(sparsity=0.5))
    )
    with pytest.raises(TopologyError, match="expected prune_at_init, found static"):
        nt_keras.prune_at_init(dense, *first_examples(Blobs(), 5))


@pytest.mark.usefixtures("float64")
def test_the_second_derivative_of_layer_normalisation_is_right():
    """TensorFlow's moments hold the mean fixed within the variance: wrong by several percent here."""
    graph = TINY["mixer"]()
    criterion = Grasp()
    spec = EnsembleSpec(graph=graph, topology=PruneAtInit(sparsity=0.7, criterion=criterion))
    inputs = random_input(graph, 4, 0)
    case = SaliencyCase(
        spec=spec, values=random_values(spec.layout, 0), inputs=inputs, labels=np.array([0, 1, 1, 0])
    )
    found = nt_keras.saliency_gradients(compiled(case, "float64"), inputs, case.labels, criterion)
    for key, array in reference_gradients(case).items():
        np.testing.assert_allclose(found[key], array, rtol=0, atol=1e-5 * np.abs(array).max(), err_msg=key)
