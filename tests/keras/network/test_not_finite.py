"""NaN passes through every layer, on every engine, compiled or not, so that no answer from it looks sure."""

import keras
import numpy as np
import pytest

import nt_keras
from nt_core import EnsembleSpec, MultiHead, Static
from nt_core.graph import GraphBuilder, Image
from nt_keras.network.lowering import ACTIVATIONS

ENGINE = keras.backend.backend()
MODES = {
    "tensorflow": [{"jit_compile": False}, {"jit_compile": True}, {"run_eagerly": True}],
    "jax": [{"jit_compile": True}, {"run_eagerly": True}],
    "torch": [{"run_eagerly": True}],
}[ENGINE]


def made():
    """Chain every op that an engine might make finite: XLA in JAX loses NaN in relu and mean together."""
    net = GraphBuilder(Image(channels=2, height=8, width=8))
    with net.stem() as b:
        b.out = b.max_pool(b.relu(b.conv(b.inp, 4, kernel=3, bias=True)), kernel=2, pad=1)
    with net.block("hidden") as b:
        x = b.inp
        for function in ACTIVATIONS:
            x = b.activation(b.conv(x, 5, kernel=1, bias=True), function)
        b.out = b.global_avg_pool(b.relu(b.conv(x, 4, kernel=3)))
    with net.classifier() as b:
        b.out = b.linear(b.relu(b.linear(b.inp, 6)), 3)
    spec = EnsembleSpec(
        graph=net.build(), structure=MultiHead(split=1, heads=2), topology=Static(sparsity=0.2)
    )
    return nt_keras.compile(spec)


def images():
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 2)).astype(np.float32)
    x[2, 3, 3, 1] = np.nan
    return x


def expect_nan(logits):
    assert np.isnan(logits[2]).all()
    assert np.isfinite(np.delete(logits, 2, axis=0)).all()


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_feature_that_is_nan_gives_no_finite_logits_or_loss(mode):
    model = made()
    model.compile(nt_keras.sparse("sgd", model), nt_keras.ensemble_loss(), **mode)
    expect_nan(model.predict(images(), verbose=0))
    assert np.isnan(model.evaluate(images(), np.zeros(4, int), verbose=0))
    assert np.isnan(model.train_on_batch(images(), np.zeros(4, int)))


@pytest.mark.skipif(ENGINE != "tensorflow", reason="TensorFlow's own")
def test_an_exported_model_gives_none_either(tmp_path):
    import tensorflow as tf

    model = made()
    model.export(str(tmp_path / "served"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    expect_nan(served.serve(images()).numpy())


def test_rectification_has_the_gradient_of_pytorch():
    """0 at 0, where sparse networks often are."""
    x = keras.Variable(np.array([-1.0, 0.0, 2.0], np.float32))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Activation(ACTIVATIONS["relu"])])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(x[None]))[0], [0, 0, 2])
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", activation=ACTIVATIONS["relu"])
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile(keras.optimizers.SGD(1.0), loss=lambda y, p: keras.ops.sum(p))
    model.train_on_batch(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))
    assert float(layer.kernel.numpy()[0, 0]) == 0
