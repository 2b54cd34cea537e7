from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nt_core.errors import SpecError
from nt_core.topology import DropFraction, schedules
from nt_core.topology.schedules import SCHEDULES, constant, cosine, cubic_sparsity, linear

fractions = st.floats(0, 1)
steps = st.integers(0, 10**9)
names = st.sampled_from(sorted(SCHEDULES))
ROUNDING = 1e-15


def test_the_table_names_every_schedule() -> None:
    assert SCHEDULES.items() >= {"constant": constant, "cosine": cosine, "linear": linear}.items()
    assert all(getattr(schedules, name) is schedule for name, schedule in SCHEDULES.items())


def test_a_spec_takes_the_schedules_of_the_table_and_no_other() -> None:
    schema = DropFraction.model_json_schema()["properties"]["schedule"]
    assert schema["enum"] == list(SCHEDULES)
    assert [DropFraction(schedule=name).schedule for name in SCHEDULES] == list(SCHEDULES)
    with pytest.raises(SpecError) as caught:
        DropFraction(schedule="cosin")
    assert all(repr(name) in str(caught.value) for name in SCHEDULES)


@given(names, fractions, steps, steps)
def test_a_drop_fraction_is_bounded_starts_at_its_start_and_ends_at_0(
    name: str, start: float, step: int, end: int
) -> None:
    schedule = SCHEDULES[name]
    assert 0 <= schedule(start, step, end) <= start
    assert schedule(start, end, end) == schedule(start, end + step, end) == 0
    assert schedule(start, 0, end + 1) == start


@given(names, fractions, steps, st.integers(0, 10**6), steps)
def test_a_drop_fraction_never_rises(name: str, start: float, step: int, more: int, end: int) -> None:
    schedule = SCHEDULES[name]
    assert schedule(start, step + more, end) <= schedule(start, step, end) + ROUNDING


@given(fractions, st.integers(0, 10**6))
def test_halfway_cosine_and_linear_are_at_half(start: float, half: int) -> None:
    if half:
        assert cosine(start, half, 2 * half) == pytest.approx(start / 2, abs=ROUNDING)
        assert linear(start, half, 2 * half) == pytest.approx(start / 2, abs=ROUNDING)


@given(fractions, steps, steps)
def test_cosine_and_linear_are_their_formulas(start: float, step: int, end: int) -> None:
    if step < end:
        assert cosine(start, step, end) == pytest.approx(start * (1 + math.cos(math.pi * step / end)) / 2)
        assert linear(start, step, end) == pytest.approx(start * (1 - step / end))
        assert constant(start, step, end) == start


@given(fractions, steps, steps, steps)
def test_cubic_sparsity_is_bounded_and_its_ends_are_exact(
    final: float, step: int, begin: int, length: int
) -> None:
    end = begin + length
    assert 0 <= cubic_sparsity(final, step, begin, end) <= final
    assert cubic_sparsity(final, end + step, begin, end) == final
    if length:
        assert cubic_sparsity(final, max(begin - step, 0), begin, end) == 0


@given(fractions, steps, st.integers(0, 10**6), steps, steps)
def test_cubic_sparsity_never_falls(final: float, step: int, more: int, begin: int, length: int) -> None:
    end = begin + length
    before = cubic_sparsity(final, step, begin, end)
    assert before <= cubic_sparsity(final, step + more, begin, end) + ROUNDING


@given(fractions, st.integers(0, 10**6), st.integers(1, 10**6))
def test_cubic_sparsity_halfway_is_seven_eighths(final: float, begin: int, half: int) -> None:
    assert cubic_sparsity(final, begin + half, begin, begin + 2 * half) == pytest.approx(final * 7 / 8)
