"""Resizing gives the very pixels that Pillow gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import DataError
from edgeattn.tasks.images.resize import INTERPOLATIONS, is_height_first, resize

PIL = pytest.importorskip("PIL", reason="the oracle of pixels: edgeattn[vision] installs Pillow")
Image = pytest.importorskip("PIL.Image")

OLD = int(PIL.__version__.split(".")[0]) < 13
SIDES = st.integers(1, 64)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def by_pillow(pixels: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """As Pillow 13 does it; an older one is made to change the height first where 13 does."""
    image, method = Image.fromarray(pixels), Image.Resampling[interpolation.upper()]
    if OLD and interpolation != "nearest" and is_height_first(pixels.shape[0], pixels.shape[1], height, width):
        image = image.resize((pixels.shape[1], height), method)
    return np.array(image.resize((width, height), method))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@given(h=SIDES, w=SIDES, height=SIDES, width=SIDES, seed=st.integers(0, 99), channels=st.sampled_from([0, 3]))
def test_every_pixel_is_that_of_pillow(
    interpolation: str, h: int, w: int, height: int, width: int, seed: int, channels: int
) -> None:
    pixels = noise(h, w, *[channels][: channels and 1], seed=seed)
    np.testing.assert_array_equal(
        resize(pixels, height, width, interpolation), by_pillow(pixels, height, width, interpolation), strict=True
    )


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@given(h=SIDES, w=SIDES, height=SIDES, width=SIDES, seed=st.integers(0, 99))
def test_edges_of_black_and_white_overshoot_as_in_pillow(
    interpolation: str, h: int, w: int, height: int, width: int, seed: int
) -> None:
    pixels = (noise(h, w, 3, seed=seed) // 128 * 255).astype(np.uint8)
    np.testing.assert_array_equal(
        resize(pixels, height, width, interpolation), by_pillow(pixels, height, width, interpolation), strict=True
    )


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("h", "w"), [(480, 641), (97, 1500), (224, 300)])
def test_photograph_sizes_are_equal_too(interpolation: str, h: int, w: int) -> None:
    pixels = noise(h, w, 3)
    np.testing.assert_array_equal(
        resize(pixels, 224, 224, interpolation), by_pillow(pixels, 224, 224, interpolation), strict=True
    )


def test_the_height_comes_first_where_it_shrinks_by_more_than_twice_as_much() -> None:
    sizes = [(10, 10, 5, 5), (10, 10, 5, 8), (10, 10, 6, 8), (9, 4, 9, 8), (9, 4, 8, 8), (4, 4, 8, 16)]
    assert [is_height_first(*size) for size in sizes] == [False, True, False, False, True, False]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_equal_size_leaves_the_pixels(interpolation: str) -> None:
    pixels = noise(5, 7, 3)
    np.testing.assert_array_equal(resize(pixels, 5, 7, interpolation), pixels, strict=True)


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((2, 2, 3), np.float32), r"uint8 \[h, w\] or \[h, w, channels\], not float32 \[2, 2, 3\]"),
        (np.zeros((2,), np.uint8), r"not uint8 \[2\]"),
        (np.zeros((0, 2, 3), np.uint8), r"1\.\.65536 pixels a side, this one is \[0, 2, 3\]"),
        (np.zeros((1, 2**16 + 1), np.uint8), "65537"),
    ],
    ids=["float", "vector", "empty", "long"],
)
def test_what_is_no_image_is_refused(pixels: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=says):
        resize(pixels, 2, 2)


@pytest.mark.parametrize(("height", "width"), [(0, 4), (4, -1), (2**16 + 1, 1), (2**16, 2**12)])
def test_sizes_out_of_range_are_refused(height: int, width: int) -> None:
    with pytest.raises(DataError, match="can be resized to"):
        resize(noise(2, 2), height, width)


def test_an_unknown_filter_is_refused_and_a_near_one_named() -> None:
    with pytest.raises(DataError, match=r"unknown interpolation 'bicubik', did you mean 'bicubic'\?"):
        resize(noise(2, 2), 3, 3, "bicubik")
