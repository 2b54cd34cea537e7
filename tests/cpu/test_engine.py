"""The native engine, held to the NumPy reference."""

import platform
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nt_cpu
import nt_models
from nt_core import (
    DataError,
    EnsembleSpec,
    Features,
    GraphBuilder,
    Image,
    Independent,
    MultiHead,
    NeuroTrailsError,
    Static,
    initial_masks,
)
from nt_core.checkpoint import Checkpoint, save_checkpoint
from nt_core.graph.ops import OPS
from nt_core.metrics import Fitted, aggregate
from nt_core.reference import forward
from nt_core.testing import model_cases, op_cases, random_input, random_values
from nt_core.testing.problem import problem
from nt_cpu.code import KINDS, MAGIC, VERSION, Program, batch_of, program
from nt_cpu.lowering import LOWERINGS
from nt_cpu.native import CONSTANTS, NativeProgram, constants_of, expect_constants, kernels, library
from nt_cpu.network import network
from nt_models.tiny import TINY

RELATIVE = 1e-5
"""Of the largest logit: sums of thousands of float32 products, in another order than NumPy's."""

CASES = [*op_cases(), *model_cases({name: make() for name, make in TINY.items()})]


def exact(spec, values, x):
    x = x if np.issubdtype(x.dtype, np.integer) else x.astype(np.float64)
    return forward(spec.layout, {k: v.astype(np.float64) for k, v in values.items()}, x)


def expect_close(found, truth):
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, truth, rtol=0, atol=RELATIVE * np.abs(truth).max())


def trained(spec, seed=0):
    """Random values, running statistics included, with zeros where masks say so."""
    values = dict(random_values(spec.layout, seed))
    masks = dict(initial_masks(spec.topology, spec.layout, seed))
    for name, mask in masks.items():
        values[name] = np.where(mask.dense(), values[name], 0)
    return {name: value.astype(np.float32) for name, value in values.items()}, masks


def small(sparsity=0.7, size=32):
    graph = nt_models.wide_resnet(depth=10, width=1, classes=5, size=size)
    topology = Static(sparsity=sparsity)
    return EnsembleSpec(graph=graph, structure=MultiHead(split=1, heads=3), topology=topology)


def test_kernels_are_installed():
    assert kernels() in {"avx512", "avx2", "portable"}


def test_an_unknown_instruction_set_is_an_error(monkeypatch):
    monkeypatch.setenv("NT_CPU_KERNELS", "avx1024")
    with pytest.raises(NeuroTrailsError, match="expected avx512, avx2, portable, or unset, found 'avx1024'"):
        nt_cpu.compile((small(), trained(small())[0]))


def test_every_op_has_a_lowering():
    assert set(LOWERINGS) == set(OPS)


def available():
    """The instruction sets that this machine has."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("avx512", "avx2", "portable"):
            patch.setenv("NT_CPU_KERNELS", name)
            if kernels() == name:
                yield name


@pytest.mark.parametrize("instructions", list(available()))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_conforms_to_the_reference(case, instructions, monkeypatch):
    monkeypatch.setenv("NT_CPU_KERNELS", instructions)
    drawn = problem(case, np.float32)
    for batch, threads in ((1, 1), (4, 3)):
        engine = nt_cpu.compile((case.spec, drawn.values), batch=batch, threads=threads)
        assert engine.kernels == instructions
        expect_close(engine.heads(drawn.x), exact(case.spec, drawn.values, drawn.x))


def test_without_its_kernels_it_says_so_and_numpy_computes(monkeypatch):
    spec = small()
    values, _ = trained(spec)
    monkeypatch.setattr("nt_cpu.engine.kernels", lambda: None)
    with pytest.warns(UserWarning, match=r"not installed: pip install .*; NumPy computes instead, slowly"):
        engine = nt_cpu.compile((spec, values), batch=2)
    assert engine.kernels is None
    x = random_input(spec.graph, 3, 0).astype(np.float32)
    expect_close(engine.heads(x), exact(spec, values, x))


@st.composite
def convolutions(draw):
    """Any geometry, density, batch and number of threads."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = tuple(draw(st.tuples(st.integers(0, k), st.integers(0, k))) for k in kernel)
    size = [
        draw(st.integers(max(k - sum(p), 1), 40) | st.sampled_from([8, 16, 32]).filter(lambda n, k=k: n >= k))
        for k, p in zip(kernel, padding, strict=True)
    ]
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    return {
        "size": size,
        "kernel": kernel,
        "padding": padding,
        "stride": stride,
        "groups": groups,
        "channels": (groups * draw(st.integers(1, 12)), groups * draw(st.integers(1, 12))),
        "density": draw(st.floats(0, 1)),
        "batch": draw(st.integers(1, 5)),
        "threads": draw(st.integers(1, 4)),
        "seed": draw(st.integers(0, 99)),
    }


