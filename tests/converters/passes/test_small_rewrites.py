"""One behaviour per small pass: what is left in the program, and that it computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeattn.converters.passes.drop_asserts import drop_asserts
from edgeattn.converters.passes.explicit_padding import explicit_padding
from edgeattn.converters.passes.fold_constants import fold_constants
from edgeattn.converters.passes.graph import RECORD
from edgeattn.converters.passes.plain_one_hot import plain_one_hot
from edgeattn.converters.passes.real_pairs import real_pairs
from edgeattn.converters.passes.repeated_heads import repeated_heads
from edgeattn.converters.passes.reshape_views import reshape_views
from edgeattn.converters.passes.tensor_operands import tensor_operands
from edgeattn.converters.passes.whole_index import whole_index
from tests.converters.passes.tracing import Pass, operators, run, traced


class Repeated(nn.Module):
    """repeat_kv of eager grouped-query attention."""

    def forward(self, key: Tensor) -> Tensor:
        batch, groups, length, width = key.shape
        copies = key[:, :, None].expand(batch, groups, 3, length, width)
        return copies.reshape(batch, groups * 3, length, width) * 2.0


class Slopes(nn.Module):
    """ALiBi's table (Press et al., 2022), computed in every call."""

    def forward(self, scores: Tensor) -> Tensor:
        slopes = 2.0 ** -torch.arange(1, 5)
        distance = torch.arange(6)[None, :] - torch.arange(6)[:, None]
        return scores + slopes[:, None, None] * distance


class Rotated(nn.Module):
    """Rotary positions by complex numbers."""

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(6).float(), 1.0 / 10_000 ** (torch.arange(0, 8, 2) / 8))
        table = torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(torch.view_as_complex(x.reshape(1, 6, 4, 2)) * table).flatten(2)


class Indexed(nn.Module):
    """A padding mask read through index tensors, in order."""

    def forward(self, mask: Tensor) -> Tensor:
        rows, columns = torch.arange(2)[:, None, None, None], torch.arange(6)[None, None, None, :]
        return mask[rows, columns] * 2


class Viewed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 12) + 1.0


class OneHot(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        return functional.one_hot(ids, 7) * 2


class Same(nn.Module):
    def __init__(self, kernel: int, dilation: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv1d(4, 6, kernel, padding="same", dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convolution(x)
        return y


class Reversed(nn.Module):
    def forward(self, mask: Tensor) -> Tensor:
        return 1.0 - mask


X = torch.arange(48, dtype=torch.float32).reshape(1, 6, 8) / 7


@pytest.mark.parametrize(
    ("rewrite", "module", "given", "gone"),
    [
        (repeated_heads, Repeated(), torch.randn(1, 2, 5, 4), "expand"),
        (fold_constants, Slopes(), torch.randn(1, 4, 6, 6), "arange"),
        (real_pairs, Rotated(), X, "view_as_complex"),
        (whole_index, Indexed(), torch.arange(12).reshape(2, 6) % 2, "index"),
        (reshape_views, Viewed(), torch.randn(2, 3, 4), "view"),
        (plain_one_hot, OneHot(), torch.tensor([[3, 0, 6]]), "one_hot"),
        (tensor_operands, Reversed(), torch.tensor([[1, 0, 1]]), "rsub"),
        (drop_asserts, Slopes(), torch.randn(1, 4, 6, 6), "_assert_tensor_metadata"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_pattern_goes_and_the_values_stay(rewrite: Pass, module: nn.Module, given: Tensor, gone: str) -> None:
    program, counts = traced(module, {"x": given}, rewrite)
    if counts[rewrite.__name__] == 0:
        assert gone == "_assert_tensor_metadata"  # not every torch writes them
    assert gone not in operators(program)
    torch.testing.assert_close(run(program, {"x": given}), module(given), atol=1e-6, rtol=0)
    assert program.graph_module.meta[RECORD] == counts


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (4, 1), (5, 2), (2, 3)])
def test_same_padding_in_numbers_is_torch_s(kernel: int, dilation: int) -> None:
    module, given = Same(kernel, dilation), {"x": torch.randn(1, 4, 9)}
    program, counts = traced(module, given, explicit_padding)
    assert counts == {"explicit_padding": 1}
    torch.testing.assert_close(run(program, given), module(**given), atol=1e-6, rtol=0)


def test_an_index_that_reorders_stays() -> None:
    class Flipped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, torch.arange(5, -1, -1)]

    program, counts = traced(Flipped(), {"x": X}, whole_index)
    assert counts == {"whole_index": 0}
    assert "index" in operators(program)


def test_what_comes_from_parameters_is_not_folded() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.weight * 2.0)

    program, counts = traced(Scaled(), {"x": X}, fold_constants)
    assert counts == {"fold_constants": 0}
    assert operators(program) == ["mul", "matmul"]


def test_constants_that_a_later_pass_drops_leave_no_input_behind() -> None:
    program, _ = traced(Rotated(), {"x": X}, fold_constants, real_pairs)
    assert all(not value.is_complex() for value in program.constants.values())
    torch.testing.assert_close(run(program, {"x": X}), Rotated()(X), atol=1e-6, rtol=0)


def test_a_table_that_is_written_in_place_is_left_to_the_exporter() -> None:
    class Written(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            table = torch.zeros(6, 8)
            table[0, :] = 3.0
            table[1:, 0] = torch.arange(5).float()
            return x + table

    program, _ = traced(Written(), {"x": X}, fold_constants)
    torch.testing.assert_close(run(program, {"x": X}), Written()(X), atol=0, rtol=0)
