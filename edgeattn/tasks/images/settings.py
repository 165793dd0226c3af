"""How pixels become the input of a model: sizes, crop, padding, range, colours and layout, as a bundle records them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgeattn.errors import ModelError
from edgeattn.spec import from_json, to_json
from edgeattn.tasks.images.resize import MAX_SIDE, Interpolation

Resizing = Literal["none", "exact", "shortest_edge", "fit"]
Padding = Literal["none", "center", "corner"]
Color = Literal["rgb", "bgr", "gray"]
Layout = Literal["channels_first", "channels_last"]
PixelType = Literal["float32", "uint8"]
CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}


def default_settings(
    shape: Sequence[int], *, dtype: PixelType = "float32", overrides: Mapping[str, Any] | None = None
) -> ImageSettings:
    """Settings of a model that brings none: resized to the input's size, and scaled to 0..1.

    Args:
        shape: of the model's input: [1, c, h, w], [1, h, w, c], or with the frames of a clip after the first axis.
        dtype: of the model's input; uint8 takes the pixels as they are.
        overrides: fields that are to have other values, as they stand in JSON.

    Raises:
        ModelError: for a shape that is none of an image.
        InputError: for an override that is no field, or whose value does not fit.
    """
    layout, height, width, channels = input_form(shape)
    color: Color = "gray" if channels == 1 else "rgb"
    rescale_factor = 1.0 if dtype == "uint8" else 1 / 255
    settings = ImageSettings(
        height=height, width=width, color=color, layout=layout, dtype=dtype, rescale_factor=rescale_factor
    )
    return with_overrides(settings, overrides)


def with_overrides(settings: ImageSettings, overrides: Mapping[str, Any] | None) -> ImageSettings:
    """Settings with other values in some fields, read as strictly as JSON.

    Raises:
        InputError: for what is no field, or a value that does not fit.
    """
    if not overrides:
        return settings
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in overrides.items()}
    return from_json(ImageSettings, {**to_json(settings), **values}, "image settings")


def input_form(shape: Sequence[int]) -> tuple[Layout, int, int, int]:
    """What the shape of an input says: its layout, height, width and number of channels.

    Where both ends could be channels they come first.

    Raises:
        ModelError: for a shape that is none of an image or a clip.
    """
    if len(shape) in (4, 5) and min(shape) > 0:
        if shape[-3] in (1, 3):
            return "channels_first", shape[-2], shape[-1], shape[-3]
        if shape[-1] in (1, 3):
            return "channels_last", shape[-3], shape[-2], shape[-1]
    raise ModelError(
        f"the input has the shape {list(shape)}; an image is [1, c, h, w] or [1, h, w, c] and a clip "
        "[1, t, c, h, w] or [1, t, h, w, c], with c of 1 or 3 and all of them fixed"
    )


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How pixels become the input of a model; goes through JSON unchanged.

    In this order: colours, resize, center crop to ``height`` x ``width``, padding to ``height`` x ``width``, scale and
    normalize, layout.

    Attributes:
        height: of the model's input, in pixels.
        width: of the model's input, in pixels.
        resize: ``none``; ``exact``: to ``resize_height`` x ``resize_width``; ``shortest_edge``: so that the shorter
            side has ``edge`` pixels; ``fit``: to the largest image that fits into ``height`` x ``width`` (its
            longest edge becomes a square input's). The last two keep the ratio of the sides.
        resize_height: of ``exact``, in pixels; None for ``height``.
        resize_width: of ``exact``, in pixels; None for ``width``.
        edge: of ``shortest_edge``, in pixels.
        max_edge: of ``shortest_edge``, in pixels: the longer side becomes no longer than that. None for no bound.
        interpolation: as Pillow names it and does it, antialiased.
        crop: whether the center of ``height`` x ``width`` is cut out; a smaller side is padded with black.
        padding: ``none``; ``center``: the image lies in the middle of ``height`` x ``width``; ``corner``: at its top
            left.
        pad_value: of what is added, 0..255, or as ``pad_normalized`` says.
        pad_normalized: whether ``pad_value`` is a value of the model's input, added after all else.
        rescale_factor: what a pixel is multiplied with, first.
        mean: subtracted then, per channel in the order of ``color``, or one for all.
        std: divided by last, per channel in the order of ``color``, or one for all.
        color: order of the channels; gray is Pillow's (ITU-R 601-2 luma), taken before resizing.
        layout: of the axes: [1, c, h, w] or [1, h, w, c].
        dtype: of the input; uint8 takes pixels as they are, so nothing is scaled or normalized.
    """

    height: int
    width: int
    resize: Resizing = "exact"
    resize_height: int | None = None
    resize_width: int | None = None
    edge: int | None = None
    max_edge: int | None = None
    interpolation: Interpolation = "bilinear"
    crop: bool = False
    padding: Padding = "none"
    pad_value: float = 0.0
    pad_normalized: bool = False
    rescale_factor: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    color: Color = "rgb"
    layout: Layout = "channels_first"
    dtype: PixelType = "float32"

    def __post_init__(self) -> None:
        for name in ("height", "width", "resize_height", "resize_width", "edge", "max_edge"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_SIDE:
                raise ValueError(f"{name} must be in 1..{MAX_SIDE} pixels, got {value}")
        self._check_geometry()
        self._check_values()

    @property
    def channels(self) -> int:
        """Of the model's input."""
        return CHANNELS[self.color]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the model's input, for one image."""
        if self.layout == "channels_first":
            return 1, self.channels, self.height, self.width
        return 1, self.height, self.width, self.channels

    def _check_geometry(self) -> None:
        if (self.resize == "shortest_edge") != (self.edge is not None):
            raise ValueError(f"edge goes with resize 'shortest_edge', and with it alone; resize is {self.resize!r}")
        if self.max_edge is not None and (self.edge is None or self.max_edge < self.edge):
            raise ValueError(f"max_edge goes with edge and is no less than it, got {self.max_edge} and {self.edge}")
        if self.resize != "exact" and (self.resize_height is not None or self.resize_width is not None):
            raise ValueError(f"resize_height and resize_width go with resize 'exact', resize is {self.resize!r}")
        if self.resize == "fit" and (self.crop or self.padding == "none"):
            raise ValueError("resize 'fit' leaves a side short: padding must be 'center' or 'corner', and crop false")
        if self.crop and self.padding != "none":
            raise ValueError("crop and padding exclude each other: a crop pads what is too small by itself")

    def _check_values(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} must have 1 value or {self.channels}, got {len(values)}")
            if not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} must be finite, got {values}")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std must be positive, got {self.std}")
        if not (math.isfinite(self.rescale_factor) and self.rescale_factor > 0):
            raise ValueError(f"rescale_factor must be positive, got {self.rescale_factor}")
        if not self.pad_normalized and not (0 <= self.pad_value <= 255 and self.pad_value == int(self.pad_value)):
            raise ValueError(f"pad_value must be a whole number of 0..255 unless pad_normalized, got {self.pad_value}")
        if self.dtype == "uint8" and (self.pad_normalized or not self._takes_pixels_as_they_are()):
            raise ValueError(
                "an input of uint8 takes pixels as they are: rescale_factor must be 1, mean 0, std 1 and "
                "pad_normalized false"
            )

    def _takes_pixels_as_they_are(self) -> bool:
        return self.rescale_factor == 1 and set(self.mean) == {0} and set(self.std) == {1}
