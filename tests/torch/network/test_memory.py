"""What building a model needs, measured in a process of its own."""

import subprocess
import sys

BUILD = """
import resource

import nt_models
import nt_torch
from nt_core import PRESETS

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

sizes = dict(blocks=9, width=384, hidden=768, heads=8, vocabulary=384, length=64)
nt_torch.compile(PRESETS["neurotrails_lm"](nt_models.llama(**sizes | {"blocks": 1})))
before = peak()
model = nt_torch.compile(PRESETS["neurotrails_lm"](nt_models.llama(**sizes)))
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print(weights, peak() - before)
"""


def test_building_a_model_needs_little_more_than_its_weights_and_masks() -> None:
    run = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, check=True)
    weights, needed = map(int, run.stdout.split())
    assert weights > 85e6
    assert needed < 1.3 * weights
