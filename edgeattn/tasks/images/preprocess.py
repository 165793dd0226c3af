"""Pixels become the input of a model: colours, size, crop, padding, range and layout, in numpy alone."""

from __future__ import annotations

import math

import numpy as np

from edgeattn.errors import DataError
from edgeattn.tasks.images.resize import check_pixels, resize
from edgeattn.tasks.images.settings import ImageSettings

LUMA = (19595, 38470, 7471)  # of 2**16: ITU-R 601-2, as Pillow's Convert.c rounds it


def preprocess(pixels: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """The input of a model for one image.

    Args:
        pixels: uint8 [h, w, 3], RGB.

    Returns:
        ``settings.dtype`` of ``settings.shape``: [1, c, h, w] or [1, h, w, c].

    Raises:
        DataError: for pixels of another form, or whose size after the resizing is not that of the input.
    """
    check_rgb(pixels)
    fill = 0 if settings.crop or settings.pad_normalized else int(settings.pad_value)
    values = normalize(place(colored(pixels, settings), settings, settings.interpolation, fill), settings)
    if settings.pad_normalized and settings.padding != "none":
        _fill_padding(values, settings, *pixels.shape[:2])
    return values[None]


def check_rgb(pixels: np.ndarray) -> None:
    """Hold an image to uint8 [h, w, 3].

    Raises:
        DataError: naming what it is.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DataError(f"an image is uint8 [h, w, 3], not {pixels.dtype} {list(pixels.shape)}")
    check_pixels(pixels)


def colored(pixels: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """RGB pixels in the colours of the model: uint8 [h, w, c]."""
    if settings.color == "bgr":
        return np.ascontiguousarray(pixels[..., ::-1])
    if settings.color == "gray":
        weighted = pixels.astype(np.int32) @ np.array(LUMA, np.int32)
        return ((weighted + 0x8000) >> 16).astype(np.uint8)[..., None]
    return pixels


def resized_size(settings: ImageSettings, h: int, w: int) -> tuple[int, int]:
    """Height and width of an image of h x w after the resizing, before crop and padding.

    The edges round as Hugging Face's processors do (``image_transforms.get_resize_output_image_size`` and
    ``get_size_with_aspect_ratio``), a fit to the nearest pixel.
    """
    if settings.resize == "exact":
        return settings.resize_height or settings.height, settings.resize_width or settings.width
    if settings.resize == "shortest_edge":
        return _shortest_edge(h, w, settings.edge or 1, settings.max_edge)
    if settings.resize == "fit":
        ratio = min(settings.height / h, settings.width / w)
        return _nearest_of(h * ratio, settings.height), _nearest_of(w * ratio, settings.width)
    return h, w


def offsets(settings: ImageSettings, h: int, w: int) -> tuple[int, int]:
    """Row and column of the input at which a resized image of h x w begins: negative where the crop cuts it off.

    Raises:
        DataError: if it has not the size of the input, or does not fit into it.
    """
    tall, wide = settings.height, settings.width
    if settings.crop:
        return _crop_offset(h, tall), _crop_offset(w, wide)
    if settings.padding != "none" and h <= tall and w <= wide:
        return ((tall - h) // 2, (wide - w) // 2) if settings.padding == "center" else (0, 0)
    if (h, w) != (tall, wide):
        raise DataError(
            f"the image has {h} x {w} pixels (h x w) after the resizing and the model takes {tall} x {wide}; set "
            "resize, crop or padding of the image settings so that they meet"
        )
    return 0, 0


def place(pixels: np.ndarray, settings: ImageSettings, interpolation: str, fill: int) -> np.ndarray:
    """Resized, cropped and padded with ``fill``: uint8 [height, width, c]."""
    pixels = resize(pixels, *resized_size(settings, *pixels.shape[:2]), interpolation)
    h, w = pixels.shape[:2]
    top, left = offsets(settings, h, w)
    if (h, w) == (settings.height, settings.width):
        return pixels
    placed = np.full((settings.height, settings.width, pixels.shape[2]), fill, np.uint8)
    target = placed[max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)]
    target[:] = pixels[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]
    return placed


def normalize(pixels: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Scaled, normalized and laid out: [..., h, w, c] to [..., c, h, w], or as it is.

    Each of the 256 values of a channel is worked out once, in the steps and precisions of Hugging Face's processors on
    Pillow (``image_transforms.rescale`` in float64, ``normalize`` in float32): the result is equal bit for bit.
    """
    if settings.dtype == "uint8":
        values = pixels
    else:
        scaled = (np.arange(256, dtype=np.float64) * settings.rescale_factor).astype(np.float32)
        mean, std = np.array(settings.mean, np.float32), np.array(settings.std, np.float32)
        table = np.broadcast_to((scaled[:, None] - mean) / std, (256, settings.channels))
        values = table[pixels, np.arange(settings.channels)]
    return np.ascontiguousarray(np.moveaxis(values, -1, -3) if settings.layout == "channels_first" else values)


def _fill_padding(values: np.ndarray, settings: ImageSettings, h: int, w: int) -> None:
    """Set what no pixel of the image of h x w became."""
    height, width = resized_size(settings, h, w)
    top, left = offsets(settings, height, width)
    outside = np.ones((settings.height, settings.width), bool)
    outside[top : top + height, left : left + width] = False
    if settings.layout == "channels_first":
        values[:, outside] = settings.pad_value
    else:
        values[outside] = settings.pad_value


def _shortest_edge(h: int, w: int, edge: int, max_edge: int | None) -> tuple[int, int]:
    short, long = min(h, w), max(h, w)
    exact = float(edge)
    if max_edge is not None and long / short * edge > max_edge:
        exact = max_edge * short / long
        edge = round(exact)
    longer = long if short == edge else int(exact * long / short)
    edge, longer = max(1, edge), max(1, longer)  # theirs fails where nothing would be left
    return (longer, edge) if w <= h else (edge, longer)


def _nearest_of(length: float, most: int) -> int:
    return min(max(math.floor(length + 0.5), 1), most)


def _crop_offset(length: int, wanted: int) -> int:
    """As ``image_transforms.center_crop``: an odd pixel is cut off at the end, and added in front."""
    return -((length - wanted) // 2)
