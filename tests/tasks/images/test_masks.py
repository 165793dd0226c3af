"""Masks keep their indices wherever they go."""

from __future__ import annotations

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.tasks.images.masks import IGNORED, check_mask, mask_to_image, mask_to_input, resize_mask
from edgeattn.tasks.images.settings import ImageSettings
from tests.tasks.images.test_placement import WAYS, settings
from tests.tasks.images.test_resize import by_pillow, noise


def test_a_mask_is_resized_to_the_nearest_pixel() -> None:
    mask = noise(13, 9)
    np.testing.assert_array_equal(resize_mask(mask, 20, 4), by_pillow(mask, 20, 4, "nearest"), strict=True)


def halves(h: int, w: int) -> np.ndarray:
    mask = np.zeros((h, w), np.uint8)
    mask[: h // 2, : w // 2], mask[h // 2 :, w // 2 :] = 1, 2
    return mask


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("h", "w"), [(64, 96), (100, 70), (16, 16)])
def test_a_mask_goes_to_the_input_and_back(way: str, h: int, w: int) -> None:
    mask, told = halves(h, w), settings(way)
    there = mask_to_input(mask, told)
    assert there.shape == (32, 32)
    back = mask_to_image(there, told, h, w)
    seen = back != IGNORED
    assert (seen.all() and way in ("exact", "letterbox", "corner")) or way not in ("exact", "letterbox", "corner")
    wrong = (back != mask) & seen
    assert wrong.sum() <= 3 * (h + w)  # along the borders of the halves alone
    assert set(np.unique(back)) <= {0, 1, 2, IGNORED}


def test_what_is_padded_is_ignored() -> None:
    there = mask_to_input(halves(16, 32), settings("letterbox"))
    assert np.all(there[:8] == IGNORED)
    assert np.all(there[24:] == IGNORED)
    assert not np.any(there[8:24] == IGNORED)


def test_an_answer_coarser_than_the_input_is_spread_over_it() -> None:
    mask = np.array([[1, 2], [3, 4]], np.uint8)
    back = mask_to_image(mask, ImageSettings(height=32, width=32), 4, 4)
    np.testing.assert_array_equal(back, np.repeat(np.repeat(mask, 2, 0), 2, 1))


def test_what_the_crop_left_out_gets_the_class_that_is_asked_for() -> None:
    told = ImageSettings(height=2, width=2, resize="none", crop=True)
    back = mask_to_image(np.ones((2, 2), np.uint8), told, 4, 4, outside=9)
    np.testing.assert_array_equal(back, np.pad(np.ones((2, 2)), 1, constant_values=9))


def test_a_mask_of_another_size_than_its_image_is_refused() -> None:
    check_mask(noise(4, 5), 4, 5)
    with pytest.raises(DataError, match=r"a\.png: has 4 x 5 pixels \(h x w\) and its image 5 x 4"):
        check_mask(noise(4, 5), 5, 4, "a.png")


@pytest.mark.parametrize("mask", [np.zeros((4, 5)), noise(4, 5, 3)], ids=["float", "colours"])
def test_what_holds_no_indices_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"a mask is uint8 \[h, w\]"):
        check_mask(mask, 4, 5)
