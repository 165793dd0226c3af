"""Weights that are computed from weights, and rounding that training fixed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from edgeattn.converters.passes.fake_quantization import fake_quantization
from edgeattn.converters.passes.fold_constants import fold_constants
from edgeattn.converters.passes.fold_weights import fold_weights
from tests.converters.passes.tracing import constants, operators, run, traced

X = torch.linspace(-1, 1, 12).reshape(2, 6)


def pruned() -> nn.Module:
    layer = nn.Linear(6, 6)
    prune.l1_unstructured(layer, "weight", 0.4)  # type: ignore[no-untyped-call]
    return layer


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(6, 6)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(6, 6)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map="matrix_exp"),
    "pruning's mask": pruned,
}


@pytest.mark.filterwarnings("ignore:The tensor attribute")  # of pruning, while it is traced
@pytest.mark.parametrize("case", LAYERS)
def test_a_parametrized_layer_is_a_plain_one(case: str) -> None:
    layer = LAYERS[case]().eval()
    expected = layer(X).detach()
    program, counts = traced(layer, {"x": X}, fold_constants, fold_weights)
    assert counts["fold_weights"] == 1
    assert set(operators(program)) <= {"linear", "dropout", "_assert_tensor_metadata"}
    torch.testing.assert_close(run(program, {"x": X}), expected, rtol=0, atol=0)


class Tables(nn.Module):
    """Relative positions, read from a table, and a weight in another form: both stay."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, 2))
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        distance = torch.arange(6)[:, None] - torch.arange(6)[None] + 5
        return (x @ self.weight.t())[..., None] + self.table[distance].sum(0)


def test_views_of_weights_and_what_grows_stay() -> None:
    module = Tables()
    program, counts = traced(module, {"x": X}, fold_constants, fold_weights)
    assert counts["fold_weights"] == 1  # the sum alone, which is smaller than its table
    assert "t" in operators(program)
    torch.testing.assert_close(run(program, {"x": X}), module(X).detach(), rtol=0, atol=0)


GRIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "8 bits": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.01, 0, -128, 127),
    "4 bits, shifted": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 3, 0, 15),
    "per channel": lambda x: torch.fake_quantize_per_channel_affine(
        x, torch.tensor([0.01, 0.3]), torch.tensor([0, 2], dtype=torch.int32), 0, -8, 7
    ),
    "a scale in a tensor": lambda x: torch.fake_quantize_per_tensor_affine(
        x, torch.tensor(0.03), torch.tensor(0, dtype=torch.int32), -128, 127
    ),
    "a scale of the input": lambda x: torch.fake_quantize_per_tensor_affine(
        x, x.abs().max() / 127, torch.tensor(0, dtype=torch.int32), -128, 127
    ),
}


class Rounded(nn.Module):
    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


@pytest.mark.parametrize("case", GRIDS)
def test_rounding_to_a_grid_is_torchs_to_the_last_bit(case: str) -> None:
    x = torch.cat((torch.linspace(-1.5, 1.5, 6001), torch.arange(-149, 150) * 0.01 + 0.005)).reshape(2, -1)
    program, counts = traced(Rounded(GRIDS[case]), {"x": x}, fold_constants, fake_quantization)
    assert counts["fake_quantization"] == 1
    assert not [name for name in operators(program) if name.startswith("fake_quantize")]
    assert all(value.numel() <= 2 for value in constants(program))
    torch.testing.assert_close(run(program, {"x": x}), GRIDS[case](x), rtol=0, atol=1e-6)
    assert not run(program, {"x": x * 0}).isnan().any()  # a scale of 0
