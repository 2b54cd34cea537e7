"""Plans in PyTorch: EDST, and members one at a time."""

import pytest
from plans import *  # noqa: F403
from plans import expect_apart_as_together


@pytest.mark.parametrize("at_once", [1, 2])
def test_members_one_at_a_time_are_those_trained_together_to_the_bit(backend, at_once):
    expect_apart_as_together(backend, at_once, atol=0, rel=0)
