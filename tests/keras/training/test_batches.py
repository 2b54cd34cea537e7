"""Batches that are too small, and labels that do not count, in Keras."""

import numpy as np
import pytest
from batches import *  # noqa: F403
from batches import WORDS

import nt_keras
from nt_core import PRESETS, DataError
from nt_core.metrics import IGNORED


@pytest.mark.parametrize("how", [{}, {"label_smoothing": 0.1, "distillation": 2.0, "reduction": "sum"}])
@pytest.mark.parametrize("shape", [(4,), (4, 5)])
def test_ignored_labels_are_left_out_of_every_loss_and_metric(how, shape):
    draw = np.random.default_rng(0)
    logits = draw.standard_normal((4, 3, *shape[1:], 10)).astype(np.float32)
    targets = draw.integers(0, 10, shape)
    targets.reshape(-1)[1::3] = IGNORED
    counted = targets != IGNORED
    left = np.moveaxis(logits, 1, -2)[counted].reshape(-1, 3, 10), targets[counted]
    loss = nt_keras.ensemble_loss(**how)
    np.testing.assert_allclose(float(loss(targets, logits)), float(loss(left[1], left[0])), rtol=1e-5)
    assert float(loss(np.full(shape, IGNORED), logits)) == 0
    for kind in (nt_keras.EnsembleAccuracy, nt_keras.Disagreement):
        ours, theirs, weighted = kind(), kind(), kind()
        ours.update_state(targets, logits)
        theirs.update_state(left[1], left[0])
        weighted.update_state(targets, logits, np.ones(4))
        np.testing.assert_allclose(float(ours.result()), float(theirs.result()), rtol=1e-6)
        np.testing.assert_allclose(float(weighted.result()), float(theirs.result()), rtol=1e-6)


@pytest.mark.parametrize("verb", ["fit", "call", "predict"])
def test_tokens_of_floats_in_a_loop_of_one_s_own_are_refused(verb):
    model = nt_keras.compile(PRESETS["single"](WORDS))
    model.compile(optimizer="sgd", loss=nt_keras.ensemble_loss())
    given, labels = np.full((2, 4), 1.5, np.float32), np.ones((2, 4), int)
    attempts = {
        "fit": lambda: model.fit(given, labels),
        "call": lambda: model(given),
        "predict": lambda: model.predict(given),
    }
    with pytest.raises(DataError, match="expected tokens, whole numbers from 0 to 4, found float32"):
        attempts[verb]()
