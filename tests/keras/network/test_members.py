"""Members that share kernels, in Keras: their rows, targets, weight decay and distillation."""

import keras
import numpy as np
import pytest
from members import *  # noqa: F403
from members import SHARING
from scipy.special import log_softmax

import nt_keras
from nt_core import OneRun
from nt_core.testing import Blobs
from nt_core.training import SGD, AdamW, Training


def test_fit_splits_a_batch_among_members_and_predict_shows_each_all_of_it(tmp_path):
    model = nt_keras.compile(SHARING["batch_ensemble"])
    model.compile(
        optimizer=keras.optimizers.SGD(0.1),
        loss=nt_keras.ensemble_loss(),
        metrics=[nt_keras.EnsembleAccuracy()],
    )
    x, y = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32), np.arange(60) % 3
    history = model.fit(x, y, batch_size=30, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    logits = model.predict(x[:4], verbose=0)
    assert logits.shape == (4, 3, 3)
    model.save(tmp_path / "members.keras")
    loaded = keras.saving.load_model(tmp_path / "members.keras")
    np.testing.assert_array_equal(loaded.predict(x[:4], verbose=0), logits)


def test_targets_of_each_members_own_are_member_major():
    rng = np.random.default_rng(0)
    logits, own = rng.normal(size=(4, 3, 5)).astype(np.float32), rng.integers(0, 5, 12)
    log_p = log_softmax(logits, -1)
    expected = -np.mean([log_p[row, m, own[4 * m + row]] for m in range(3) for row in range(4)])
    np.testing.assert_allclose(float(nt_keras.ensemble_loss()(own, logits)), expected, rtol=1e-5)


def test_distillation_teaches_members_their_detached_mean_at_its_temperature():
    logits = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    targets = np.array([0, 1, 2, 3])
    plain, distilled = (
        float(nt_keras.ensemble_loss(reduction="sum", distillation=t)(targets, logits)) for t in (None, 3.0)
    )
    teacher, students = log_softmax(logits.mean(1, keepdims=True) / 3, -1), log_softmax(logits / 3, -1)
    kl = (np.exp(teacher) * (teacher - students)).sum(-1)
    np.testing.assert_allclose(distilled - plain, 9 * kl.sum(1).mean(), rtol=1e-4)


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_weight_decay_leaves_factors_alone(optimizer):
    spec = SHARING["batch_ensemble"].replace(plan=OneRun(steps=1))
    before = nt_keras.compile(spec)
    recipe = Training(batch_size=30, optimizer=optimizer(lr=1e-9, weight_decay=1e8))
    after = nt_keras.train(spec, recipe, Blobs()).model
    for placed in spec.layout.weights:
        one, other = before.array(placed.name), after.array(placed.name)
        if placed.weight.role == "factor":
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)
        elif placed.weight.role == "kernel":
            np.testing.assert_allclose(other, 0.9 * one, rtol=1e-3, atol=1e-5)
