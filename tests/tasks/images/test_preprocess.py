"""From pixels to the model's input: held to what Hugging Face's processors on Pillow give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import DataError
from edgeattn.tasks.images.preprocess import offsets, preprocess, resized_size
from edgeattn.tasks.images.settings import ImageSettings
from tests.tasks.images.test_resize import Image, by_pillow, noise


def settings(**fields: Any) -> ImageSettings:
    return ImageSettings(**{"height": 8, "width": 8, **fields})


def test_an_image_is_resized_and_scaled_to_0_to_1_where_nothing_else_is_said() -> None:
    pixels = noise(20, 11, 3)
    expected = by_pillow(pixels, 8, 8, "bilinear").astype(np.float64) / 255
    got = preprocess(pixels, settings())
    assert got.dtype == np.float32
    assert got.shape == settings().shape == (1, 3, 8, 8)
    np.testing.assert_allclose(got[0], expected.transpose(2, 0, 1), rtol=1.2e-7)


def test_mean_and_std_are_per_channel() -> None:
    pixels = noise(8, 8, 3)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    got = preprocess(pixels, settings(mean=mean, std=std, layout="channels_last"))
    np.testing.assert_allclose(got[0], (pixels / 255 - mean) / std, rtol=0, atol=5e-7)  # float32 beside float64


def test_uint8_takes_the_pixels_as_they_are() -> None:
    pixels = noise(8, 8, 3)
    got = preprocess(pixels, settings(dtype="uint8", rescale_factor=1.0, layout="channels_last"))
    np.testing.assert_array_equal(got, pixels[None], strict=True)


def test_bgr_turns_the_channels() -> None:
    pixels = noise(9, 5, 3)
    rgb, bgr = (preprocess(pixels, settings(color=color)) for color in ("rgb", "bgr"))
    np.testing.assert_array_equal(bgr, rgb[:, ::-1])


@given(h=st.integers(1, 30), w=st.integers(1, 30), seed=st.integers(0, 99))
def test_gray_is_that_of_pillow(h: int, w: int, seed: int) -> None:
    pixels = noise(h, w, 3, seed=seed)
    got = preprocess(pixels, settings(color="gray", dtype="uint8", rescale_factor=1.0))
    gray = np.array(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(got, by_pillow(gray, 8, 8, "bilinear")[None, None], strict=True)


@pytest.mark.slow
@given(h=st.integers(1, 40), w=st.integers(1, 40), tall=st.integers(1, 40), wide=st.integers(1, 40))
def test_a_center_crop_is_that_of_hugging_face(h: int, w: int, tall: int, wide: int) -> None:
    transforms = pytest.importorskip("transformers.image_transforms", reason="the oracle: edgeattn[hf]")
    pixels = noise(h, w, 3)
    told = ImageSettings(
        height=tall, width=wide, resize="none", crop=True, dtype="uint8", rescale_factor=1.0, layout="channels_last"
    )
    expected = transforms.center_crop(pixels, (tall, wide), input_data_format="channels_last")
    np.testing.assert_array_equal(preprocess(pixels, told)[0], expected, strict=True)


@pytest.mark.slow
@given(h=st.integers(1, 400), w=st.integers(1, 400), edge=st.integers(1, 64), more=st.none() | st.integers(0, 64))
def test_edges_are_those_of_hugging_face(h: int, w: int, edge: int, more: int | None) -> None:
    transforms = pytest.importorskip("transformers.image_transforms", reason="the oracle: edgeattn[hf]")
    told = settings(resize="shortest_edge", edge=edge, max_edge=None if more is None else edge + more)
    if more is None:
        expected = transforms.get_resize_output_image_size(
            np.zeros((3, h, w)), edge, default_to_square=False, input_data_format="channels_first"
        )
    else:
        expected = transforms.get_size_with_aspect_ratio((h, w), edge, edge + more)
    assert resized_size(told, h, w) == tuple(max(1, length) for length in expected)  # theirs refuses to resize to 0


@given(h=st.integers(1, 300), w=st.integers(1, 300), tall=st.integers(1, 64), wide=st.integers(1, 64))
def test_a_fit_touches_one_pair_of_sides_and_keeps_the_ratio(h: int, w: int, tall: int, wide: int) -> None:
    told = ImageSettings(height=tall, width=wide, resize="fit", padding="center")
    height, width = resized_size(told, h, w)
    assert height == tall or width == wide
    assert 1 <= height <= tall
    assert 1 <= width <= wide
    ratio = min(tall / h, wide / w)
    assert abs(height - max(1, h * ratio)) <= 0.5 + 1e-9
    assert abs(width - max(1, w * ratio)) <= 0.5 + 1e-9


@pytest.mark.parametrize(("padding", "top"), [("center", 2), ("corner", 0)])
def test_a_letterbox_is_filled_around_the_image(padding: str, top: int) -> None:
    pixels = noise(4, 8, 3)
    got = preprocess(
        pixels,
        settings(
            resize="fit", padding=padding, pad_value=114, dtype="uint8", rescale_factor=1.0, layout="channels_last"
        ),
    )[0]
    np.testing.assert_array_equal(got[top : top + 4], pixels)
    assert np.all(np.delete(got, range(top, top + 4), axis=0) == 114)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_padding_may_be_a_value_of_the_input(layout: str) -> None:
    told = settings(resize="fit", padding="corner", pad_value=-7.5, pad_normalized=True, mean=(0.5,), layout=layout)
    got = preprocess(noise(8, 2, 3), told)[0]
    got = got if layout == "channels_first" else got.transpose(2, 0, 1)
    assert np.all(got[:, :, 2:] == -7.5)
    assert np.all(got[:, :, :2] >= -0.5)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"resize": "none"}, "has 6 x 5 pixels .* takes 8 x 8"),
        ({"resize": "shortest_edge", "edge": 8}, "has 9 x 8 pixels .* set resize, crop or padding"),
        ({"resize": "shortest_edge", "edge": 8, "padding": "corner"}, "has 9 x 8 pixels"),
        ({"resize_height": 9}, "has 9 x 8 pixels"),
    ],
    ids=["none", "edge", "padding", "exact"],
)
def test_an_image_that_does_not_become_the_input_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        preprocess(noise(6, 5, 3), settings(**fields))


@pytest.mark.parametrize("pixels", [noise(4, 4), noise(4, 4, 4), np.zeros((4, 4, 3))], ids=["gray", "rgba", "float"])
def test_pixels_are_uint8_rgb(pixels: np.ndarray) -> None:
    with pytest.raises(DataError, match="an image is uint8"):
        preprocess(pixels, settings())


def test_odd_pixels_of_a_centered_image_lie_behind_it() -> None:
    assert offsets(settings(padding="center"), 5, 8) == (1, 0)
