"""What is neither text, picture nor sound alone: plain features, regions of an image, points on it."""

from __future__ import annotations

import numpy as np

from edgeattn.sources.huggingface.makers.images import image_size
from edgeattn.sources.huggingface.makers.noise import noise
from edgeattn.sources.huggingface.makers.text import input_ids
from edgeattn.sources.huggingface.source import TOKENS, Source


def perceiver_inputs(source: Source) -> np.ndarray:
    """Perceiver: tokens, pixels or plain features, as its preprocessor takes them."""
    preprocessor = type(getattr(source.model, "input_preprocessor", None)).__name__
    if "Text" in preprocessor or ("vocab_size" in vars(source.config) and "input_preprocessor" in preprocessor):
        return input_ids(source)
    if "Image" in preprocessor:
        return noise((1, 3, *image_size(source)))
    return noise((1, TOKENS, source.number("", "d_model", default=1)))


def visual_regions(source: Source) -> np.ndarray:
    """(1, regions, width) float32: features of regions of an image."""
    return noise((1, 8, source.number("", "visual_embedding_dim", "visual_feat_dim", default=2048)))


def input_points(source: Source) -> np.ndarray:
    """(1, 1, 1, 2) float32: the middle of the image, in pixels."""
    height, width = image_size(source)
    return np.array([[[[width / 2, height / 2]]]], dtype=np.float32)
