"""Batches that are too small, and labels that do not count, in PyTorch."""

import pytest
import torch
from batches import *  # noqa: F403
from batches import WORDS

import nt_torch
from nt_core import PRESETS, DataError
from nt_core.metrics import IGNORED


def test_a_label_outside_the_classes_makes_the_loss_nan_where_it_cannot_be_seen(monkeypatch):
    """On a GPU, and in compiled code, nobody waits for the labels."""
    logits = torch.randn(3, 4, 10, requires_grad=True)
    targets = torch.tensor([1, 2, IGNORED, 4])
    expected = nt_torch.ensemble_loss(logits, targets)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(nt_torch.ensemble_loss(logits, targets), expected)
    for label in (-1, 10, 2**40):
        targets[0] = label
        assert torch.isnan(nt_torch.ensemble_loss(logits, targets))


@pytest.mark.parametrize("how", [{}, {"label_smoothing": 0.1}, {"distillation": 2.0}, {"reduction": "sum"}])
@pytest.mark.parametrize("shape", [(4,), (12,), (4, 5)])
def test_ignored_labels_are_left_out_of_every_loss(how, shape):
    logits = torch.randn(3, 4, *shape[1:], 10, requires_grad=True)
    targets = torch.randint(10, shape)
    targets.view(-1)[1::3] = IGNORED
    loss = nt_torch.ensemble_loss(logits, targets, **how)
    (gradient,) = torch.autograd.grad(loss, logits)
    counted = (targets if shape == (12,) else targets.expand(3, *shape)).reshape(-1) != IGNORED
    assert not gradient.reshape(-1, 10)[~counted].any()
    if shape == (12,):
        return
    left = logits[:, counted.reshape(3, *shape)[0]]
    expected = nt_torch.ensemble_loss(left, targets[targets != IGNORED], **how)
    torch.testing.assert_close(loss, expected)
    nothing = nt_torch.ensemble_loss(logits, torch.full(shape, IGNORED), **how)
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, logits)[0].any()


def test_class_numbers_are_whole_numbers_of_any_width():
    logits, targets = torch.randn(2, 3, 4), torch.tensor([0, 1, 3])
    expected = nt_torch.ensemble_loss(logits, targets)
    for dtype in (torch.int32, torch.int8, torch.uint8):
        assert torch.equal(nt_torch.ensemble_loss(logits, targets.to(dtype)), expected)
    with pytest.raises(DataError, match=r"targets: expected class numbers, found torch\.float32"):
        nt_torch.ensemble_loss(logits, targets.float())


def test_tokens_of_floats_in_a_loop_of_one_s_own_are_refused():
    model = nt_torch.compile(PRESETS["single"](WORDS))
    with pytest.raises(DataError, match=r"expected tokens, whole numbers from 0 to 4, found torch\.float32"):
        model(torch.zeros(2, 4))
