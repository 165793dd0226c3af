"""Values for inputs of any kind: deterministic noise, as much as an edge device takes."""

from __future__ import annotations

import math

import numpy as np

from edgeattn.errors import ModelError

LARGEST_INPUT = 2**26  # numbers, 256 MiB in float32


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Normal noise, float32.

    Raises:
        ModelError: for more than :data:`LARGEST_INPUT` numbers.
    """
    if math.prod(shape) > LARGEST_INPUT:
        raise ModelError(f"the config asks for an input of {list(shape)}, more than an edge device takes in one call")
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
