from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from nt_core.errors import CheckpointError
from nt_core.files import TENSORS, stored_tensors, write_tensors

BITS = st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=40)


def write(folder: Path, dtype: str, bits: list[int]) -> None:
    """Write 16-bit patterns behind another tensor, so that they begin anywhere."""
    data = b"abc" + np.array(bits, "<u2").tobytes()
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "x": {"dtype": dtype, "shape": [1, len(bits)], "data_offsets": [3, len(data)]},
    }
    text = json.dumps(header).encode()
    (folder / TENSORS).write_bytes(struct.pack("<Q", len(text)) + text + data)


@given(BITS)
def test_every_bfloat16_is_read_right(tmp_path_factory: pytest.TempPathFactory, bits: list[int]) -> None:
    folder = tmp_path_factory.mktemp("folder")
    write(folder, "BF16", bits)
    expected = [struct.unpack("<f", struct.pack("<HH", 0, each))[0] for each in bits]
    found = stored_tensors(folder)["x"].read()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([expected], np.float32))


@given(BITS)
def test_every_float16_is_read_right(tmp_path_factory: pytest.TempPathFactory, bits: list[int]) -> None:
    folder = tmp_path_factory.mktemp("folder")
    write(folder, "F16", bits)
    expected = np.array([bits], np.uint16).view(np.float16)
    found = stored_tensors(folder)["x"].read()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_what_is_written_is_read_to_the_bit(tmp_path: Path) -> None:
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.float32([-0.0, np.inf])}
    write_tensors(tmp_path / TENSORS, tensors)
    assert list(tmp_path.iterdir()) == [tmp_path / TENSORS]
    stored = stored_tensors(tmp_path)
    for name, value in load_file(tmp_path / TENSORS).items():
        np.testing.assert_array_equal(value, tensors[name])
        assert stored[name].read().tobytes() == tensors[name].tobytes()
        assert stored[name].read().flags.writeable


def test_other_dtypes_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "U16", [1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected F32, F16, BF16, found .* U16"):
        stored_tensors(tmp_path)["x"].read()


def test_a_file_that_went_away_is_named(tmp_path: Path) -> None:
    write(tmp_path, "F16", [1])
    tensor = stored_tensors(tmp_path)["x"]
    (tmp_path / TENSORS).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        tensor.read()
