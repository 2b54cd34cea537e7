"""Trainings in Keras that are stopped and gone on with come to the same end, bit for bit."""

import pytest
from resume import *  # noqa: F403
from resume import any_step_will_do, both, expect_to_go_on, short

from nt_core import PRESETS, OneRun
from nt_core.training import Training

test_any_step_will_do = any_step_will_do(max_examples=2, max_stops=2)


@pytest.mark.parametrize(
    ("preset", "accumulation"),
    [*((preset, 1) for preset in PRESETS), *((preset, 3) for preset in ("neurotrails", "edst", "snfs"))],
)
def test_every_preset_goes_on_where_it_stopped(backend, preset, accumulation, tmp_path):
    expect_to_go_on(backend, preset, accumulation, tmp_path, stops=(6,))  # starting takes most of the time


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_sums_of_an_epoch_do_not_enter_the_next(backend, policy, tmp_path):
    spec = short("snfs").replace(plan=OneRun(epochs=2))
    found = both(backend, spec, Training(batch_size=30, non_finite=policy), tmp_path, stops=(3,))
    assert [event["step"] for event in found.history if event["event"] == "epoch"] == [3, 6]
