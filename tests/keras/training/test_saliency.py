"""Pruning at initialisation in Keras, on the engine in use, held to the NumPy reference."""

import numpy as np
import pytest
from saliency import *  # noqa: F403
from saliency import BOTH, compiled, expect_gradients, expect_masks, with_dropout

import nt_keras
from nt_core import EnsembleSpec, Grasp, PruneAtInit, TopologyError
from nt_core.testing import Blobs, random_input, random_values
from nt_core.testing.saliency import SaliencyCase, saliency_case
from nt_core.training import first_examples
from nt_models.tiny import TINY


@BOTH
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["mlp_norm", "skipping", "language_model"])
def test_gradients_and_masks_are_the_references(backend, name, criterion):
    case = saliency_case(name, criterion)
    model = compiled(backend, case, "float64")
    state = nt_keras.checkpoint(model)
    truth = expect_gradients(backend, model, case, criterion)
    for key, value in nt_keras.checkpoint(model).values.items():
        np.testing.assert_array_equal(value, state.values[key], err_msg=key)
    # A half-precision policy is for training: masks are chosen in the precision of the variables.
    rounded = compiled(backend, case, "mixed_bfloat16" if name == "mlp_norm" else "float32")
    expect_masks(backend, model, rounded, case, truth)


def test_a_batch_before_data_has_chosen_is_an_error():
    model = nt_keras.compile(EnsembleSpec(graph=with_dropout(), topology=PruneAtInit(sparsity=0.7)))
    model.compile(optimizer=nt_keras.sparse("sgd", model), loss=nt_keras.ensemble_loss())
    with pytest.raises(TopologyError, match="the masks come from data; call prune_at_init"):
        model.train_on_batch(*first_examples(Blobs(), 5))


@pytest.mark.usefixtures("float64")
def test_the_second_derivative_of_layer_normalisation_is_right(backend):
    """TensorFlow's moments hold the mean fixed within the variance: wrong by several percent here."""
    graph = TINY["mixer"]()
    criterion = Grasp()
    spec = EnsembleSpec(graph=graph, topology=PruneAtInit(sparsity=0.7, criterion=criterion))
    inputs = random_input(graph, 4, 0)
    case = SaliencyCase(
        spec=spec, values=random_values(spec.layout, 0), inputs=inputs, labels=np.array([0, 1, 1, 0])
    )
    expect_gradients(backend, compiled(backend, case, "float64"), case, criterion)
