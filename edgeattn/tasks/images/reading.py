"""Image files of others as arrays: a few formats, of bounded size, decoded by Pillow (``edgeattn[vision]``)."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.errors import DataError, load_extra
from edgeattn.guards.confined import regular_file
from edgeattn.printable import one_line
from edgeattn.tasks.images.resize import MAX_PIXELS, MAX_SIDE

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
MASK_FORMATS = ("PNG", "BMP", "GIF", "TIFF")  # JPEG and WebP mix neighbours, and PPM scales by its own maximum
MAX_BYTES = 2**28  # of a file; 100 megapixels of RGB without compression are 300 MB and belong into tiles
EXTRA = "vision"
ORIENTATION = 0x0112  # of EXIF 2.3, 4.6.4
TRANSPOSES = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""Orientation -> what sets the image upright, as ``PIL.ImageOps.exif_transpose`` has it."""
BITS_PER_SAMPLE = 258  # tag of TIFF 6.0


def read_image(path: Path) -> np.ndarray:
    """The pixels of an image file, upright and RGB; the first frame of several.

    What is no RGB becomes so as Pillow's ``convert("RGB")`` does it: gray and palette are expanded, CMYK is turned
    without a color profile, and transparency is left out, not blended (what lies below a transparent pixel shows).
    Gray of 16 bits is scaled to 8 with rounding; of RGB with 16 bits Pillow keeps the upper 8.

    Returns:
        uint8 [h, w, 3].

    Raises:
        DataError: for a file that is missing, none of :data:`FORMATS`, damaged, larger than 256 MiB, of more than 100
            megapixels, or whose pixels have no agreed range (32 bits).
        MissingExtraError: without Pillow.
    """
    image, found, _ = _load(path, FORMATS)
    try:
        if image.mode.startswith("I;16") or (image.mode == "I" and found in ("PNG", "PPM")):
            return np.repeat(_to_8_bits(np.asarray(image))[..., None], 3, axis=2)
        if image.mode not in ("I", "F"):
            return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds of error over colors that it cannot turn into others
        raise DataError(f"{path}: cannot be read as RGB: {_reason(error)}") from error
    raise DataError(
        f"{path}: holds numbers of 32 bits, which have no agreed black and white; save it with 8 or 16 bits"
    )


def read_mask(path: Path) -> np.ndarray:
    """The class indices of a mask file: what the pixels hold, never the colors that a palette gives them.

    Returns:
        uint8 [h, w]; black and white are 0 and 1.

    Raises:
        DataError: as :func:`read_image`, for formats that do not keep indices, and for colors.
        MissingExtraError: without Pillow.
    """
    image, _, bits = _load(path, MASK_FORMATS)
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        raise DataError(
            f"{path}: holds colors ({image.mode}) and a mask holds a class index per pixel: save it as a gray or "
            "palette PNG"
        )
    indices = np.asarray(image)
    if indices.min() < 0 or indices.max() > np.iinfo(np.uint8).max:
        raise DataError(f"{path}: holds the class index {indices.max()}; a mask has at most 255")
    indices = np.array(indices, np.uint8)
    if image.mode == "L" and bits < 8:
        indices //= 255 // (2**bits - 1)  # Pillow spreads them over 0..255
    return indices


def _load(path: Path, formats: tuple[str, ...]) -> tuple[Any, str, int]:
    """The decoded image, upright, the format of its file, and the bits of a gray pixel there."""
    data = _bytes(path)
    pillow = load_extra("PIL.Image", EXTRA)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of a bomb below our bound, of EXIF and palettes: nothing a user can act on
            with pillow.open(io.BytesIO(data), formats=formats) as image:
                _check_size(path, image.size)
                found = str(image.format)
                image.load()
                return _upright(image, pillow), found, _bits(image, data)
    except DataError:
        raise
    except pillow.UnidentifiedImageError as error:
        raise DataError(f"{path}: no image of a format that is read here: {', '.join(formats)}") from error
    except pillow.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise DataError(_too_large(path, f"{pixels[0] if pixels else 'too many'} pixels")) from error
    except Exception as error:  # decoders raise many kinds of error over damaged files
        raise DataError(f"{path}: a damaged image: {_reason(error)}") from error


def _bytes(path: Path) -> bytes:
    regular_file(path, DataError)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{path}: more than {MAX_BYTES >> 20} MiB; save it smaller, or cut it into tiles")
    return data


def _check_size(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS or max(size) > MAX_SIDE:
        raise DataError(_too_large(path, f"{height} x {width} pixels (h x w)"))


def _too_large(path: Path, what: str) -> str:
    return (
        f"{path}: {what}, and at most {MAX_PIXELS} in all and {MAX_SIDE} a side are read; make it smaller, or cut it "
        "into tiles"
    )


def _upright(image: Any, pillow: Any) -> Any:
    """The image as its EXIF orientation wants it seen; Pillow has done that already for some formats."""
    method = TRANSPOSES.get(image.getexif().get(ORIENTATION, 1))
    return image.copy() if method is None else image.transpose(getattr(pillow.Transpose, method))


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """0..65535 to 0..255, to the nearest."""
    wide = np.clip(pixels, 0, 65_535).astype(np.uint32)
    return np.asarray((wide * 255 + 32_767) // 65_535, np.uint8)


def _bits(image: Any, data: bytes) -> int:
    if image.format == "PNG":
        return data[24]  # after signature (8), length and name of IHDR (8), width and height (8)
    if image.format == "TIFF":
        return int(image.tag_v2.get(BITS_PER_SAMPLE, (1,))[0])
    return 8


def _reason(error: Exception) -> str:
    return one_line(str(error) or type(error).__name__, 200)
