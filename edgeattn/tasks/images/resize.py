"""Resizing as Pillow does it, bit for bit, in numpy alone: a device gets the pixels that the model was trained on.

Source: Pillow 13.0, ``src/libImaging/Resample.c`` (nearest: ``Geometry.c``). Two passes, one per axis. Each output
pixel is a weighted sum of the input pixels below the filter, whose support grows with the ratio when an image gets
smaller (antialiasing). Weights are integers of 22 fractional bits, and each pass rounds to 8 bits.

Pillow before 13.0 always changes the width first; since then the height comes first where it shrinks by more than twice
as many pixels as the width. For those images the older Pillow differs: bilinear by one level at most, bicubic and
lanczos by more where they overshoot black or white between the passes (in noise 2% and 8% of the pixels differ by two
levels or more).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from edgeattn.errors import DataError, unknown_name

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)
PRECISION_BITS = 22  # of 32: 8 hold the result, 2 the overshoot of a filter with negative weights
MAX_SIDE = 2**16  # pixels of an image in memory: beyond any camera, and tables of weights stay small
MAX_PIXELS = 100_000_000  # of an image: 300 MB as RGB
BLOCK = 2**20  # sums in flight: 4 MiB, which stay in a processor's cache


def resize(pixels: np.ndarray, height: int, width: int, interpolation: str = "bilinear") -> np.ndarray:
    """Pixels in another size, equal to ``PIL.Image.resize`` with the filter of that name.

    Args:
        pixels: uint8 [h, w] or [h, w, channels].
        height: of the result, in pixels.
        width: of the result, in pixels.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` (a = -0.5) or ``lanczos`` (3 lobes).

    Returns:
        uint8 [height, width] or [height, width, channels].

    Raises:
        DataError: for pixels of another form, without any, or with more than 65,536 a side, and for such a size.

    >>> resize(np.array([[0, 100]], np.uint8), 1, 4).tolist()
    [[0, 25, 75, 100]]
    """
    check_pixels(pixels)
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise DataError(
            f"an image can be resized to 1..{MAX_SIDE} pixels a side and {MAX_PIXELS} in all, not to {height} x {width}"
        )
    if interpolation == "nearest":
        rows, columns = _nearest(pixels.shape[0], height), _nearest(pixels.shape[1], width)
        return np.ascontiguousarray(pixels[rows[:, None], columns])
    if interpolation not in FILTERS:
        raise DataError(unknown_name("interpolation", interpolation, INTERPOLATIONS))
    if is_height_first(pixels.shape[0], pixels.shape[1], height, width):
        return _resize_axis(_resize_axis(pixels, 0, height, interpolation), 1, width, interpolation)
    return _resize_axis(_resize_axis(pixels, 1, width, interpolation), 0, height, interpolation)


def is_height_first(h: int, w: int, height: int, width: int) -> bool:
    """Whether the height of an image [h, w] changes before its width: it shrinks by far more pixels."""
    return h - height > max(0, 2 * (w - width))


def check_pixels(pixels: np.ndarray) -> None:
    """Hold an image in memory to uint8, two or three axes, and a size that can be worked with.

    Raises:
        DataError: naming what it is.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise DataError(f"an image is uint8 [h, w] or [h, w, channels], not {pixels.dtype} {list(pixels.shape)}")
    if 0 in pixels.shape or max(pixels.shape) > MAX_SIDE:
        raise DataError(f"an image has 1..{MAX_SIDE} pixels a side, this one is {list(pixels.shape)}")


def _resize_axis(pixels: np.ndarray, axis: int, length: int, interpolation: str) -> np.ndarray:
    """One pass; whole rows are added up, which is what numpy does fast, so that the width is turned to the front."""
    if pixels.shape[axis] == length:
        return np.ascontiguousarray(pixels)
    turned = np.ascontiguousarray(pixels.swapaxes(0, axis))
    return np.ascontiguousarray(_resize_rows(turned, length, interpolation).swapaxes(0, axis))


def _resize_rows(pixels: np.ndarray, length: int, interpolation: str) -> np.ndarray:
    """The first axis in another length."""
    first, weights = _weights(pixels.shape[0], length, interpolation)
    flat = pixels.reshape(pixels.shape[0], -1)
    resized = np.empty((length, flat.shape[1]), np.uint8)
    step = max(1, BLOCK // flat.shape[1])
    for start in range(0, length, step):
        rows = slice(start, start + step)
        sums = np.full((len(first[rows]), flat.shape[1]), 1 << (PRECISION_BITS - 1), np.int32)
        for tap in range(weights.shape[1]):
            weight = weights[rows, tap]
            if weight.any():
                source = np.minimum(first[rows] + tap, pixels.shape[0] - 1)  # past the end the weight is 0
                sums += np.multiply(flat[source], weight[:, None], dtype=np.int32)
        resized[rows] = np.clip(sums >> PRECISION_BITS, 0, 255)
    return resized.reshape(length, *pixels.shape[1:])


@functools.lru_cache(maxsize=32)
def _weights(size: int, length: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """For each output pixel its first input pixel, and the weights from there on.

    Returns:
        int64 [length]; int32 [length, taps].
    """
    function, support = FILTERS[interpolation]
    scale = size / length
    stretch = max(scale, 1.0)
    support *= stretch
    center = (np.arange(length) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    last = np.minimum((center + support + 0.5).astype(np.int64), size)
    taps = np.arange(int((last - first).max()))
    raw = function((taps + first[:, None] - center[:, None] + 0.5) * (1.0 / stretch))
    raw[taps >= (last - first)[:, None]] = 0.0
    total = np.cumsum(raw, axis=1)[:, -1:]  # one after the other, as a loop in C adds them
    exact = np.divide(raw, total, out=raw, where=total != 0.0) * (1 << PRECISION_BITS)
    weights = np.trunc(exact + np.where(exact < 0, -0.5, 0.5)).astype(np.int32)
    first.flags.writeable = weights.flags.writeable = False
    return first, weights


@functools.lru_cache(maxsize=32)
def _nearest(size: int, length: int) -> np.ndarray:
    """For each output pixel the input pixel; the position is stepped on and rounds as Pillow's does."""
    if size == length:
        return np.arange(size)
    scale = size / length
    steps = np.full(length, scale)
    steps[0] = scale * 0.5
    return np.minimum(np.cumsum(steps).astype(np.int64), size - 1)


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(1.0 - np.abs(x), 0.0))


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys 1981 with a = -0.5; each expression in Pillow's order, for it rounds."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.asarray(np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0)))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.where((x >= -3.0) & (x < 3.0), _sinc(x) * _sinc(x / 3), 0.0))


def _sinc(x: np.ndarray) -> np.ndarray:
    angle = x * np.pi
    return np.asarray(np.divide(np.sin(angle), angle, out=np.ones_like(x), where=x != 0.0))


FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
"""Name -> the filter's weight at a distance, and its support, in input or (where the image shrinks) output pixels."""
