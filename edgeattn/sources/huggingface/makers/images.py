"""Images and video: pixels in the size of the config or the processor, and masks over their patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeattn.sources.huggingface.makers.noise import noise
from edgeattn.sources.huggingface.source import PARTS, Source, configs

IMAGE = 224  # pixels, where neither config nor processor says
LARGEST_IMAGE = 512  # pixels a side, for models that take any size


def image_size(source: Source) -> tuple[int, int]:
    """Height, width."""
    for config in configs(source.config, PARTS["vision"]):
        for name in ("image_size", "img_size", "input_size", "crop_size", "video_size"):
            size = _height_width(getattr(config, name, None))
            if size is not None:
                return size
    for name in ("crop_size", "size"):
        size = _height_width(source.processor.get(name))
        if size is not None and max(size) <= LARGEST_IMAGE:
            return size
    return (IMAGE, IMAGE)


def _height_width(value: Any) -> tuple[int, int] | None:
    if isinstance(value, Mapping):
        if "height" in value and "width" in value:
            value = (value["height"], value["width"])
        else:
            value = value.get("shortest_edge")
    if isinstance(value, (list, tuple)):
        if len(value) == 1:
            value = value[0]
        elif len(value) >= 2 and all(isinstance(item, int) and item > 0 for item in value[-2:]):
            return int(value[-2]), int(value[-1])
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value, value
    return None


def _channels(source: Source) -> int:
    return source.number("vision", "num_channels", "in_channels", "in_chans", default=3)


def pixel_values(source: Source) -> np.ndarray:
    """(1, channels, height, width) float32; with an axis of frames after the first for video models."""
    size = (_channels(source), *image_size(source))
    frames = source.number("vision", "num_frames", default=0)
    return noise((1, frames, *size) if frames else (1, *size))


def pixel_values_videos(source: Source) -> np.ndarray:
    """(1, frames, channels, height, width) float32."""
    frames = source.number("vision", "num_frames", "frames_per_clip", default=8)
    return noise((1, frames, _channels(source), *image_size(source)))


def _patches(source: Source) -> int:
    patch = _height_width(source.find("vision", "patch_size")) or (16, 16)
    height, width = image_size(source)
    frames = source.number("vision", "num_frames", default=0)
    tubes = frames // source.number("vision", "tubelet_size", default=1) if frames else 1
    return (height // patch[0]) * (width // patch[1]) * tubes


def bool_masked_pos(source: Source) -> np.ndarray:
    """(1, patches) bool: every second patch is hidden."""
    masked = noise((1, _patches(source))) > np.inf
    masked[:, ::2] = True
    return masked


def random_order(source: Source) -> np.ndarray:
    """What ViTMAE shuffles its patches by; without it every call draws again."""
    return np.argsort(noise((1, _patches(source))), axis=-1).astype(np.float32) / _patches(source)
