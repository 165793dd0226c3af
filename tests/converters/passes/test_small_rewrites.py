"""One behaviour per small pass: what is left in the program, and that it computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeattn.converters.passes.drop_asserts import drop_asserts
from edgeattn.converters.passes.even_bounds import even_bounds
from edgeattn.converters.passes.explicit_padding import explicit_padding
from edgeattn.converters.passes.fold_constants import fold_constants
from edgeattn.converters.passes.graph import RECORD
from edgeattn.converters.passes.plain_fmod import plain_fmod
from edgeattn.converters.passes.plain_functions import plain_functions
from edgeattn.converters.passes.plain_one_hot import plain_one_hot
from edgeattn.converters.passes.plain_sort import plain_sort
from edgeattn.converters.passes.real_pairs import real_pairs
from edgeattn.converters.passes.repeated_heads import repeated_heads
from edgeattn.converters.passes.reshape_views import reshape_views
from edgeattn.converters.passes.stable_log_sigmoid import stable_log_sigmoid
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


class Bounded(nn.Module):
    """Both orders: an integer below a float, a float below an integer; and bounds of one type, which stay."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(1e-3, 1) + x.clamp(min=0, max=2.5) + x.clamp(0, 1)


class LogSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.logsigmoid(x) + torch.log(torch.sigmoid(x + 1.0))


class Ranked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        values, places = torch.sort(x, dim=1, descending=True, stable=True)
        return values + places + x.argsort(dim=-1, stable=True)


class Apart(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        centres = x[:, :3] + 0.05
        return sum((torch.cdist(x, centres, p=p) for p in (1.0, 3.0, float("inf"))), torch.cdist(x, centres))


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
        (plain_functions, Apart(), torch.linspace(-0.1, 0.1, 40).reshape(2, 5, 4), "cdist"),
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


def test_bounds_of_two_types_become_floats() -> None:
    program, counts = traced(Bounded(), {"x": X}, even_bounds)
    assert counts == {"even_bounds": 2}
    bounds = [node.args[1:] for node in program.graph.nodes if "clamp" in str(node.target)]
    assert bounds == [(1e-3, 1.0), (0.0, 2.5), (0, 1)]
    torch.testing.assert_close(run(program, {"x": X}), Bounded()(X), atol=0, rtol=0)


def test_a_logarithm_of_a_sigmoid_is_finite_where_torch_s_is() -> None:
    given = torch.tensor([-1e4, -200.0, -80.0, -30.0, -17.5, -1.0, 0.0, 1.0, 30.0, 1e4])
    program, counts = traced(LogSigmoid(), {"x": given}, stable_log_sigmoid)
    assert counts == {"stable_log_sigmoid": 2}
    assert "sigmoid" not in operators(program)
    torch.testing.assert_close(run(program, {"x": given}), LogSigmoid()(given), atol=1e-6, rtol=1e-6)


def test_distances_of_many_points_stay() -> None:
    class Far(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(x, x)

    _, counts = traced(Far(), {"x": torch.zeros(1, 2049, 1)}, plain_functions)
    assert counts == {"plain_functions": 0}


def test_a_stable_sort_is_a_plain_one_with_the_lower_place_first() -> None:
    given = torch.tensor([[[1.0, 2.0, 1.0], [2.0, 2.0, 0.0]]])
    program, counts = traced(Ranked(), {"x": given}, plain_sort)
    assert counts == {"plain_sort": 2}
    assert "stable" not in str(program.graph)
    torch.testing.assert_close(run(program, {"x": given}), Ranked()(given), atol=0, rtol=0)


def test_fmod_of_integers_keeps_the_sign_of_what_is_divided() -> None:
    class Rest(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return torch.fmod(ids, 3) + 10 * torch.fmod(ids, ids[:, :1]) + torch.fmod(ids / 2, 3)

    given = torch.tensor([[-4, -7, -3, 0, 2, 8]])
    program, counts = traced(Rest(), {"ids": given}, plain_fmod)
    assert counts == {"plain_fmod": 2}
    torch.testing.assert_close(run(program, {"ids": given}), Rest()(given), atol=0, rtol=0)
