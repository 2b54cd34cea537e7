"""A run on disk, trained for a moment."""

import pytest

import nt_models
from nt_core.spec import spell_out
from nt_lab.training.train import train


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "neurotrails"
    spec = {
        "name": "served",
        "graph": {"name": "wide_resnet", "depth": 10, "width": 1, "classes": 10, "size": 8, "channels": 1},
        "preset": "neurotrails",
        "structure": {"kind": "multi_head", "split": 1, "heads": 3},
        "plan": {"epochs": 2},
        "data": {"source": "digits"},
    }
    train(spell_out(spec, nt_models.ARCHITECTURES), folder)
    return folder
