"""Several devices train as one does; those of TensorFlow are tested in tests/keras/engines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).with_name("two_devices.py")


def test_two_devices_of_jax_choose_the_same_topology_as_one(tmp_path):
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path / "found.npz")], check=True)
    found = np.load(tmp_path / "found.npz")
    names = [name.removeprefix("mask 1 ") for name in found if name.startswith("mask 1 ")]
    assert len(names) == 3
    for name in names:
        np.testing.assert_array_equal(found[f"mask 1 {name}"], found[f"mask 2 {name}"])
        np.testing.assert_allclose(found[f"weight 1 {name}"], found[f"weight 2 {name}"], rtol=0, atol=1e-6)
