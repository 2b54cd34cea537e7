from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, roc_auc_score
from typer.testing import CliRunner, Result

import nt_models
from nt_core import NeuroTrailsError
from nt_core.metrics import detection
from nt_lab.cli.main import app
from nt_lab.data import Normalisation
from nt_lab.evaluation import corruptions
from nt_lab.evaluation.corruptions import ALEXNET_ERROR, CORRUPTIONS, corrupt, is_imagenet, mce
from nt_lab.evaluation.ood import outsiders
from nt_lab.runs.backends import Backend

Make = Callable[[], Backend]


def nt(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})


def said(result: Result) -> str:
    assert result.exit_code == 2
    return " ".join(result.stderr.replace("│", " ").split())


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for ``imagecorruptions``: noise from NumPy's global generator, or from its own seed."""
    calls: list[dict[str, Any]] = []

    def noisy(image: Any, *, severity: int, corruption_name: str, seed: int | None = None) -> Any:
        assert (image.dtype, image.shape[2]) == (np.uint8, 3)
        calls.append({"name": corruption_name, "severity": severity, "seed": seed})
        print("as the package does for some sizes")  # noqa: T201
        draws = np.random.default_rng(seed) if seed is not None else np.random
        return np.clip(image + draws.normal(0, 10 * severity, image.shape), 0, 255).astype(np.uint8)

    monkeypatch.setitem(sys.modules, "imagecorruptions", SimpleNamespace(corrupt=noisy))
    return calls


@pytest.fixture
def run(tmp_path: Path, fake_backend: Make, labelled: Any, stored: Any) -> str:
    """A run on colour images of 32×32 in 4 classes."""
    source = stored(train=labelled(12, size=32), test=labelled(10, size=32, seed=1))
    graph = "graph={name: wide_resnet, depth: 10, width: 1, classes: 4, size: 32, channels: 3}"
    folder = str(tmp_path / "run")
    done = nt("train", "neurotrails", "--set", graph, "--steps", "1", "--data", source, "--out", folder)
    assert done.exit_code == 0, done.stderr
    return folder


# Out of distribution


scores = hnp.arrays(np.float64, st.integers(1, 30), elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]))


@given(scores, scores)
def test_detection_is_scikit_learns(inside: Any, outside: Any) -> None:
    labels = np.repeat([0, 1], [len(inside), len(outside)])
    both, found = np.concatenate([inside, outside]), detection(inside, outside)
    assert found.auroc == pytest.approx(roc_auc_score(labels, both), abs=1e-12)
    assert found.aupr == pytest.approx(average_precision_score(labels, both), abs=1e-12)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 48), (3, 32)])
def test_outsiders_are_made_to_fit(labelled: Any, stored: Any, channels: int, size: int) -> None:
    source = stored(train=labelled(6, size=size, channels=channels))
    normalisation = Normalisation(mean=(128, 128, 128), std=(64, 64, 64))
    found = outsiders(source, nt_models.wide_resnet(depth=10, width=1, size=32), normalisation)
    inputs, _ = next(found.epoch(0, 10))
    assert inputs.shape == (6, 3, 32, 32)
    assert (channels == 1) == bool((inputs[:, :1] == inputs).all())


def test_a_dataset_is_told_from_the_test_set(run: str, labelled: Any, tmp_path: Path) -> None:
    labelled(7, size=20, channels=1).save_to_disk(tmp_path / "other")
    result = json.loads(
        nt("evaluate", run, "--ood", str(tmp_path / "other"), "--limit", "5", "--json").stdout
    )
    assert result["count"] == 5
    found = result["ood"]
    assert (found["inside"], found["outside"]) == (5, 5)
    assert all(0 <= found[key] <= 1 for key in ("auroc", "aupr", "fpr95"))
    itself = json.loads(nt("evaluate", run, "--ood", str(tmp_path / "stored"), "--json").stdout)["ood"]
    assert itself["auroc"] == 0.5
    assert "AUROC" in nt("evaluate", run, "--ood", str(tmp_path / "stored")).stdout


def test_outsiders_that_cannot_fit_are_errors(run: str, labelled: Any, tmp_path: Path) -> None:
    DatasetDict(a=labelled(3), b=labelled(3)).save_to_disk(tmp_path / "two")
    assert "expected a split 'test' or only one, found a, b" in said(
        nt("evaluate", run, "--ood", str(tmp_path / "two"))
    )
    assert "no folder './nothing'" in said(nt("evaluate", run, "--ood", "./nothing"))
    one = Normalisation(mean=(0,), std=(1,))
    with pytest.raises(NeuroTrailsError, match="the graph expects 7 features, found 1×8×8"):
        outsiders("digits", nt_models.mlp(inputs=7, hidden=(4,), classes=4), one)
    two = Normalisation(mean=(0, 0), std=(1, 1))
    with pytest.raises(NeuroTrailsError, match="normalised for 2 channels, found 1"):
        outsiders("digits", nt_models.mlp(inputs=(1, 8, 8), hidden=(4,), classes=4), two)


