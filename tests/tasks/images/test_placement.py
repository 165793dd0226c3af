"""What the model finds in its input is found again in the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import DataError
from edgeattn.tasks.images.placement import placement
from edgeattn.tasks.images.preprocess import preprocess
from edgeattn.tasks.images.settings import ImageSettings

WAYS: dict[str, dict[str, Any]] = {
    "exact": {},
    "crop": {"resize": "shortest_edge", "edge": 40, "crop": True},
    "exact-crop": {"resize_height": 40, "resize_width": 50, "crop": True},
    "letterbox": {"resize": "fit", "padding": "center"},
    "corner": {"resize": "fit", "padding": "corner"},
    "short": {"resize_height": 20, "resize_width": 50, "crop": True},
}


def settings(way: str) -> ImageSettings:
    return ImageSettings(height=32, width=32, interpolation="nearest", **WAYS[way])


@pytest.mark.parametrize("way", WAYS)
@given(h=st.integers(1, 200), w=st.integers(1, 200), seed=st.integers(0, 99))
def test_there_and_back_is_where_it_was(way: str, h: int, w: int, seed: int) -> None:
    place = placement(settings(way), h, w)
    points = np.random.default_rng(seed).uniform(0, 32, (5, 2))
    np.testing.assert_allclose(place.to_input(place.to_image(points)), points, rtol=0, atol=1e-9)
    boxes = np.array([[w * 0.1, h * 0.2, w * 0.5, h * 0.9]])
    np.testing.assert_allclose(place.boxes_to_image(place.boxes_to_input(boxes)), boxes, rtol=0, atol=1e-9)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("h", "w"), [(64, 96), (100, 70), (50, 50)])
def test_a_pixel_of_the_input_came_from_where_the_map_says(way: str, h: int, w: int) -> None:
    """With the nearest pixel, and an image whose pixels say where they are."""
    rows, columns = np.mgrid[:h, :w].astype(np.uint8)
    image = np.stack([rows, columns, np.full_like(rows, 255)], -1)
    told = ImageSettings(
        height=32,
        width=32,
        interpolation="nearest",
        dtype="uint8",
        rescale_factor=1.0,
        layout="channels_last",
        **WAYS[way],
    )
    found = preprocess(image, told)[0]
    centers = np.stack(np.meshgrid(np.arange(32) + 0.5, np.arange(32) + 0.5), -1)
    points = placement(told, h, w).to_image(centers)
    inside = found[..., 2] == 255
    assert inside.any()
    corners = found[inside][:, [1, 0]].astype(np.float64)
    assert np.all(points[inside] >= corners)
    assert np.all(points[inside] <= corners + 1 + 1e-9)  # Pillow steps along the row, and 12 may come out as 11.999...
    outside = ((points < 0) | (points >= (w, h))).any(-1)
    np.testing.assert_array_equal(outside, ~inside)


def test_a_letterboxed_box_in_numbers() -> None:
    place = placement(ImageSettings(height=100, width=100, resize="fit", padding="center"), 50, 200)
    assert place.scale == (2.0, 2.0)
    assert place.offset == (0.0, -74.0)  # 37 rows above, 38 below: 25 rows of the input are the image
    np.testing.assert_array_equal(
        place.boxes_to_image(np.array([[[10.0, 37.5, 20.0, 50.0]]])), [[[20.0, 1.0, 40.0, 26.0]]]
    )


def test_boxes_are_cut_to_the_image_and_points_are_not() -> None:
    place = placement(ImageSettings(height=10, width=10), 20, 40)
    np.testing.assert_array_equal(place.boxes_to_image(np.array([-1.0, -1.0, 11.0, 5.0])), [0, 0, 40, 10])
    np.testing.assert_array_equal(place.to_image(np.array([-1.0, 11.0])), [-4, 22])


def test_other_numbers_of_coordinates_are_refused() -> None:
    place = placement(ImageSettings(height=10, width=10), 20, 40)
    with pytest.raises(DataError, match=r"points are \[\.\.\., 2\] of x and y, not \[3\]"):
        place.to_image(np.zeros(3))
    with pytest.raises(DataError, match=r"boxes are \[\.\.\., 4\] of .*, not \[2, 2\]"):
        place.boxes_to_image(np.zeros((2, 2)))


def test_an_image_that_does_not_become_the_input_has_no_place_in_it() -> None:
    with pytest.raises(DataError, match="has 20 x 40 pixels"):
        placement(ImageSettings(height=10, width=10, resize="none"), 20, 40)
