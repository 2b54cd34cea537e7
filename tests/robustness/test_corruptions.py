from __future__ import annotations

import imagecorruptions
import numpy as np
import pytest

from nt_lab.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt

ROWS = np.array([3, 8])


def images(channels: int) -> np.ndarray:
    """Smooth images with an edge: what blurs and noises change each in its way."""
    ramp = np.linspace(30, 200, 32)
    picture = np.where(np.arange(32)[:, None] > 15, ramp, 255 - ramp).astype(np.uint8)
    return np.broadcast_to(picture, (2, channels, 32, 32)).copy()


def test_the_names_are_the_packages() -> None:
    assert list(CORRUPTIONS) == imagecorruptions.get_corruption_names("common")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_corruption_changes_small_images_the_same_way_each_time(name: str, channels: int) -> None:
    clean = images(channels)
    for severity in SEVERITIES:
        found = corrupt(clean, ROWS, name, severity)
        assert (found.shape, found.dtype) == (clean.shape, np.uint8)
        assert (found != clean).any()
        np.testing.assert_array_equal(corrupt(clean[1:], ROWS[1:], name, severity), found[1:])


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "contrast", "brightness", "zoom_blur"])
def test_a_higher_severity_changes_more(name: str) -> None:
    clean = images(3)
    changes = [
        np.abs(corrupt(clean, ROWS, name, severity).astype(float) - clean).mean() for severity in (1, 3, 5)
    ]
    assert changes == sorted(changes)
