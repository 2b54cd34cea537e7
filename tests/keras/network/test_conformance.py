"""The Keras backend gives the NumPy reference's numbers, on the engine that KERAS_BACKEND names."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

import nt_keras
from nt_core import EnsembleSpec, GraphError, Static
from nt_core.graph import ops
from nt_core.testing import (
    CHECKS,
    check_dropout,
    check_forward,
    check_gradients,
    check_step,
    model_cases,
    op_cases,
    random_input,
    random_values,
)
from nt_core.testing.conformance import LEARNING_RATE
from nt_core.testing.strategies import cases
from nt_keras.engines import engine
from nt_keras.engines.layouts import batch_to_keras, kernel_axes, to_canonical
from nt_keras.network.layers import BatchNorm
from nt_keras.network.lowering import LOWERINGS, find_lowering
from nt_models.tiny import TINY

# In one structure each: compiling takes nearly all the time, and the suite's own models have every structure.
ARCHITECTURES = [
    case
    for case in model_cases({name: make() for name, make in TINY.items()})
    if case.name.partition("/")[0] in TINY and "/split_" in case.name
]
CASES = [*op_cases(), *model_cases(), *ARCHITECTURES]
ENGINE = keras.backend.backend()
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])


class Upstream(keras.losses.Loss):
    """A loss whose gradient with respect to the logits is the target.

    It is not Σ upstream·logits: of a loss that is linear in the logits, TensorFlow's graphs compute wrong
    gradients, for they read some weights after they changed them.
    """

    def __init__(self, dtype):
        super().__init__(reduction="sum", dtype=dtype)

    def call(self, upstream, logits):
        return (logits + keras.ops.stop_gradient(upstream - logits)) ** 2 / 2


class KerasBackend:
    """Answers the suite's verbs; all checks of a case share one model and what is compiled for it."""

    def __init__(self, dtype):
        self.dtype = dtype if isinstance(dtype, str) else np.dtype(dtype).name

    def given(self, case, values):
        trained = build(case, self.dtype)
        for name, value in values.items():
            trained.model.set_array(name, value)
        return trained

    def forward(self, case, values, x, *, training):
        return swapped(self.given(case, values).forward(batch_to_keras(x), training))

    def gradients(self, case, values, x, upstream):
        trained = self.given(case, values)
        gradients = trained.gradients(batch_to_keras(x), swapped(upstream))
        places = {id(v): number for number, v in enumerate(trained.model.trainable_variables)}
        return {
            p.name: to_canonical(
                engine.to_numpy(gradients[places[id(trained.model.variable(p.name))]]),
                kernel_axes(p.node.op, p.weight.name),
            )
            for p in case.layout.weights
            if p.weight.trainable
        }

    def running(self, case, values, x):
        trained = self.given(case, values)
        trained.forward(batch_to_keras(x), True)
        names = [p.name for p in case.layout.weights if not p.weight.trainable]
        return {name: trained.model.array(name) for name in names}

    def step(self, case, values, masks, x, upstream, *, learning_rate):
        assert learning_rate == LEARNING_RATE
        trained = self.given(case, values)
        for name, mask in masks.items():
            trained.model.set_mask(name, mask)
        trained.step(batch_to_keras(x), swapped(upstream))
        return {p.name: trained.model.array(p.name) for p in case.layout.weights}


def swapped(array):
    """(M, B, …) ↔ (B, M, …)."""
    return np.ascontiguousarray(np.swapaxes(array, 0, 1))


@lru_cache(maxsize=4)
def build(case, dtype):
    spec = EnsembleSpec(graph=case.graph, structure=case.structure, topology=Static(sparsity=0.5))
    model = nt_keras.Ensemble(spec, dtype=dtype)
    optimizer = nt_keras.sparse(keras.optimizers.SGD(LEARNING_RATE), model)
    optimizer.build(model.trainable_variables)
    return {"tensorflow": TensorFlow, "jax": Jax, "torch": Torch}[ENGINE](model, optimizer)


@dataclass(frozen=True)
class TensorFlow:
    """A model that runs eagerly; ``test_fit`` has its graphs."""

    model: nt_keras.Ensemble
    optimizer: keras.optimizers.Optimizer

    def forward(self, x, training):
        return self.model(x, training=training).numpy()

    def gradients(self, x, upstream):
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self.model(x, training=True) * upstream)
        variables = [v.value for v in self.model.trainable_variables]
        return [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]

    def step(self, x, upstream):
        self.optimizer.apply(self.gradients(x, upstream), self.model.trainable_variables)