# Corruptions


def test_every_corruption_is_measured_at_every_severity(run: str, package: list[dict[str, Any]]) -> None:
    result = nt("evaluate", run, "--corruptions", "--severities", "1,5", "--limit", "4", "--json")
    found = json.loads(result.stdout)["corruptions"]
    assert (found["severities"], found["count"], found["mce"]) == ([1, 5], 4, None)
    assert list(found["accuracy"]) == list(found["mean_accuracy"]) == list(CORRUPTIONS)
    assert {(call["name"], call["severity"]) for call in package} == {
        (name, severity) for name in CORRUPTIONS for severity in (1, 5)
    }
    assert len(package) == 15 * 2 * 4
    assert found["mean"] == pytest.approx(np.mean(list(found["accuracy"].values())))
    shown = nt("evaluate", run, "--corruptions", "--severities", "3", "--limit", "2")
    assert "15/15  jpeg_compression" in shown.stderr
    assert "mCE is defined for ImageNet" in " ".join(shown.stdout.split())


def test_a_corruption_depends_on_the_row_and_not_on_the_batch(package: list[dict[str, Any]]) -> None:
    images = np.full((3, 3, 32, 32), 128, np.uint8)
    rows = np.array([4, 5, 6])
    whole = corrupt(images, rows, "fog", 3)
    np.testing.assert_array_equal(corrupt(images[1:2], rows[1:2], "fog", 3), whole[1:2])
    assert (corrupt(images[:1], rows[:1], "fog", 2) != whole[:1]).any()
    assert (corrupt(images[:1], rows[:1], "fog", 3, seed=1) != whole[:1]).any()
    assert (whole[0] != whole[1]).any()


@pytest.mark.parametrize("name", ["impulse_noise", "glass_blur"])
def test_corruptions_that_the_package_does_not_draw_from_the_global_generator_are_seeded_too(
    package: list[dict[str, Any]], name: str
) -> None:
    images, rows = np.full((2, 3, 32, 32), 128, np.uint8), np.array([0, 1])
    np.testing.assert_array_equal(corrupt(images, rows, name, 1), corrupt(images, rows, name, 1))
    assert None not in [call["seed"] for call in package]


def test_the_global_generator_is_left_as_it_was(package: list[dict[str, Any]]) -> None:
    np.random.seed(5)
    expected = np.random.uniform()
    np.random.seed(5)
    corrupt(np.zeros((1, 1, 32, 32), np.uint8), np.array([0]), "snow", 1)
    assert np.random.uniform() == expected


def test_mce_divides_by_alexnets_error_of_the_same_name_whatever_the_order() -> None:
    accuracy = {name: place / 20 for place, name in enumerate(CORRUPTIONS)}
    shuffled = dict(sorted(accuracy.items()))
    assert list(shuffled) != list(accuracy)
    assert mce(shuffled) == mce(accuracy)
    assert mce(dict.fromkeys(CORRUPTIONS, 0.0)) == pytest.approx(
        np.mean([1 / e for e in ALEXNET_ERROR.values()])
    )


def test_mce_is_defined_for_imagenet_alone() -> None:
    def spec(shape: tuple[int, ...], classes: int) -> Any:
        return SimpleNamespace(
            graph=SimpleNamespace(input=SimpleNamespace(shape=shape), output_shape=(classes,))
        )

    assert is_imagenet(spec((3, 224, 224), 1000))
    assert not is_imagenet(spec((3, 64, 64), 1000))
    assert not is_imagenet(spec((3, 224, 224), 100))


def test_corruptions_of_the_wrong_thing_are_errors(
    run: str, tmp_path: Path, package: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = str(tmp_path / "digits")
    nt("train", "single", "--set", "graph.width=1", "--steps", "1", "--out", digits)
    assert "at least 32×32 pixels, found 8×8" in said(nt("evaluate", digits, "--corruptions"))
    for wrong in ("0", "1,6", "2,2", "x", ""):
        assert "expected some of 1 to 5" in said(nt("evaluate", run, "--corruptions", "--severities", wrong))
    with pytest.raises(NeuroTrailsError, match="expected a run on grey or colour images"):
        corruptions.measure_corruptions(SimpleNamespace(), [])  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    assert "pip install 'neurotrails[robustness]'" in said(nt("evaluate", run, "--corruptions"))