@given(convolutions())
def test_any_convolution(case):
    inputs, outputs = case["channels"]
    net = GraphBuilder(Image(channels=inputs, height=case["size"][0], width=case["size"][1]))
    with net.stem() as b:
        b.out = b.conv(
            b.inp,
            outputs,
            kernel=case["kernel"],
            stride=case["stride"],
            pad=case["padding"],
            groups=case["groups"],
            bias=True,
        )
    with net.block("block") as b:
        b.out = b.relu(b.add(b.inp, b.conv(b.relu(b.norm(b.inp)), outputs, kernel=1)))
    with net.classifier() as b:
        b.out = b.linear(b.flatten(b.inp), 3)
    spec = EnsembleSpec(graph=net.build())
    rng = np.random.default_rng(case["seed"])
    values = {
        name: value.astype(np.float32) for name, value in random_values(spec.layout, case["seed"]).items()
    }
    for name, value in values.items():
        if name.endswith(".weight") and value.ndim > 1:
            values[name] = np.where(rng.random(value.shape) < case["density"], values[name], 0)
    x = random_input(spec.graph, 7, case["seed"]).astype(np.float32)
    engine = nt_cpu.compile((spec, values), batch=case["batch"], threads=case["threads"])
    truth = exact(spec, values, x)
    # Where much cancels, what is left is compared with what was added up.
    scale = np.abs(truth).max() + 1
    np.testing.assert_allclose(engine.heads(x), truth, rtol=0, atol=RELATIVE * scale)
    alone = nt_cpu.compile((spec, values), batch=case["batch"])
    np.testing.assert_array_equal(engine.heads(x), alone.heads(x))


@pytest.mark.parametrize("batch", [1, 2, 16])
@pytest.mark.parametrize(
    "structure", [MultiHead(split=1, heads=3), Independent(count=2)], ids=lambda s: s.kind
)
def test_threads_do_not_change_the_answer(structure, batch):
    spec = small().replace(structure=structure)
    values, _ = trained(spec)
    x = random_input(spec.graph, 16, 0).astype(np.float32)
    found = [nt_cpu.compile((spec, values), batch=batch, threads=n).heads(x) for n in (1, 2, 3, 4)]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_a_checkpoint_directory_is_compiled(tmp_path):
    spec = small()
    values, masks = trained(spec)
    save_checkpoint(tmp_path, Checkpoint(spec=spec, values=values, masks=masks))
    x = random_input(spec.graph, 5, 0).astype(np.float32)
    engine = nt_cpu.compile(tmp_path, batch=2)
    expect_close(engine.heads(x), exact(spec, values, x))
    np.testing.assert_allclose(engine(x).sum(axis=-1), 1, rtol=1e-6)


