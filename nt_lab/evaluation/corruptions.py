"""The 15 common corruptions (Hendrycks & Dietterich 2019, arXiv 1903.12261).

The package ``imagecorruptions-imaug`` corrupts the images, with the strengths of ImageNet-C.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import DataError, NeuroTrailsError
from nt_core.random import Random
from nt_core.spec import EnsembleSpec
from nt_core.training import Batches
from nt_lab.data import Examples, limited
from nt_lab.evaluation.evaluate import OpenRun

ALEXNET_ERROR: Final[Mapping[str, float]] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's error on ImageNet-C by corruption, mean over severities; published with the paper's code."""

CORRUPTIONS: Final = tuple(ALEXNET_ERROR)
SEVERITIES: Final = (1, 2, 3, 4, 5)
SMALLEST: Final = 32
"""Smallest height and width of an image, in pixels."""

_SEEDED: Final = ("impulse_noise", "glass_blur")  # with a generator of their own, not NumPy's global one

Pixels = NDArray[np.uint8]


def corrupt(images: Pixels, rows: NDArray[np.int64], name: str, severity: int, *, seed: int = 0) -> Pixels:
    """Corrupt a batch of images. (B, C, H, W) uint8, C being 1 or 3 → (B, C, H, W) uint8.

    The corruption of an image depends on (seed, corruption, severity, its row) alone, not on its batch. A
    grey image is corrupted as three equal channels, of which the first is kept.

    Args:
        images: at least 32×32.
        rows: (B,) row numbers of the images in their data set.
        name: one of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        seed: keys every random choice.

    Raises:
        NeuroTrailsError: the package that corrupts is not installed.
    """
    package = _package()
    draws = Random(seed).at(weight=f"corruption {name}", step=severity, purpose="corrupt").bits(rows)
    corrupted = np.empty_like(images)
    with _global_state_kept():
        for place, (image, draw) in enumerate(zip(images, draws.tolist(), strict=True)):
            np.random.seed(draw)
            own = {"seed": draw} if name in _SEEDED else {}
            shown = np.ascontiguousarray(np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3)))
            found = package.corrupt(shown, severity=severity, corruption_name=name, **own)
            corrupted[place] = found.transpose(2, 0, 1)[: len(image)]
    return corrupted


def _package() -> Any:
    try:
        import imagecorruptions
    except ImportError as error:
        raise NeuroTrailsError(
            f"--corruptions: imagecorruptions cannot be imported ({error}); "
            "pip install 'neurotrails[robustness]'"
        ) from None
    return imagecorruptions


@contextmanager
def _global_state_kept() -> Iterator[None]:
    """Restore NumPy's global generator, and keep stdout free, because the package prints for small images."""
    state = np.random.get_state()
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        np.random.set_state(state)


def measure_corruptions(
    run: OpenRun,
    test: Batches,
    *,
    severities: Sequence[int] = SEVERITIES,
    limit: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure accuracy on corrupted copies of a run's test set.

    Args:
        run: gives the predictions.
        test: the run's whole test set.
        severities: from 1 to 5.
        limit: largest number of examples, evenly spaced; None: all.
        report: receives a line for each finished corruption.

    Returns:
        ``severities``; ``count`` of examples; ``accuracy``, corruption → one for each severity;
        ``mean_accuracy``, corruption → mean over severities; ``mean``, over all; ``mce``, or None where it is
        not defined; see :func:`mce`.

    Raises:
        DataError: no images, images that are too small, or no severities from 1 to 5.
        NeuroTrailsError: the package that corrupts is not installed.
    """
    examples = _images(test)
    _expect_severities(severities)
    _package()
    accuracy: dict[str, list[float]] = {}
    for name in CORRUPTIONS:
        copies = (_corrupted(examples, name, severity) for severity in severities)
        accuracy[name] = [run.evaluator.metrics(limited(copy, limit)).accuracy for copy in copies]
        report(f"{len(accuracy)}/{len(CORRUPTIONS)}  {name}  {statistics.fmean(accuracy[name]) * 100:.1f} %")
    means = {name: statistics.fmean(found) for name, found in accuracy.items()}
    defined = is_imagenet(run.evaluator.spec) and sorted(severities) == list(SEVERITIES)
    return {
        "severities": list(severities),
        "count": len(limited(examples, limit)),
        "accuracy": accuracy,
        "mean_accuracy": means,
        "mean": statistics.fmean(means.values()),
        "mce": mce(means) if defined else None,
    }


def _corrupted(examples: Examples, name: str, severity: int) -> Examples:
    return replace(examples, read=lambda rows: corrupt(examples.read(rows), rows, name, severity))


def _images(test: Batches) -> Examples:
    first = test.read(np.zeros(1, np.int64)) if isinstance(test, Examples) else None
    if not isinstance(test, Examples) or first is None or first.ndim != 4 or first.shape[1] not in (1, 3):
        raise DataError("--corruptions: expected a run on grey or colour images, found other data")
    if min(first.shape[2:]) < SMALLEST:
        raise DataError(
            f"--corruptions: expected images of at least {SMALLEST}×{SMALLEST} pixels, found "
            f"{first.shape[2]}×{first.shape[3]}; corruptions are made for larger ones"
        )
    return test


def _expect_severities(severities: Sequence[int]) -> None:
    wrong = not severities or len(set(severities)) < len(severities) or not set(severities) <= set(SEVERITIES)
    if wrong:
        raise DataError(f"--severities: expected some of 1 to 5, each once, found {list(severities)}")


def is_imagenet(spec: EnsembleSpec) -> bool:
    """Return whether AlexNet's errors are a fair measure: 1000 classes of 3×224×224 images, as ImageNet-C."""
    return spec.graph.input.shape == (3, 224, 224) and spec.graph.output_shape == (1000,)


def mce(mean_accuracy: Mapping[str, float]) -> float:
    """Return the mean corruption error: the mean of error ÷ AlexNet's error, by name.

    Args:
        mean_accuracy: corruption → accuracy, mean over the five severities.

    Example:
        >>> round(mce({name: 1 - error for name, error in ALEXNET_ERROR.items()}), 6)
        1.0
    """
    return statistics.fmean((1 - mean_accuracy[name]) / error for name, error in ALEXNET_ERROR.items())
