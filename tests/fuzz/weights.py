"""The weights that the parts of a program share, and what its mask input says."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from tests.fuzz.parts import DIM, HEADS, LENGTH, WIDTH

SHAPES = {
    "gain": (DIM,), "bias": (DIM,), "square": (DIM, DIM), "wide": (2 * DIM, DIM), "narrow": (DIM, 2 * DIM),
    "query": (DIM, DIM), "key": (DIM, DIM), "value": (DIM, DIM), "out": (DIM, DIM), "taps": (DIM, DIM, 3),
    "places": (LENGTH, DIM), "relative": (2 * LENGTH - 1, WIDTH), "buckets": (32, HEADS), "head": (WIDTH, WIDTH),
    "head_gain": (WIDTH,), "additive": (WIDTH,), "slopes": (HEADS,), "features": (WIDTH, 6), "table": (11, DIM),
    "latents": (LENGTH, DIM), "mixing": (HEADS, HEADS), "pair_bias": (HEADS, LENGTH, LENGTH),
}  # fmt: skip


class Weights(nn.Module):
    """Parameters by name, drawn from a seed.

    Attributes:
        seen: of the call under way: (batch, 1, 1, length), true where a key may be seen.
        given: the mask input as it came.
    """

    seen: Tensor
    given: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in SHAPES.items():
            values = torch.randn(shape, generator=generator) / shape[-1] ** 0.5
            if name in ("gain", "head_gain"):
                values = 1 + 0.3 * values
            self.register_parameter(name, nn.Parameter(values, requires_grad=False))

    def __getattr__(self, name: str) -> Tensor:
        return cast(Tensor, super().__getattr__(name))