def test_several_threads_of_python_use_one_engine():
    spec = small()
    values, _ = trained(spec)
    engine = nt_cpu.compile((spec, values), batch=2, threads=2)
    inputs = [random_input(spec.graph, 6, seed).astype(np.float32) for seed in range(8)]
    wanted = [engine.heads(x) for x in inputs]
    found = [None] * len(inputs)

    def work(number):
        for _ in range(5):
            found[number] = engine.heads(inputs[number])

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nan_and_infinity_stay_in_their_example():
    spec = small()
    values, _ = trained(spec)
    engine = nt_cpu.compile((spec, values), batch=4)
    x = random_input(spec.graph, 4, 0).astype(np.float32)
    before = engine.heads(x)
    spoilt = x.copy()
    spoilt[1], spoilt[3, 0, 0, 0] = np.nan, np.inf
    after = engine.heads(spoilt)
    np.testing.assert_array_equal(after[:, [0, 2]], before[:, [0, 2]])
    assert np.isnan(after[:, 1]).all()


@given(st.data())
def test_an_altered_program_is_refused_or_harmless(data):
    spec = small(size=8)
    values, _ = trained(spec)
    sound = program(network(spec.layout, values), 2)
    x = random_input(spec.graph, 2, 0).astype(np.float32)
    other = NativeProgram(replace(sound, code=sound.code.copy()), 1)
    before, after = np.zeros((2, 3, 2, 5), np.float32)
    other.run(x, before)
    where = data.draw(st.integers(0, len(sound.code) - 1))
    sound.code[where] = data.draw(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 70000))
    try:
        altered = NativeProgram(sound, 1)
        altered.expect_shapes(3 * 8 * 8, 3, 5)
    except NeuroTrailsError:
        return
    if altered._library.nt_memory(altered._engine, 1) < 2**28:
        out = np.empty((3, 2, 5), np.float32)
        altered.run(np.zeros((2, 3, 8, 8), np.float32), out)
    other.run(x, after)
    np.testing.assert_array_equal(before, after)


