"""Masks of classes: each pixel holds an index, which is never mixed with its neighbours'."""

from __future__ import annotations

import numpy as np

from edgeattn.errors import DataError
from edgeattn.tasks.images.placement import placement
from edgeattn.tasks.images.preprocess import place
from edgeattn.tasks.images.resize import resize
from edgeattn.tasks.images.settings import ImageSettings

IGNORED = 255  # the index of pixels that no class is asked of, as in Pascal VOC and Cityscapes


def check_mask(mask: np.ndarray, h: int, w: int, where: str = "the mask") -> None:
    """Hold a mask to the size of its image.

    Raises:
        DataError: for another size, or what is no uint8 [h, w].
    """
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise DataError(f"{where}: a mask is uint8 [h, w], not {mask.dtype} {list(mask.shape)}")
    if mask.shape != (h, w):
        raise DataError(
            f"{where}: has {mask.shape[0]} x {mask.shape[1]} pixels (h x w) and its image {h} x {w}; a mask has a "
            "class index for each pixel of its image"
        )


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask in another size, by the nearest pixel: uint8 [height, width]."""
    check_mask(mask, *mask.shape[:2])
    return resize(mask, height, width, "nearest")


def mask_to_input(mask: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """The mask of an image as the model sees the image: resized, cropped and padded alike.

    Returns:
        uint8 [height, width]; what is padded holds :data:`IGNORED`.
    """
    check_mask(mask, *mask.shape[:2])
    return place(mask[..., None], settings, "nearest", IGNORED)[..., 0]


def mask_to_image(mask: np.ndarray, settings: ImageSettings, h: int, w: int, outside: int = IGNORED) -> np.ndarray:
    """A mask of the model's answer in the size of the image: for each pixel the class at its place in the input.

    Args:
        mask: uint8 [rows, columns] over the whole input; a coarser answer is taken as it is.
        h: of the image, in pixels.
        w: of the image, in pixels.
        outside: class of pixels that the crop has left out.

    Returns:
        uint8 [h, w].

    Raises:
        DataError: for what is no mask, or an image that does not become the input.
    """
    check_mask(mask, *mask.shape[:2])
    to_input = placement(settings, h, w).to_input
    centers = np.arange(max(h, w)) + 0.5
    columns = to_input(np.stack([centers[:w], centers[:w]], -1))[:, 0] * (mask.shape[1] / settings.width)
    rows = to_input(np.stack([centers[:h], centers[:h]], -1))[:, 1] * (mask.shape[0] / settings.height)
    found = np.full((h, w), outside, np.uint8)
    seen_rows = (rows >= 0) & (rows < mask.shape[0])
    seen_columns = (columns >= 0) & (columns < mask.shape[1])
    picked = mask[np.ix_(rows[seen_rows].astype(np.int64), columns[seen_columns].astype(np.int64))]
    found[np.ix_(seen_rows, seen_columns)] = picked
    return found
