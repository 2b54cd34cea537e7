"""Whatever a call is given is computed right or refused."""

import numpy as np
import pytest

import nt_cpu
import nt_models
from nt_core import DataError, Dense, EnsembleSpec, GraphBuilder, Image, MultiHead, NeuroTrailsError, Static
from nt_core.errors import NotFiniteError
from nt_core.testing import random_input, random_values
from nt_models.tiny import TINY


def engine_of(graph, sparsity=0.0, **options):
    topology = Static(sparsity=sparsity) if sparsity else Dense()
    spec = EnsembleSpec(graph=graph, structure=MultiHead(split=1, heads=2), topology=topology)
    rng = np.random.default_rng(0)
    values = {
        name: np.where(rng.random(value.shape) >= sparsity, value, 0).astype(np.float32)
        for name, value in random_values(spec.layout, 0).items()
    }
    return nt_cpu.compile((spec, values), **options)


MLP = nt_models.mlp(inputs=6, hidden=(5, 4), classes=3)


@pytest.mark.parametrize("name", sorted(set(TINY) - {"llama"}))
def test_what_is_not_finite_reaches_every_logit_of_its_example_alone(name):
    graph = TINY[name]()
    engine = engine_of(graph, 0.9, batch=2, threads=2)
    x = random_input(graph, 5, 0).astype(np.float32)
    spoilt = x.copy()
    spoilt[1].flat[-1], spoilt[3].flat[5], spoilt[4].flat[0] = np.nan, np.inf, -np.inf
    before, after = engine.heads(x), engine.heads(spoilt)
    assert np.isnan(after[:, [1, 3, 4]]).all()
    np.testing.assert_array_equal(after[:, [0, 2]], before[:, [0, 2]])
    with pytest.raises(DataError, match="logits: nan at member 0, row 1"):
        engine(spoilt)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_numpy_says_nan_where_the_kernels_do(monkeypatch):
    x = random_input(MLP, 3, 0).astype(np.float32)
    x[1, 2] = np.nan
    native = engine_of(MLP, 0.9).heads(x)
    monkeypatch.setattr("nt_cpu.engine.kernels", lambda: None)
    with pytest.warns(UserWarning, match="not installed"):
        engine = engine_of(MLP, 0.9)
    np.testing.assert_allclose(engine.heads(x), native, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", ["relu", "max_pool", "affine_relu", "product_relu", "function"])
def test_no_op_turns_nan_into_a_number(op):
    """NaN arises behind the input, too: where infinities meet, which sums of large numbers are."""
    net = GraphBuilder(Image(channels=1, height=4, width=4))
    with net.stem() as b:
        b.out = b.conv(b.inp, 2, kernel=3, pad=1, bias=False)
    with net.block("middle") as b:
        match op:
            case "relu":
                b.out = b.relu(b.inp)
            case "max_pool":
                b.out = b.max_pool(b.inp, kernel=2, stride=2)
            case "affine_relu":
                b.out = b.relu(b.norm(b.inp))
            case "product_relu":
                b.out = b.relu(b.conv(b.relu(b.norm(b.inp)), 2, kernel=1))
            case "function":
                b.out = b.activation(b.inp, "silu")
    with net.classifier() as b:
        b.out = b.linear(b.flatten(b.inp), 3)
    spec = EnsembleSpec(graph=net.build())
    values = random_values(spec.layout, 0, np.float32)
    large = np.full((1, 1, 4, 4), 3e38, np.float32)
    large[..., ::2] *= -1
    stem = next(name for name in values if values[name].shape == (2, 1, 3, 3))
    values[stem] = np.full((2, 1, 3, 3), 10, np.float32)
    assert np.isnan(nt_cpu.compile((spec, values)).heads(large)).all()


def test_weights_that_are_not_finite_are_refused():
    engine = engine_of(MLP)
    values = random_values(engine.spec.layout, 0, np.float32)
    name = next(iter(values))
    values[name].flat[0] = np.nan
    with pytest.raises(NotFiniteError, match=f"{name}: holds NaN or infinity"):
        nt_cpu.compile((engine.spec, values))


@pytest.mark.parametrize("dtype", ["?", "u1", "i8", ">i2", "f2", ">f4", "f8", "g"])
def test_every_dtype_of_real_numbers_is_taken(dtype):
    engine = engine_of(MLP)
    x = (random_input(MLP, 4, 0) > 0).astype(dtype)
    np.testing.assert_array_equal(engine.heads(x), engine.heads(x.astype(np.float32)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 6), complex), "expected real numbers, found dtype complex128"),
        (np.full((2, 6), "1"), "expected real numbers, found dtype <U1"),
        (np.full((2, 6), None), "expected real numbers, found dtype object"),
        (np.zeros((2, 6), "M8[s]"), "expected real numbers, found dtype datetime64"),
        (np.ma.masked_equal(np.zeros((2, 6)), 0), "masked array"),
        ([[1, 2], [3]], "NumPy makes no array of it"),
        (3.0, r"expected shape \(batch, 6\), found \(\)"),
        (np.zeros(6), r"expected shape \(batch, 6\), found \(6,\)"),
        (np.zeros((1, 2, 6)), r"expected shape \(batch, 6\), found \(1, 2, 6\)"),
        ([], r"expected shape \(batch, 6\), found \(0,\)"),
    ],
    ids=lambda part: getattr(part, "__name__", None),
)
def test_other_inputs_are_refused(given, message):
    with pytest.raises(DataError, match=f"input: .*{message}"):
        engine_of(MLP)(given)


def test_a_batch_may_be_empty_or_larger_than_usual():
    engine = engine_of(MLP, batch=2, threads=2)
    x = random_input(MLP, 301, 0).astype(np.float32)
    assert engine(x[:0]).shape == (0, 3)
    one_by_one = np.concatenate([engine.heads(x[i : i + 1]) for i in range(5)], axis=1)
    np.testing.assert_allclose(engine.heads(x)[:, :5], one_by_one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [1.5, np.nan, np.inf])
def test_tokens_are_whole_numbers(value):
    engine = engine_of(TINY["llama"]())
    tokens = random_input(engine.spec.graph, 2, 0)
    np.testing.assert_array_equal(engine.heads(tokens), engine.heads(tokens.astype(np.float64)))
    wrong = tokens.astype(np.float32)
    wrong[0, 0] = value
    with pytest.raises(DataError, match="expected tokens, whole numbers from 0 to 10, found"):
        engine.heads(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 1025}, "threads: expected at most 1024, found 1025"),
        ({"threads": 2**60}, "threads: expected at most 1024"),
        ({"threads": 1.5}, "threads: expected a whole number, found 1.5"),
        ({"batch": "2"}, "batch: expected a whole number, found '2'"),
        ({"batch": -(2**70)}, "batch: expected at least 1"),
    ],
)
def test_counts_out_of_range_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        engine_of(MLP, **options)


def test_a_batch_of_any_size_and_numpys_integers_are_taken():
    x = random_input(MLP, 3, 0).astype(np.float32)
    engine = engine_of(MLP, batch=2**70, threads=np.int64(2))
    np.testing.assert_allclose(engine.heads(x), engine_of(MLP).heads(x), rtol=1e-4, atol=1e-6)


def test_memory_beyond_the_machines_is_an_error_of_this_package(monkeypatch):
    monkeypatch.setattr("nt_cpu.native.machine_bytes", lambda: 1000)
    with pytest.raises(NeuroTrailsError, match="bytes of working memory, expected at most the 1000"):
        engine_of(MLP)