@given(st.data())
def test_altered_numbers_are_refused_or_harmless(data):
    spec = small(size=8)
    values, _ = trained(spec)
    sound = program(network(spec.layout, values), data.draw(st.integers(1, 2)))
    x = random_input(spec.graph, 2, 0).astype(np.float32)
    other = NativeProgram(replace(sound), 1)
    before, after = np.zeros((2, 3, 2, 5), np.float32)
    other.run(x, before)
    blob = sound.blob.copy()
    for _ in range(data.draw(st.integers(1, 20))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    sound.blob = blob
    try:
        altered = NativeProgram(sound, 1)
    except NeuroTrailsError:
        return
    altered.run(x, np.empty((3, 2, 5), np.float32))
    other.run(x, after)
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(("places", "sound"), [([0, 4], True), ([0, 0], True), ([0, 4, 0, 4], False)])
def test_numbers_are_referred_to_once(places, sound):
    """Else a small file could stand for a large one, and take as long to check: here scales and shifts."""
    head = [MAGIC, VERSION, 1, 16, 1, 1, 1, 0, 1, 1, 1, 2 + len(places) // 2]
    ops = [[KINDS.index("affine"), 0, 0, *pair, 0] for pair in zip(places[::2], places[1::2], strict=True)]
    words = [head, [KINDS.index("input"), 0, 0], *ops, [KINDS.index("output"), 0, 0, 0]]
    code = np.array([word for each in words for word in each], np.int64)
    small = Program(code, np.array([2, 3], np.float32).view(np.uint8))
    if sound:
        found = np.empty((1, 1, 1), np.float32)
        NativeProgram(small, 1).run(np.ones((1, 1), np.float32), found)
        assert found.item() == (5 if places == [0, 4] else 4)
        return
    with pytest.raises(NeuroTrailsError, match="referred to more than once"):
        NativeProgram(small, 1)


@given(st.integers(0, 400))
def test_a_truncated_program_is_refused(words):
    spec = small(size=8)
    sound = program(network(spec.layout, trained(spec)[0]), 2)
    sound.code = sound.code[: min(words, len(sound.code) - 1)]
    with pytest.raises(NeuroTrailsError, match="program: "):
        NativeProgram(sound, 1)


def test_bad_input_is_refused():
    spec = small()
    values, _ = trained(spec)
    with pytest.raises(DataError, match=r"batch: expected at least 1, found 0"):
        nt_cpu.compile((spec, values), batch=0)
    with pytest.raises(DataError, match=r"threads: expected at least 1, found -1"):
        nt_cpu.compile((spec, values), threads=-1)
    engine = nt_cpu.compile((spec, values))
    with pytest.raises(DataError, match=r"expected shape \(batch, 3, 32, 32\), found \(1, 32, 32, 3\)"):
        engine.heads(np.zeros((1, 32, 32, 3), np.float32))
    assert engine.heads(np.zeros((0, 3, 32, 32), np.float32)).shape == (3, 0, 5)


@pytest.mark.parametrize("inputs", [5, (3, 8, 8)])
def test_inputs_may_lie_in_memory_anyhow(inputs):
    graph = (
        nt_models.mlp(inputs=inputs, hidden=(), classes=4)
        if isinstance(inputs, int)
        else nt_models.wide_resnet(depth=10, width=1, classes=4, size=8)
    )
    spec = EnsembleSpec(graph=graph)
    engine = nt_cpu.compile((spec, trained(spec)[0]), batch=2)
    x = random_input(graph, 6, 0).astype(np.float32)
    truth = engine.heads(x)
    raw = np.empty(x.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(x.tobytes(), np.uint8)
    misaligned = raw[1:].view(np.float32).reshape(x.shape)
    assert not misaligned.flags.aligned
    for laid in (
        misaligned,
        np.asfortranarray(x),
        x.astype(">f4"),
        x.tolist(),
        np.repeat(x, 2, axis=0)[::2],
    ):
        np.testing.assert_array_equal(engine.heads(laid), truth)


def test_what_is_fitted_is_served(tmp_path):
    spec = small()
    values, masks = trained(spec)
    fitted = Fitted(weights=(0.7, 0.3, 0.0), temperature=2.0)
    record = {"fitted": fitted.model_dump(mode="json")}
    save_checkpoint(tmp_path, Checkpoint(spec=spec, values=values, masks=masks, record=record))
    x = random_input(spec.graph, 3, 0).astype(np.float32)
    engine, plain = nt_cpu.compile(tmp_path), nt_cpu.compile(tmp_path, aggregation="mean_prob")
    np.testing.assert_allclose(engine(x), np.exp(aggregate(engine.heads(x), fitted)), rtol=1e-6)
    np.testing.assert_allclose(plain(x), np.exp(aggregate(plain.heads(x), "mean_prob")), rtol=1e-6)
    assert np.abs(engine(x) - plain(x)).max() > 1e-3


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shape", [(65_537, 2), (2, 65_537), (65_536, 1)])
def test_more_features_than_16_bits_count(shape, batch):
    spec = EnsembleSpec(graph=nt_models.mlp(inputs=shape[0], hidden=(), classes=shape[1]))
    values = {name: value.astype(np.float32) for name, value in random_values(spec.layout, 0).items()}
    x = random_input(spec.graph, batch, 0).astype(np.float32)
    engine = nt_cpu.compile((spec, values), batch=batch)
    assert engine.kernels
    expect_close(engine.heads(x), exact(spec, values, x))


@given(
    inputs=st.integers(1, 200),
    hidden=st.integers(1, 200),
    density=st.floats(0, 1),
    norm=st.booleans(),
    skip=st.booleans(),
    examples=st.integers(1, 3),
    threads=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_one_example_at_a_time(inputs, hidden, density, norm, skip, examples, threads, seed):
    net = GraphBuilder(Features(count=inputs))
    with net.stem() as b:
        b.out = b.linear(b.inp, hidden)
    with net.block("middle") as b:
        x = b.relu(b.norm(b.inp) if norm else b.inp)
        x = b.linear(x, hidden)
        b.out = b.relu(b.add(x, b.inp) if skip else x)
    with net.classifier() as b:
        b.out = b.linear(b.inp, 3)
    spec = EnsembleSpec(graph=net.build(), structure=MultiHead(split=0, heads=2))
    rng = np.random.default_rng(seed)
    values = {
        name: np.where(rng.random(value.shape) < density, value, 0) if value.ndim == 2 else value
        for name, value in random_values(spec.layout, seed % 1000).items()
    }
    values = {name: value.astype(np.float32) for name, value in values.items()}
    x = random_input(spec.graph, examples, seed % 1000).astype(np.float32)
    engine = nt_cpu.compile((spec, values), batch=1, threads=threads)
    found = engine.heads(x)
    expect_close(found, exact(spec, values, x))
    np.testing.assert_array_equal(nt_cpu.compile((spec, values), batch=1).heads(x), found)


def test_a_kernel_larger_than_a_panel_is_left_to_numpy():
    net = GraphBuilder(Image(channels=1, height=70, width=70))
    with net.stem() as b:
        b.out = b.conv(b.inp, 2, kernel=50)
    with net.classifier() as b:
        b.out = b.linear(b.flatten(b.inp), 2)
    spec = EnsembleSpec(graph=net.build())
    values = dict(random_values(spec.layout, 0))
    with pytest.warns(UserWarning, match=r"bytes of a panel of a product, found"):
        engine = nt_cpu.compile((spec, values))
    x = random_input(spec.graph, 2, 0)
    expect_close(engine.heads(x), exact(spec, values, x))


@pytest.mark.parametrize("instructions", list(available()))
@pytest.mark.parametrize(("sparsity", "abreast"), [(0.0, 128), (0.8, 64), (0.9, 32), (0.99, 32)])
def test_vectors_stand_side_by_side_by_density(sparsity, abreast, instructions, monkeypatch):
    """The sparser, the fewer: a row's sums are loaded and stored for what it has in a panel."""
    monkeypatch.setenv("NT_CPU_KERNELS", instructions)
    graph = nt_models.mlp(inputs=301, hidden=(123,), classes=50)  # neither is whole lines
    spec = EnsembleSpec(graph=graph, topology=Static(sparsity=sparsity, allocation="uniform"))
    values = random_values(spec.layout, 0, np.float32)
    for name, mask in initial_masks(spec.topology, spec.layout, 0):
        values[name] *= mask.dense()
    lowered = network(spec.layout, values)
    assert [batch_of(lowered, most) for most in (1, 16, 1000)] == [1, 16, abreast]
    x = random_input(spec.graph, 2 * abreast + 13, 0, np.float32)
    for threads in (1, 3):
        engine = nt_cpu.compile((spec, values), batch=1000, threads=threads)
        expect_close(engine.heads(x), exact(spec, values, x))
    one_by_one = nt_cpu.compile((spec, values), batch=1)
    expect_close(one_by_one.heads(x[:1]), exact(spec, values, x[:1]))


def test_c_and_python_have_the_same_constants():
    assert constants_of(library()) == CONSTANTS


@pytest.mark.parametrize("change", [{"TILE": 64}, {"softplus": 4}, {"fill": None}])
def test_kernels_of_another_version_are_refused(change):
    found = {name: value for name, value in {**CONSTANTS, **change}.items() if value is not None}
    with pytest.raises(NeuroTrailsError, match=f"kernels: expected {next(iter(change))} = .*install"):
        expect_constants(found)


SOURCES = Path(__file__).parents[2] / "backends" / "nt_cpu_native" / "src"
SETS_OF_INSTRUCTIONS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw"],
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86-64")
@pytest.mark.parametrize("name", SETS_OF_INSTRUCTIONS)
def test_the_sources_have_no_warnings(name):
    if (compiler := shutil.which("gcc")) is None:
        pytest.skip("no gcc")
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wno-psabi", "-fsyntax-only"]
    files = [*SOURCES.glob("kernels/*.c"), *(SOURCES.glob("*.c") if name == "portable" else ())]
    flags = [*SETS_OF_INSTRUCTIONS[name], f"-DNT_SET={name}", "-DNT_X86", "-fopenmp"]
    done = subprocess.run([compiler, *strict, *flags, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
