"""Pruning at initialisation in PyTorch, held to the NumPy reference."""

import pytest
import torch
from saliency import *  # noqa: F403
from saliency import BOTH, compiled, expect_gradients, expect_masks

from nt_core.testing.models import MODELS
from nt_core.testing.saliency import saliency_case


@BOTH
@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_masks_are_the_references(backend, name, criterion):
    case = saliency_case(name, criterion)
    model = compiled(backend, case, torch.float64)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    truth = expect_gradients(backend, model, case, criterion)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), f"{key} changed"
    assert model.training
    expect_masks(backend, model, compiled(backend, case, torch.float32), case, truth)