@dataclass(frozen=True)
class Torch:
    model: nt_keras.Ensemble
    optimizer: keras.optimizers.Optimizer

    def forward(self, x, training):
        return engine.to_numpy(self.model(x, training=training))

    def gradients(self, x, upstream):
        import torch

        self.model.zero_grad()
        (self.model(x, training=True) * torch.from_numpy(upstream)).sum().backward()
        return [v.value.grad for v in self.model.trainable_variables]

    def step(self, x, upstream):
        import torch

        gradients = self.gradients(x, upstream)
        with torch.no_grad():
            self.optimizer.apply(gradients, self.model.trainable_variables)


@dataclass(frozen=True)
class Jax:
    """A model all of whose results come from one function, for compiling takes nearly all the time."""

    model: nt_keras.Ensemble
    optimizer: keras.optimizers.Optimizer

    @cached_property
    def compiled(self):
        import jax

        def loss(trainable, rest, x, upstream):
            logits, rest = self.model.stateless_call(trainable, rest, x, training=True)
            return (logits * upstream).sum(), (logits, rest)

        def compute(trainable, rest, slots, x, upstream):
            inferred, _ = self.model.stateless_call(trainable, rest, x, training=False)
            gradients, (logits, moved) = jax.grad(loss, has_aux=True)(trainable, rest, x, upstream)
            stepped, _ = self.optimizer.stateless_apply(slots, gradients, trainable)
            return inferred, logits, gradients, moved, stepped

        return jax.jit(compute)

    def compute(self, x, upstream):
        model = self.model
        variables = model.trainable_variables, model.non_trainable_variables, self.optimizer.variables
        return self.compiled(*[[v.value for v in each] for each in variables], x, upstream)

    def forward(self, x, training):
        floats = np.result_type(self.model.compute_dtype)
        layout = self.model.spec.layout
        rows = len(x) // self.model.spec.structure.members if layout.own_rows else len(x)
        upstream = np.zeros((rows, *self.model.output_shape[1:]), floats)
        inferred, logits, _, moved, _ = self.compute(x, upstream)
        if training:
            assign(self.model.non_trainable_variables, moved)
        return np.asarray(logits if training else inferred)

    def gradients(self, x, upstream):
        return self.compute(x, upstream)[2]

    def step(self, x, upstream):
        self.optimizer.follow(self.model.trainable_variables)
        *_, moved, stepped = self.compute(x, upstream)
        assign(self.model.non_trainable_variables, moved)
        assign(self.model.trainable_variables, stepped)


def assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


@pytest.fixture(autouse=True)
def _precise(request):
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("dtype") is np.float64:
        request.getfixturevalue("float64")


def named(*names):
    return [case for case in CASES if case.name in names]


def together(cases):
    """Let one worker of xdist run all checks of a case, whose model it builds once."""
    return [pytest.param(case, marks=pytest.mark.xdist_group(case.name)) for case in cases]


def test_every_op_has_a_lowering():
    assert set(LOWERINGS) == set(ops.OPS)


def test_an_op_without_a_lowering_is_named():
    class Unknown(ops.Flatten):
        kind: Literal["unknown"] = "unknown"

    with pytest.raises(
        GraphError, match=r"block 'b', op 'x' \(unknown\): nt_keras has no lowering for Unknown"
    ):
        find_lowering(Unknown(), "block 'b', op 'x'")


@DTYPES
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", together(CASES), ids=str)
def test_conforms_to_the_reference(case, check, dtype):
    check(KerasBackend(dtype), case, dtype)


@DTYPES
def test_dropout(dtype):
    check_dropout(KerasBackend(dtype), dtype)


