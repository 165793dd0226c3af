"""Branches, loops and flex_attention written out, against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.map import map as torch_map
from torch._higher_order_ops.scan import scan as torch_scan
from torch._higher_order_ops.while_loop import while_loop as torch_while_loop
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from edgeattn.converters.passes import FX_PASSES
from edgeattn.converters.passes.graph import rewritten
from edgeattn.converters.passes.plain_control import plain_control
from edgeattn.converters.passes.plain_flex_attention import plain_flex_attention
from tests.converters.passes.tracing import operators, run, traced

map_over: Any = torch_map
scan: Any = torch_scan
while_loop: Any = torch_while_loop


class Apply(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def counted(x: Tensor) -> Tensor:
    start = torch.zeros((), dtype=torch.int64)
    result: Tensor = while_loop(lambda i, _: i < 4, lambda i, y: (i + 1, y.sin() + 1), (start, x))[1]
    return result


def scanned(x: Tensor) -> Tensor:
    def step(carry: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        after = carry * 0.9 + row
        return after, after.clone()

    carry, rows = scan(step, torch.zeros(3), x, dim=0)
    result: Tensor = rows + carry
    return result


def chosen(x: Tensor) -> Tensor:
    result: Tensor = torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y + 1, (x,))
    return result


def nested(x: Tensor) -> Tensor:
    """A branch and a loop inside of a branch."""
    result: Tensor = torch.cond(x.sum() > 0, lambda y: chosen(y - 1) * counted(y), torch.neg, (x,))
    return result


@pytest.mark.parametrize(
    ("function", "gone"),
    [
        (nested, "cond"),
        (counted, "while_loop"),
        (scanned, "scan"),
        (chosen, "cond"),
        (lambda x: map_over(lambda row: row.softmax(-1), x), "map_impl"),
    ],
)
def test_branches_and_loops_are_written_out(function: Callable[..., Tensor], gone: str) -> None:
    x = torch.randn(5, 3)
    program, counts = traced(Apply(function), {"x": x}, plain_control)
    assert counts == {"plain_control": 1}
    assert gone not in operators(program)
    for given in (x, -x, x.abs(), -x.abs()):
        torch.testing.assert_close(run(program, {"x": given}), function(given), atol=1e-6, rtol=0)


def test_a_loop_whose_length_depends_on_values_stays() -> None:
    def until(x: Tensor) -> Tensor:
        result: Tensor = while_loop(lambda y: y.sum() < 9, lambda y: (y + 1,), (x,))[0]
        return result

    program, counts = traced(Apply(until), {"x": torch.zeros(3)}, plain_control)
    assert counts == {"plain_control": 0}
    assert "while_loop" in operators(program)


class Flex(nn.Module):
    """Attention over 6 positions; the keys of the second row are 4 long, or 0."""

    def __init__(self, how: str, groups: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.groups = how, groups
        self.bias = nn.Parameter(torch.randn(4, 6, 6))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        q, k = x, x[:, : self.groups]
        mask, change = None, None
        if self.how == "lengths":
            mask = create_block_mask(lambda b, h, i, j: j < lengths[b], 2, None, 6, 6, device="cpu")  # noqa: ARG005
        elif self.how == "capped":
            mask = create_block_mask(lambda b, h, i, j: i > j, None, None, 6, 6, device="cpu")  # noqa: ARG005
            change = lambda s, b, h, i, j: 2 * torch.tanh(s / 2)  # noqa: ARG005, E731
        else:
            change = lambda s, b, h, i, j: s + self.bias[h, i, j]  # noqa: ARG005, E731
        return flex_attention(q, k, k, change, mask, scale=0.3, enable_gqa=True)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["lengths", "capped", "biased"])
def test_flex_attention_is_plain_attention(how: str) -> None:
    module = Flex(how)
    given = {"x": torch.randn(2, 4, 6, 8), "lengths": torch.tensor([6, 4])}
    with torch.no_grad():
        exported = torch.export.export(module, tuple(given.values()), strict=False)
    program = exported.run_decompositions({})  # as it is traced: a mask of blocks is made by vmap
    counts = rewritten(program, FX_PASSES)
    assert counts[plain_flex_attention.__name__] == 1
    assert "flex_attention" not in operators(program)
    for lengths in ([6, 4], [3, 0]):
        given["lengths"] = torch.tensor(lengths)
        with torch.no_grad():
            expected = module(**given)
        torch.testing.assert_close(run(program, given), expected, atol=1e-5, rtol=0)
