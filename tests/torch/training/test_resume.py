"""Trainings in PyTorch that are stopped and gone on with come to the same end, bit for bit."""

import pytest
from resume import *  # noqa: F403
from resume import any_step_will_do, expect_to_go_on

from nt_core import PRESETS

test_any_step_will_do = any_step_will_do(max_examples=15, max_stops=4)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_goes_on_where_it_stopped(backend, preset, accumulation, tmp_path):
    expect_to_go_on(backend, preset, accumulation, tmp_path, stops=(1, 4, 5, 8))
