"""Where a pixel of the model's input lies in the image, and the other way round, for points and boxes.

Coordinates are continuous and count from the top left corner: pixel i covers i to i + 1, and its center is i + 0.5.
Points are (x, y), boxes (x_min, y_min, x_max, y_max).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeattn.errors import DataError
from edgeattn.tasks.images.preprocess import offsets, resized_size
from edgeattn.tasks.images.settings import ImageSettings


def placement(settings: ImageSettings, h: int, w: int) -> Placement:
    """Where an image of h x w lies in the model's input.

    Raises:
        DataError: if such an image does not become an input of that size.
    """
    height, width = resized_size(settings, h, w)
    top, left = offsets(settings, height, width)
    scale = (w / width, h / height)
    return Placement(h=h, w=w, scale=scale, offset=(-left * scale[0], -top * scale[1]))


@dataclass(frozen=True, kw_only=True)
class Placement:
    """An affine map per axis: image = scale * input + offset.

    Attributes:
        h: of the image, in pixels.
        w: of the image, in pixels.
        scale: along x, y: pixels of the image in one of the input.
        offset: x, y: where the corner of the input lies, in pixels of the image; negative where it is padded.
    """

    h: int
    w: int
    scale: tuple[float, float]
    offset: tuple[float, float]

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Points of the input in the image; they may lie outside of it.

        Args:
            points: [..., 2], in pixels of the input.

        Returns:
            float64 [..., 2], in pixels of the image.
        """
        return np.asarray(_pairs(points) * self.scale + self.offset)

    def to_input(self, points: np.ndarray) -> np.ndarray:
        """Points of the image in the input: float64 [..., 2]."""
        return np.asarray((_pairs(points) - self.offset) / self.scale)

    def boxes_to_image(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes of the input in the image, cut to it.

        Args:
            boxes: [..., 4], corners in pixels of the input.

        Returns:
            float64 [..., 4], corners in pixels of the image.
        """
        corners = self.to_image(_corners(boxes))
        cut = np.clip(corners, 0.0, np.array([self.w, self.h]))
        return np.asarray(cut.reshape(np.shape(boxes)))

    def boxes_to_input(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes of the image in the input, not cut: float64 [..., 4]."""
        return self.to_input(_corners(boxes)).reshape(np.shape(boxes))


def _pairs(points: np.ndarray) -> np.ndarray:
    values = np.asarray(points, np.float64)
    if values.ndim < 1 or values.shape[-1] != 2:
        raise DataError(f"points are [..., 2] of x and y, not {list(values.shape)}")
    return values


def _corners(boxes: np.ndarray) -> np.ndarray:
    values = np.asarray(boxes, np.float64)
    if values.ndim < 1 or values.shape[-1] != 4:
        raise DataError(f"boxes are [..., 4] of x_min, y_min, x_max, y_max, not {list(values.shape)}")
    return np.asarray(values.reshape(*values.shape[:-1], 2, 2))
