from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nt_lab.data.augment import Augmentation, crop, flip

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 20), st.integers(1, 20))


def images(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


@given(SHAPES, st.data())
def test_a_crop_is_what_a_loop_would_cut(shape: tuple[int, int, int, int], data: st.DataObject) -> None:
    batch, _, height, width = shape
    pad_down, pad_right = -(-height // 8), -(-width // 8)
    down = np.array(data.draw(st.lists(st.integers(0, 2 * pad_down), min_size=batch, max_size=batch)))
    right = np.array(data.draw(st.lists(st.integers(0, 2 * pad_right), min_size=batch, max_size=batch)))
    found = crop(images(shape), down, right)
    for i, image in enumerate(images(shape)):
        canvas = np.zeros((shape[1], height + 2 * pad_down, width + 2 * pad_right), np.uint8)
        canvas[:, pad_down : pad_down + height, pad_right : pad_right + width] = image
        expected = canvas[:, down[i] : down[i] + height, right[i] : right[i] + width]
        np.testing.assert_array_equal(found[i], expected)


@given(SHAPES, st.integers(0, 99))
def test_a_flip_mirrors_the_chosen_images_and_undoes_itself(
    shape: tuple[int, int, int, int], seed: int
) -> None:
    chosen = np.random.default_rng(seed).integers(0, 2, shape[0]).astype(bool)
    once = flip(images(shape), chosen)
    np.testing.assert_array_equal(once[~chosen], images(shape)[~chosen])
    np.testing.assert_array_equal(once[chosen], images(shape)[chosen][..., ::-1])
    np.testing.assert_array_equal(flip(once, chosen), images(shape))


@given(st.permutations(range(6)), st.integers(0, 2**32), st.integers(0, 1000))
def test_what_happens_to_an_example_does_not_depend_on_its_batch(
    order: list[int], seed: int, epoch: int
) -> None:
    augment = Augmentation(seed=seed, flip=True, crop=True)
    rows, pixels = np.arange(6), images((6, 3, 16, 16))
    together = augment(pixels, rows, epoch=epoch)
    np.testing.assert_array_equal(augment(pixels[order], rows[order], epoch=epoch), together[order])
    for row in rows:
        np.testing.assert_array_equal(augment(pixels[[row]], rows[[row]], epoch=epoch)[0], together[row])


def test_every_offset_and_both_directions_occur_about_equally_often() -> None:
    size, count = 16, 9000  # padding 2: offsets 0 to 4 in each direction
    pixels = np.zeros((count, 1, size, size), np.uint8)
    pixels[:, 0, 8, 8] = 1
    rows = np.arange(count)
    cut = Augmentation(seed=3, flip=False, crop=True)(pixels, rows, epoch=2)
    _, _, down, right = np.nonzero(cut)
    counts = np.bincount((down - 6) * 5 + right - 6, minlength=25)
    assert counts.sum() == count
    assert abs(counts - count / 25).max() < 5 * np.sqrt(count / 25)
    mirrored = (Augmentation(seed=3, flip=True, crop=False)(pixels, rows, epoch=2)[:, 0, 8, 7] == 1).sum()
    assert abs(mirrored - count / 2) < 5 * np.sqrt(count) / 2


def test_epochs_and_seeds_differ() -> None:
    rows, pixels = np.arange(50), images((50, 3, 16, 16))
    first = Augmentation(seed=0, flip=True, crop=True)(pixels, rows, epoch=0)
    assert (first != Augmentation(seed=0, flip=True, crop=True)(pixels, rows, epoch=1)).any()
    assert (first != Augmentation(seed=1, flip=True, crop=True)(pixels, rows, epoch=0)).any()
