"""Members that share kernels, in PyTorch: their rows, targets, weight decay and distillation."""

import numpy as np
import pytest
import torch
from members import *  # noqa: F403
from members import SHARING
from scipy.special import log_softmax

import nt_torch
from nt_core import DataError, OneRun
from nt_core.testing import Blobs
from nt_core.training import SGD, Training


def test_logits_in_training_are_each_members_own_rows():
    model = nt_torch.compile(SHARING["batch_ensemble"])
    x = torch.randn(6, 6)
    assert model(x).shape == (3, 2, 3)
    assert model.eval()(x).shape == (3, 6, 3)
    with pytest.raises(DataError, match="8 rows cannot be divided among 3 members"):
        model.train()(torch.randn(8, 6))


def test_targets_of_each_members_own_are_member_major():
    logits, own = torch.randn(3, 4, 5), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1])
    expected = torch.stack(
        [torch.nn.functional.cross_entropy(logits[m], own[4 * m : 4 * m + 4]) for m in range(3)]
    )
    torch.testing.assert_close(nt_torch.ensemble_loss(logits, own), expected.mean())
    torch.testing.assert_close(nt_torch.ensemble_loss(logits, own, reduction="sum"), expected.sum())
    with pytest.raises(DataError, match="targets"):
        nt_torch.ensemble_loss(logits, own[:8])


def test_distillation_teaches_members_their_detached_mean_at_its_temperature():
    logits = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 3])
    plain = nt_torch.ensemble_loss(logits, targets, reduction="sum")
    loss = nt_torch.ensemble_loss(logits, targets, reduction="sum", distillation=3.0)
    z = logits.detach().numpy()
    teacher, students = log_softmax(z.mean(0, keepdims=True) / 3, -1), log_softmax(z / 3, -1)
    kl = (np.exp(teacher) * (teacher - students)).sum(-1)
    np.testing.assert_allclose((loss - plain).item(), 9 * kl.mean(1).sum(), rtol=1e-12)
    (gradient,) = torch.autograd.grad(loss - plain, logits)
    np.testing.assert_allclose(gradient, 3 * (np.exp(students) - np.exp(teacher)) / 4, rtol=0, atol=1e-12)


def test_weight_decay_leaves_factors_alone():
    spec = SHARING["batch_ensemble"].replace(plan=OneRun(steps=1))
    before = nt_torch.compile(spec)
    recipe = Training(batch_size=30, optimizer=SGD(lr=1e-12, momentum=0, weight_decay=1e11))
    after = nt_torch.train(spec, recipe, Blobs(), device="cpu").model
    for placed in spec.layout.weights:
        one, other = before.array(placed.name), after.array(placed.name)
        if placed.weight.role == "factor":
            torch.testing.assert_close(one, other)
        elif placed.weight.role == "kernel":
            torch.testing.assert_close(other, 0.9 * one, rtol=1e-4, atol=1e-6)
