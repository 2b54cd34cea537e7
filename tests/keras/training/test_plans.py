"""Plans in Keras, on the engine in use: EDST, and members one at a time."""

import pytest
from plans import *  # noqa: F403
from plans import expect_apart_as_together


@pytest.mark.parametrize("at_once", [2])
def test_members_one_at_a_time_are_those_trained_together(backend, at_once):
    """Nearly: the mean over members and batch is summed in another order."""
    expect_apart_as_together(backend, at_once, atol=1e-6, rel=1e-5)
