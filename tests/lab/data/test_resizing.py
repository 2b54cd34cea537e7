"""Images are resized on a machine without Pillow as with it."""

import numpy as np
import pytest
from PIL import Image

from nt_core.training.resizing import resize


@pytest.mark.parametrize("old", [(1, 40), (37, 1), (9, 31), (64, 20), (50, 50)])
@pytest.mark.parametrize("new", [(1, 1), (8, 8), (33, 12), (64, 90)])
def test_pixels_are_those_of_pillow(old, new):
    pixels = np.random.default_rng(sum(old)).integers(0, 256, (*old, 3), dtype=np.uint8)
    truth = np.asarray(Image.fromarray(pixels).resize(new[::-1], Image.Resampling.BILINEAR))
    found = resize(pixels.transpose(2, 0, 1), new).transpose(1, 2, 0)
    if 1 in old:  # one pass alone
        np.testing.assert_array_equal(found, truth)
    else:  # Pillow may turn its two passes round, between which it rounds
        np.testing.assert_allclose(found.astype(int), truth, atol=1)
