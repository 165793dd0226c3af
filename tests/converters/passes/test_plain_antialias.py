"""An antialiased resize by products is torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeattn.converters.passes.plain_antialias import plain_antialias
from tests.converters.passes.tracing import operators, run, traced


class Resized(nn.Module):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, antialias=True, **self.options)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (3, 4), "mode": "bilinear"},
        {"size": (5, 9), "mode": "bicubic"},
        {"size": (3, 3), "mode": "bilinear", "align_corners": True},
        {"scale_factor": (0.4, 0.7), "mode": "bicubic"},
    ],
)
def test_an_antialiased_resize_by_products_is_torch_s(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    given = {"x": torch.randn(2, 3, 8, 7)}
    program, _ = traced(Resized(options), given, plain_antialias)
    assert set(operators(program)) == {"matmul"}
    torch.testing.assert_close(run(program, given), Resized(options)(**given), atol=1e-5, rtol=0)
