from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.optimize import minimize

from nt_core.errors import DataError, SpecError
from nt_core.metrics import Fitted, Metrics, aggregate, fit
from nt_core.metrics.aggregation import fit_temperature, fit_weights


@st.composite
def held_out(draw: st.DrawFn, most: float = 30.0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits (M, N, C) and labels, some members right more often than others."""
    members, count, classes = draw(st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(2, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, classes, count)
    skill = rng.normal(0, 3, (members, 1, 1)) * np.eye(classes)[labels]
    logits = (skill + rng.normal(size=(members, count, classes))) * draw(st.floats(0.01, most))
    return logits, labels


def nll(logits: NDArray[Any], labels: NDArray[Any], how: Any) -> float:
    return Metrics.of(logits, labels, how).nll


@given(held_out(), st.booleans())
def test_fitted_is_on_the_simplex_and_never_worse_than_uniform(batch: Any, temperature: bool) -> None:
    logits, labels = batch
    found = fit(logits, labels, temperature=temperature)
    assert min(found.weights) >= 0
    assert sum(found.weights) == pytest.approx(1, abs=1e-9)
    assert found.temperature == 1 or temperature
    assert nll(logits, labels, found) <= nll(logits, labels, "mean_prob") + 1e-9


@settings(max_examples=30)
@given(held_out(most=3.0))
def test_the_weights_are_within_the_gap_of_the_best(batch: Any) -> None:
    logits, labels = batch
    found = fit(logits, labels, temperature=False)
    members = len(logits)

    def of_free(free: NDArray[Any]) -> float:
        weights = np.exp(free - free.max())
        return nll(logits, labels, Fitted(weights=tuple((weights / weights.sum()).tolist())))

    best = minimize(of_free, np.zeros(members), method="Nelder-Mead", options={"maxfev": 300}).fun
    assert nll(logits, labels, found) <= best + 1e-6


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 40), st.floats(-6, 1))
def test_the_weights_have_their_certificate_however_alike_members_are(
    seed: int, members: int, count: int, power: float
) -> None:
    log_likelihoods = -np.abs(np.random.default_rng(seed).normal(size=(members, count))) * 10**power
    weights = fit_weights(log_likelihoods)
    likelihoods = np.exp(log_likelihoods)
    assert (likelihoods / (weights @ likelihoods)).mean(axis=1).max() <= 1 + 1.001e-6


@given(held_out(most=5.0), st.randoms())
def test_fitting_is_equivariant_to_the_order_of_members(batch: Any, random: Any) -> None:
    logits, labels = batch
    order = random.sample(range(len(logits)), len(logits))
    found, permuted = fit(logits, labels), fit(logits[order], labels)
    np.testing.assert_allclose(permuted.weights, np.array(found.weights)[order], atol=1e-6)
    assert permuted.temperature == pytest.approx(found.temperature, rel=1e-3)


@given(held_out(), st.integers(1, 4))
def test_identical_members_keep_equal_weights(batch: Any, members: int) -> None:
    logits, labels = batch
    same = np.repeat(logits[:1], members, axis=0)
    np.testing.assert_allclose(fit(same, labels).weights, 1 / members)


@given(held_out())
def test_one_member_is_temperature_scaling(batch: Any) -> None:
    logits, labels = batch[0][:1], batch[1]
    found = fit(logits, labels)
    assert found.weights == (1.0,)
    scaled = aggregate(logits / found.temperature)
    np.testing.assert_allclose(aggregate(logits, found), scaled, rtol=1e-6, atol=1e-6)


def test_the_temperature_recovers_what_logits_were_multiplied_by() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(20_000, 4))
    probabilities = np.exp(aggregate(honest[None]))
    labels = (probabilities.cumsum(axis=1) > rng.uniform(size=(20_000, 1))).argmax(axis=1)
    assert fit_temperature(aggregate(honest[None] * 3), labels) == pytest.approx(3, rel=0.03)


@given(hnp.arrays(np.float64, (3, 7), elements=st.floats(-1e4, 0)))
def test_weights_survive_likelihoods_beyond_the_range_of_floats(log_likelihoods: NDArray[Any]) -> None:
    weights = fit_weights(log_likelihoods)
    assert np.isfinite(weights).all()
    assert weights.sum() == pytest.approx(1)


def test_weights_of_one_member_alone_give_its_prediction() -> None:
    logits = np.array([[[800.0, 0.0]], [[0.0, 900.0]]])
    np.testing.assert_allclose(aggregate(logits, Fitted(weights=(0.0, 1.0))), [[-900.0, 0.0]])


@given(held_out())
def test_equal_weights_are_mean_prob(batch: Any) -> None:
    logits, _ = batch
    uniform = Fitted(weights=(1 / len(logits),) * len(logits))
    np.testing.assert_allclose(aggregate(logits, uniform), aggregate(logits), rtol=1e-9, atol=1e-12)


def test_bad_input() -> None:
    logits, labels = np.zeros((2, 3, 4)), np.zeros(3, int)
    for bad in (logits[0], logits[:, :0], logits[:, :2]):
        with pytest.raises(DataError, match="expected logits"):
            fit(bad, labels[: bad.shape[1] - (bad.shape[1] == 2)] if bad.ndim == 3 else labels)
    with pytest.raises(DataError, match="finite"):
        fit(logits * np.nan, labels)
    with pytest.raises(DataError, match=r"expected a sum of 1, found 1\.5"):
        Fitted(weights=(1.0, 0.5))
    with pytest.raises(SpecError, match=r"fitted\.weights\.1: input should be greater than or equal to 0"):
        Fitted(weights=(1.5, -0.5))
    with pytest.raises(DataError, match="fitted for 1 members, found 2"):
        aggregate(logits, Fitted(weights=(1.0,)))
