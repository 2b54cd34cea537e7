import gc
import os
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Compiling takes nearly all the time of these tests in JAX.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_multi_thread_eigen=false",
)

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "tests", hypothesis.settings.get_profile("patient"), derandomize=True, max_examples=50
)
hypothesis.settings.load_profile("tests")


def pytest_configure(config):
    # NumPy 2 of TensorFlow's variables, whenever Keras reads one.
    config.addinivalue_line(
        "filterwarnings",
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    )
    # The process of xdist that hands tests out runs none; importing an engine would keep its workers waiting.
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", 0):
        one_thread()


def one_thread():
    """Small tensors gain nothing from threads, and busy machines lose much by them."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    elif keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)


def pytest_runtest_teardown():
    """Leave a test's garbage where it is: TensorFlow takes as long to free graphs as to run most tests."""
    import keras

    if keras.backend.backend() == "tensorflow":
        gc.freeze()


@pytest.fixture
def float64(monkeypatch):
    """Let float64 be float64: JAX computes in float32 unless it is asked, Keras with all but TensorFlow."""
    import keras

    monkeypatch.setitem(keras.src.backend.common.dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
    if keras.backend.backend() == "jax":
        import jax

        with jax.enable_x64(True):
            yield
    else:
        yield


@pytest.fixture(scope="session")
def backend():
    """What tests of both backends call: the package, and what is said in another way in each."""
    import nt_keras

    return SimpleNamespace(
        **vars(nt_keras),
        assign=assign,
        own_loop=own_loop,
        own_loss=own_loss,
        starts_fast=False,
    )


def assign(model, name, values):
    """Write past the mask, which ``set_array`` does not."""
    from nt_keras.network.kernels import moving

    with moving():
        model.set_array(name, values)


def own_loop(model, **options):
    import nt_keras

    model.compile(optimizer=nt_keras.sparse("sgd", model), loss=nt_keras.ensemble_loss())
    nt_keras.Topology(model, **options)


def own_loss(model, x, y):
    import nt_keras

    optimizer = nt_keras.sparse("sgd", model) if model.masked else "sgd"
    model.compile(optimizer=optimizer, loss=nt_keras.ensemble_loss())
    return float(model.test_on_batch(x, y))
