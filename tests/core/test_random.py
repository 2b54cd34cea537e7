from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats

import nt_core.random as nt_random
from nt_core.random import Random, Stream, threefry2x32

words = st.integers(0, 2**32 - 1)
streams = st.builds(Stream, st.tuples(words, words))
draws = st.sampled_from(["bits", "uniform", "gumbel", "normal"])
positions = hnp.arrays(
    np.int64, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0), elements=st.integers(0, 2**63 - 1)
)
names = st.tuples(st.integers(), st.text(), st.integers(0, 2**40), st.text())


def block(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """Threefry-2×32-20 in plain integers, written from the paper's description."""
    schedule = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = ((c + k) % 2**32 for c, k in zip(counter, key, strict=True))
    for i in range(20):
        rotation = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        x = (x + y) % 2**32
        y = ((y << rotation | y >> (32 - rotation)) % 2**32) ^ x
        if i % 4 == 3:
            r = i // 4 + 1
            x, y = (x + schedule[r % 3]) % 2**32, (y + schedule[(r + 1) % 3] + r) % 2**32
    return x, y


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_the_published_known_answers(counter: Any, key: Any, answer: Any) -> None:
    found = threefry2x32(key, *(np.array([word], np.uint32) for word in counter))
    assert tuple(int(word[0]) for word in found) == answer
    assert block(key, counter) == answer
    assert Stream(key).bits(np.array(counter[0] | counter[1] << 32, np.uint64)) == answer[0]


@given(st.tuples(words, words), hnp.arrays(np.uint32, hnp.array_shapes(max_dims=2, max_side=4)), words)
def test_threefry_is_its_definition_and_leaves_its_arguments_alone(
    key: tuple[int, int], counter0: NDArray[np.uint32], shift: int
) -> None:
    counter1 = counter0 ^ np.uint32(shift)
    before = counter0.copy(), counter1.copy()
    found = threefry2x32(key, counter0, counter1)
    assert found[0].shape == found[1].shape == counter0.shape
    for index in np.ndindex(counter0.shape):
        wanted = block(key, (int(counter0[index]), int(counter1[index])))
        assert (int(found[0][index]), int(found[1][index])) == wanted
    np.testing.assert_array_equal(counter0, before[0])
    np.testing.assert_array_equal(counter1, before[1])


@given(streams, draws, positions)
def test_a_value_depends_only_on_its_position(stream: Stream, draw: str, where: NDArray[np.int64]) -> None:
    values = getattr(stream, draw)(where)
    assert values.shape == where.shape
    for index in np.ndindex(where.shape):
        np.testing.assert_array_equal(getattr(stream, draw)(where[index].reshape(1))[0], values[index])


@given(streams, draws, positions, st.integers(1, 7))
def test_chunking_changes_nothing(stream: Stream, draw: str, where: NDArray[np.int64], chunk: int) -> None:
    whole = getattr(stream, draw)(where)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nt_random, "_CHUNK", chunk)
        np.testing.assert_array_equal(getattr(stream, draw)(where), whole)


@given(streams, draws, st.integers(0, 2**62), st.integers(0, 40), st.integers(1, 2**40))
def test_a_slice_stands_for_its_range(stream: Stream, draw: str, start: int, size: int, step: int) -> None:
    part = slice(start, start + size * step, step)
    where = start + step * np.arange(size)
    np.testing.assert_array_equal(getattr(stream, draw)(part), getattr(stream, draw)(where))


def test_a_slice_may_leave_out_start_and_step() -> None:
    np.testing.assert_array_equal(Stream((1, 2)).bits(slice(5)), Stream((1, 2)).bits(np.arange(5)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_the_type_of_the_positions_changes_nothing(dtype: type[np.integer[Any]]) -> None:
    stream = Stream((3, 4))
    np.testing.assert_array_equal(stream.uniform(np.arange(100).astype(dtype)), stream.uniform(slice(0, 100)))


def test_positions_beyond_32_bits_differ_from_those_below() -> None:
    low = np.arange(100)
    assert not np.array_equal(Stream((3, 4)).bits(low), Stream((3, 4)).bits(low + 2**32))


@given(streams, positions)
def test_all_values_are_finite_and_uniform_ones_inside_the_open_interval(
    stream: Stream, where: NDArray[np.int64]
) -> None:
    uniform = stream.uniform(where)
    assert ((uniform > 0) & (uniform < 1)).all()
    np.testing.assert_array_equal(stream.gumbel(where), -np.log(-np.log(uniform)))
    assert np.isfinite(stream.gumbel(where)).all()
    assert np.isfinite(stream.normal(where)).all()


@pytest.mark.parametrize(("word", "value"), [(0, 2.0**-53), (2**32 - 1, 1 - 2.0**-53)])
def test_uniform_never_reaches_0_or_1_whatever_the_bits(word: int, value: float) -> None:
    out = np.empty(1)
    nt_random._uniform(np.array([word], np.uint32), np.array([word], np.uint32), out)
    assert out[0] == value
    assert 0 < value < 1


@settings(max_examples=200)
@given(names, names)
def test_streams_are_equal_exactly_when_their_names_are(
    a: tuple[int, str, int, str], b: tuple[int, str, int, str]
) -> None:
    def stream(seed: int, weight: str, step: int, purpose: str) -> Stream:
        return Random(seed).at(weight=weight, step=step, purpose=purpose)

    assert stream(*a) == stream(*a)
    assert (stream(*a) == stream(*b)) == (a == b)


def test_names_do_not_run_into_each_other() -> None:
    at = Random(1).at
    assert at(weight="a", purpose="b,c") != at(weight='a",0,"b', purpose="c")
    assert at(weight="ab", purpose="c") != at(weight="a", purpose="bc")


def test_the_key_is_as_documented() -> None:
    digest = hashlib.blake2b(b'[-3,"head1/\\u00e9",7,"grow"]', digest_size=8).digest()
    wanted = tuple(int(word) for word in np.frombuffer(digest, "<u4"))
    assert Random(-3).at(weight="head1/é", step=7, purpose="grow").key == wanted


@pytest.mark.parametrize(
    ("draw", "distribution"), [("uniform", "uniform"), ("gumbel", "gumbel_r"), ("normal", "norm")]
)
def test_values_follow_their_distribution(draw: str, distribution: str) -> None:
    stream = Random(0).at(weight="w", purpose=draw)
    values = getattr(stream, draw)(slice(0, 50_000))
    assert stats.kstest(values, distribution).pvalue > 1e-3
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
    other = getattr(Random(1).at(weight="w", purpose=draw), draw)(slice(0, 50_000))
    assert abs(np.corrcoef(values, other)[0, 1]) < 0.02


def test_every_bit_is_fair() -> None:
    bits = np.unpackbits(Stream((5, 6)).bits(slice(0, 20_000)).view(np.uint8).reshape(-1, 4), axis=1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.02
