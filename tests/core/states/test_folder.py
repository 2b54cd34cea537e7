"""States: written whole, checked when read, the last two kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nt_core import CheckpointError
from nt_core.files import write_atomically
from nt_core.states import State, States
from nt_core.states.file import read_state, write_state
from nt_core.testing.resumption import expect_same

KINDS = st.sampled_from(["<f4", "<f8", "<i8", "<i4", "<u4", "u1", "?"])
TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | arrays.arrays(KINDS, arrays.array_shapes(min_dims=0, max_side=4)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def state(step, **content):
    return State(step=step, training={"seed": 0}, content=content or {"w": np.full(3, step)})


@given(tree=TREES)
def test_what_is_written_is_read(tree, tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "step-1.safetensors"
    write_state(path, state(1, tree=tree))
    expect_same(read_state(path).content, {"tree": tree})


@given(data=st.data())
def test_no_damage_goes_unnoticed(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "step-1.safetensors"
    write_state(path, state(1, w=np.arange(5.0), text="abc", n=[1, 2.5, None]))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-1\.safetensors: "):
        read_state(path)


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path):
    states = States(tmp_path, every=1)
    for step in (1, 2, 3):
        states.save(state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000002.safetensors",
        "step-000000003.safetensors",
    ]
    write_atomically(tmp_path / "step-000000003.safetensors", b"torn")
    assert states.latest().step == 2
    write_atomically(tmp_path / "step-000000002.safetensors", b"torn")
    with pytest.raises(CheckpointError, match=r"truncated or no state of a training.*delete it"):
        states.latest()


def test_states_of_another_training_are_refused(tmp_path):
    States(tmp_path).save(state(1))
    assert States(tmp_path).latest({"seed": 0}).step == 1
    with pytest.raises(CheckpointError, match="a state of another training: seed: saved 0, asked 1"):
        States(tmp_path).latest({"seed": 1})


def test_leftovers_of_a_killed_write_are_cleared_away(tmp_path):
    (tmp_path / ".step-000000007.safetensors.123.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    states = States(tmp_path)
    assert states.latest() is None
    states.save(state(8))
    states.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_every_so_many_steps_or_seconds(tmp_path):
    assert [step for step in range(1, 10) if States(tmp_path, every=3).due(step)] == [3, 6, 9]
    assert not States(tmp_path, seconds=100).due(1)
    assert States(tmp_path, seconds=0).due(1)
    with pytest.raises(CheckpointError, match="found every=0"):
        States(tmp_path, every=0)


def test_a_newer_format_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("nt_core.states.file.FORMAT", 2)
    write_state(tmp_path / "s", state(1))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 2, but this library reads 1; upgrade neurotrails"):
        read_state(tmp_path / "s")
