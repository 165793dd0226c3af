"""What LiteRT gets in other words computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.converters.litert import to_tflite
from edgeattn.converters.litert_forms import FORMS
from edgeattn.converters.transposed import convolved_otherwise
from tests.converters.samples import as_model, deployed_once

aten = torch.ops.aten


def shared(made: nn.Module, axes: int, size: int = 5) -> tuple[Tensor, Tensor]:
    """What a convolution gives, and what its form for LiteRT gives."""
    module: Any = made
    x = torch.randn(2, 4, *[size + axis for axis in range(axes)])
    transposed = isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    with torch.no_grad():
        form = FORMS[aten.convolution.default](
            x,
            module.weight,
            module.bias,
            module.stride,
            module.padding,
            module.dilation,
            transposed,
            module.output_padding,
            module.groups,
        )
        return module(x), form


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        (1, {"stride": 2, "padding": 1, "output_padding": 1}),
        (1, {"stride": 2, "padding": 2, "output_padding": 1, "dilation": 2, "groups": 2}),
        (2, {"stride": 3, "padding": 1, "output_padding": 2, "bias": False}),
        (2, {"stride": (2, 1), "padding": (0, 1), "output_padding": (1, 0), "groups": 4}),
        (2, {"stride": 2, "padding": 3, "dilation": 2}),
        (2, {"stride": 2, "padding": 1}),
        (3, {"stride": 2}),
        (3, {"stride": (1, 2, 2), "padding": 1, "output_padding": (0, 1, 1), "groups": 2}),
        (3, {"padding": 1, "dilation": (1, 2, 1)}),
    ],
)
def test_a_transposed_convolution_in_plain_ones_is_torch_s(axes: int, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    made = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1](4, 8, 3, **options)
    expected, got = shared(made, axes)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 4, "padding": 1},
        {"groups": 2, "stride": (2, 1, 2), "padding": (1, 0, 2), "bias": False},
        {"groups": 4, "dilation": (2, 1, 1), "padding": 2},
    ],
)
def test_a_grouped_convolution_over_three_axes_by_planes_is_torch_s(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    expected, got = shared(nn.Conv3d(4, 8, 3, **options), 3)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("made", [nn.Conv3d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.ConvTranspose2d(4, 4, 4, 2, 1)])
def test_a_convolution_that_litert_has_stays(made: nn.Module) -> None:
    assert shared(made, 3 if isinstance(made, nn.Conv3d) else 2)[1] is NotImplemented


def test_native_transposed_convolutions_are_those_that_double_or_have_no_padding() -> None:
    assert not convolved_otherwise([4, 4], [2, 2], [1, 1], [0, 0], [1, 1])
    assert not convolved_otherwise([3], [2], [0], [0], [1])
    assert convolved_otherwise([3], [2], [1], [0], [1])


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("kind", [0, 1])
def test_a_reflected_grid_is_torch_s(kind: int, corners: bool) -> None:
    torch.manual_seed(0)
    x, grid = torch.randn(1, 2, 5, 6).double(), 3 * torch.randn(1, 4, 3, 2).double()
    expected = aten.grid_sampler_2d.default(x, grid, kind, 2, corners)
    form = FORMS[aten.grid_sampler_2d.default](x, grid, kind, 2, corners)
    torch.testing.assert_close(form, expected, atol=1e-9, rtol=0)


class Volume(nn.Module):
    """A 3-D U-Net's ends, upsampling with ``output_padding``, and queries from a map against keys from vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.depthwise = nn.Conv3d(4, 4, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose3d(4, 2, 2, 2)
        self.wide = nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1)
        self.queries, self.keys = nn.Conv2d(4, 8, 1), nn.Linear(6, 8)

    def forward(self, x: Tensor, regions: Tensor) -> dict[str, Tensor]:
        volume = self.up(self.depthwise(x))
        image = self.wide(x[:, :, 0])
        image = nn.functional.grid_sample(image, image[:, :2].permute(0, 2, 3, 1), "bilinear", "reflection", False)
        queries = torch.relu(self.queries(image).flatten(2).mT)
        return {"volume": volume.abs().unsqueeze(-1).relu() ** 0.75, "scores": queries @ self.keys(regions).mT}


@pytest.mark.slow
def test_all_of_it_runs_on_litert(tmp_path: Path) -> None:
    model = as_model("volume", Volume(), x=torch.randn(1, 4, 3, 4, 4), regions=torch.randn(1, 3, 6))
    got = deployed_once(to_tflite(model, tmp_path, "fp32"), model)
    for name, expected in model.run(model.example["main"]).items():
        np.testing.assert_allclose(got[name], expected, atol=1e-5)