@DTYPES
@given(case=cases())
@settings(
    max_examples=4 if ENGINE == "jax" else 30,  # JAX compiles each of them
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis -1")  # sequences of one token
def test_any_network_conforms_to_the_reference(dtype, case):
    # PyTorch fails on these: "slow_conv2d: grad_weight must be contiguous".
    narrow = any(getattr(node.op, "out_channels", 2) == 1 for b in case.graph.blocks for node in b.nodes)
    assume(not narrow or ENGINE != "torch" or dtype is np.float32)
    build.cache_clear()
    check_forward(KerasBackend(dtype), case, dtype)
    check_gradients(KerasBackend(dtype), case, dtype)


class FitBackend(KerasBackend):
    """Takes its step by ``fit``."""

    def __init__(self, jit):
        super().__init__(np.float32)
        self.jit = jit

    def step(self, case, values, masks, x, upstream, *, learning_rate):
        trained = self.given(case, values)
        for name, mask in masks.items():
            trained.model.set_mask(name, mask)
        trained.model.compile(trained.optimizer, Upstream(self.dtype), jit_compile=self.jit)
        trained.model.fit(batch_to_keras(x), swapped(upstream), batch_size=len(x), verbose=0)
        return {p.name: trained.model.array(p.name) for p in case.layout.weights}


@pytest.mark.parametrize("jit", {"tensorflow": [False, True], "jax": [True], "torch": [False]}[ENGINE])
@pytest.mark.parametrize(
    "case",
    named(
        "conv2d_asymmetric",
        "conv2d_groups",
        "conv2d_depthwise",
        "max_pool2d_asymmetric",
        "max_pool2d_ties",
        "flatten",
        "gelu",
        "batch_norm_image",
        "attention_all",
        "class_token",
        "take_token",
        "skipping/split_down",
    ),
    ids=str,
)
def test_fit_conforms_to_the_reference(case, jit):
    check_step(FitBackend(jit), case, np.float32)


@pytest.fixture
def _channels_first():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    build.cache_clear()
    yield
    keras.config.set_image_data_format(before)
    build.cache_clear()


@pytest.mark.usefixtures("_channels_first")
@pytest.mark.parametrize(
    "case",
    named(
        "conv2d_asymmetric",
        "conv2d_groups",
        "conv2d_depthwise",
        "max_pool2d_overlapping",
        "avg_pool2d",
        "global_avg_pool",
        "batch_norm_image",
        "flatten",
        "to_sequence",
    ),
    ids=str,
)
def test_keras_image_data_format_changes_nothing(case):
    check_forward(KerasBackend(np.float32), case, np.float32)


@pytest.mark.parametrize(
    "case",
    named(
        "gelu",
        "layer_norm",
        "to_sequence",
        "class_token",
        "positions",
        "take_token",
        "transpose",
        "skipping/single",
        "language_model/single",
    ),
    ids=str,
)
def test_a_part_of_a_model_is_saved_and_loaded(case, tmp_path):
    model = build(case, "float32").model
    part = keras.Model(model.input, model.get_layer("head1-classifier-linear1").output)
    part.save(tmp_path / "part.keras")
    x = batch_to_keras(random_input(case.graph, 3, seed=0, dtype=np.float32))
    loaded = keras.saving.load_model(tmp_path / "part.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), part.predict(x, verbose=0))


@pytest.mark.parametrize("case", named("language_model/split_block1", "wide_resnet/split_stage2.1"), ids=str)
def test_half_precision_is_near_the_reference(case):
    values = random_values(case.layout, 0, np.float32)
    x = random_input(case.graph, case.batch, 0, np.float32)
    found, exact = (
        KerasBackend(dtype).forward(case, values, x, training=True) for dtype in ("mixed_bfloat16", "float32")
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=0, atol=0.05 * np.abs(exact).max())


def normalised(x, training=True, dtype=None, **changes):
    layer = BatchNorm(momentum=0.5, dtype=dtype)
    layer.build(x.shape)
    for name, value in changes.items():
        setattr(layer, name, value)
    return engine.to_numpy(layer(x, training=training)), layer


def test_batch_norm_of_a_large_mean_is_exact():
    x = np.random.default_rng(0).normal(1000, 1, (64, 3)).astype(np.float32)
    exact = x.astype(np.float64)
    found, layer = normalised(x)
    np.testing.assert_allclose(found, (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-3), atol=1e-3)
    np.testing.assert_allclose(
        engine.to_numpy(layer.moving_variance), 0.5 + exact.var(0, ddof=1) / 2, rtol=1e-3
    )


def test_batch_norm_of_one_value_moves_to_variance_zero():
    found, layer = normalised(np.full((1, 2), 7.0, np.float32))
    np.testing.assert_array_equal(found, 0)
    np.testing.assert_array_equal(engine.to_numpy(layer.moving_variance), 0.5)


def test_frozen_batch_norm_stands_still():
    x = np.random.default_rng(0).normal(3, 2, (8, 3)).astype(np.float32)
    found, layer = normalised(x, trainable=False)
    np.testing.assert_allclose(found, x / np.sqrt(1 + 1e-3), rtol=1e-5)
    np.testing.assert_array_equal(engine.to_numpy(layer.moving_mean), 0)


def test_batch_norm_computes_half_precision_in_full():
    x = np.random.default_rng(0).normal(8, 1, (4096, 2)).astype(np.float32)
    x = engine.to_numpy(keras.ops.cast(x, "bfloat16"))
    exact = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
    found, layer = normalised(keras.ops.cast(x, "bfloat16"), dtype="mixed_bfloat16")
    np.testing.assert_allclose(found, exact, rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(engine.to_numpy(layer.moving_mean), x.mean(0) / 2, rtol=1e-6)
