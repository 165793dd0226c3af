"""Padding around and over many axes is torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeattn.converters.passes.plain_padding import plain_padding
from tests.converters.passes.tracing import run, traced


class Padded(nn.Module):
    def __init__(self, *options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x, *self.options)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 2, 9), ((2, 3), "circular")),
        ((1, 2, 4, 5), ((1, 2, 2, 0), "circular")),
        ((1, 2, 4, 5), ((-1, 2, 2, -1), "circular")),
        ((1, 2, 3, 4, 5), ((1, 1, 0, 2, 3, 1), "circular")),
        ((1, 2, 1, 3, 2, 3), ((1, 1, 0, 0, 2, 0), "constant", 2.5)),
        ((1, 2, 1, 3, 2, 3), ((-1, 2),)),
    ],
)
def test_padding_in_slices_and_over_three_axes_is_torch_s(shape: tuple[int, ...], options: tuple[Any, ...]) -> None:
    given = {"x": torch.randn(shape)}
    program, counts = traced(Padded(*options), given, plain_padding)
    assert counts == {"plain_padding": 1}
    assert torch.equal(run(program, given), functional.pad(given["x"], *options))


@pytest.mark.parametrize("options", [((1, 2), "reflect"), ((1, 2), "replicate"), ((1, 2),)])
def test_padding_that_engines_have_stays(options: tuple[Any, ...]) -> None:
    _, counts = traced(Padded(*options), {"x": torch.randn(1, 2, 6)}, plain_padding)
    assert counts == {"plain_padding": 0}
