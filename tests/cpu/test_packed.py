"""Packed files: they serve as the engine that was packed does, or they are refused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import nt_cpu
import nt_models
from nt_core import (
    CheckpointError,
    DataError,
    Dense,
    EnsembleSpec,
    MultiHead,
    NeuroTrailsError,
    Static,
    initial_masks,
)
from nt_core.checkpoint import Checkpoint
from nt_core.files import tensors_in
from nt_core.metrics import Fitted
from nt_core.testing import random_input, random_values
from nt_cpu.code import Program
from nt_cpu.packed import _digest
from nt_models.tiny import TINY


def engine_of(name="wide_resnet", record=None, **options):
    structure, topology = MultiHead(split=1, heads=2), Static(sparsity=0.8)
    spec = EnsembleSpec(graph=TINY[name](), structure=structure, topology=topology)
    masks = dict(initial_masks(spec.topology, spec.layout, 0))
    values = {
        name: np.where(masks[name].dense(), value, 0) if name in masks else value
        for name, value in random_values(spec.layout, 0).items()
    }
    values = {name: value.astype(np.float32) for name, value in values.items()}
    return nt_cpu.compile(Checkpoint(spec=spec, values=values, masks=masks, record=record or {}), **options)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    file = tmp_path_factory.mktemp("packed") / "model.nt"
    nt_cpu.pack(engine_of(batch=2), file)
    return file


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("threads", [1, 3])
def test_a_packed_file_serves_the_same_bits(name, threads, tmp_path):
    engine = engine_of(name, batch=2)
    nt_cpu.pack(engine, tmp_path / "model.nt")
    loaded = nt_cpu.load(tmp_path / "model.nt", threads=threads)
    x = random_input(engine.spec.graph, 5, 0)
    np.testing.assert_array_equal(loaded.heads(x), engine.heads(x))
    np.testing.assert_array_equal(loaded(x), engine(x))
    assert loaded.spec == engine.spec
    assert (loaded.batch, loaded.threads, loaded.kernels) == (2, threads, engine.kernels)


def test_what_was_fitted_and_recorded_is_packed(tmp_path):
    fitted = Fitted(weights=(0.75, 0.25), temperature=2.0)
    engine = engine_of(record={"fitted": fitted.model_dump(mode="json"), "name": "mine"})
    nt_cpu.pack(engine, tmp_path / "model.nt")
    loaded = nt_cpu.load(tmp_path / "model.nt")
    x = random_input(engine.spec.graph, 3, 0)
    assert loaded.aggregation == fitted
    assert loaded.record["name"] == "mine"
    np.testing.assert_array_equal(loaded(x), engine(x))


def test_its_numbers_are_mapped_not_read(packed):
    program = nt_cpu.load(packed).program
    assert isinstance(program.blob, np.memmap)
    assert not program.blob.flags.writeable


@given(st.data())
def test_an_altered_file_is_refused(packed, tmp_path_factory, data):
    content = bytearray(packed.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    content[where] ^= data.draw(st.integers(1, 255))
    altered = packed.with_name("altered.nt")
    altered.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"altered\.nt: "):
        nt_cpu.load(altered)


@given(st.integers(0, 10**6))
def test_a_truncated_file_is_refused(packed, length):
    content = packed.read_bytes()
    short = packed.with_name("short.nt")
    short.write_bytes(content[: min(length, len(content) - 1)])
    with pytest.raises(CheckpointError, match=r"short\.nt: "):
        nt_cpu.load(short)


def test_other_files_are_refused(tmp_path, packed):
    with pytest.raises(CheckpointError, match=r"absent\.nt: cannot be read"):
        nt_cpu.load(tmp_path / "absent.nt")
    save_file({"code": np.zeros(3)}, tmp_path / "other.nt")
    with pytest.raises(CheckpointError, match="not a packed ensemble"):
        nt_cpu.load(tmp_path / "other.nt")
    with pytest.raises(DataError, match="threads: expected at least 1, found 0"):
        nt_cpu.load(packed, threads=0)
    with pytest.raises(CheckpointError, match="cannot be written"):
        nt_cpu.pack(engine_of(), tmp_path / "absent" / "model.nt")


@pytest.mark.parametrize("change", [lambda code: code.view(np.uint8), lambda code: code[None]])
def test_a_program_of_another_dtype_or_shape_is_not_handed_to_the_kernels(packed, change, tmp_path):
    """They are told how many words there are, and believe it."""
    found = load_file(packed)
    metadata = tensors_in(packed)[1]
    found["code"] = change(found["code"])
    metadata["sha256"] = _digest(metadata["packed"], Program(**found))
    save_file(found, tmp_path / "forged.nt", metadata)
    with pytest.raises(CheckpointError, match=r"forged\.nt: .* expected rows of I64 and U8"):
        nt_cpu.load(tmp_path / "forged.nt")


def test_a_file_of_another_version_is_refused(packed, monkeypatch):
    monkeypatch.setattr("nt_cpu.packed.VERSION", 99)
    with pytest.raises(CheckpointError, match="this library reads 99; pack it again"):
        nt_cpu.load(packed)


def test_without_kernels_a_packed_file_says_what_to_do(packed, monkeypatch):
    monkeypatch.setattr("nt_cpu.packed.kernels", lambda: None)
    with pytest.raises(
        NeuroTrailsError, match=r"not installed: pip install .*; without them, compile the run"
    ):
        nt_cpu.load(packed)


def test_the_metadata_are_plain_json(packed):
    about = json.loads(tensors_in(packed)[1]["packed"])
    assert EnsembleSpec.from_dict(about["spec"]) == engine_of().spec


def test_memory_is_at_most_thirteen_bytes_for_each_active_weight():
    graph = nt_models.wide_resnet(depth=16, width=4, classes=10, size=32)
    for topology in (Static(sparsity=0.8), Static(sparsity=0.95), Dense()):
        spec = EnsembleSpec(graph=graph, structure=MultiHead(split=2, heads=3), topology=topology)
        masks = dict(initial_masks(spec.topology, spec.layout, 0))
        values = {
            name: np.where(masks[name].dense(), 1, 0).astype(np.float32) if name in masks else value
            for name, value in random_values(spec.layout, 0).items()
        }
        program = nt_cpu.compile((spec, values)).program
        active = sum(np.count_nonzero(value) for value in values.values())
        assert program.blob.nbytes + program.code.nbytes <= 1.6 * 8 * active
