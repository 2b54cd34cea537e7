"""What is said of numbers that are not finite."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nt_core import NotFiniteError, TopologyError
from nt_core.finite import gradient_not_finite
from nt_core.training import Training

NORMS = st.dictionaries(st.text("abc/", min_size=1), st.floats(min_value=0) | st.just(math.nan), min_size=1)


@given(norms=NORMS, step=st.integers(1, 10**9))
def test_the_first_weight_whose_gradient_is_not_finite_is_named(norms, step):
    error = gradient_not_finite(step, 0.1, norms)
    assert isinstance(error, NotFiniteError)
    assert isinstance(error, TopologyError)
    bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
    named = str(error).partition(", step")[0]
    if bad:
        assert named == f"weight {bad[0]!r}"
        assert (f"of {len(bad) - 1} other" in str(error)) == (len(bad) > 1)
    else:
        assert norms[named.removeprefix("weight ").strip("'")] == max(norms.values())
        assert "the norm of all gradients overflows" in str(error)
    assert f"after step {step - 1}," in str(error)


def test_a_recipe_stops_unless_it_says_otherwise():
    assert Training().non_finite == "stop"
    with pytest.raises(ValueError, match="non_finite"):
        Training(non_finite="ignore")
