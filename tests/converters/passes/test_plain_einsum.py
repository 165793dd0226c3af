"""Einsum, diagonals and copies of every form, against torch: no einsum is left, and the values stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from edgeattn.converters.passes.plain_copies import plain_copies
from edgeattn.converters.passes.plain_diagonal import plain_diagonal
from edgeattn.converters.passes.plain_einsum import plain_einsum
from tests.converters.passes.tracing import Pass, operators, run, traced

EINSUMS: Sequence[tuple[str, Sequence[tuple[int, ...]]]] = (
    ("bhqd,bhkd->bhqk", [(2, 3, 4, 6), (2, 3, 5, 6)]),
    ("bqhd,bkhd->bhqk", [(2, 4, 3, 6), (2, 5, 3, 6)]),
    ("bhqk,bkhd->bqhd", [(2, 3, 4, 5), (2, 5, 3, 6)]),
    ("...ij,...jk->...ik", [(2, 3, 4, 5), (3, 5, 6)]),
    ("b...d,k...d->bk...", [(2, 3, 4, 6), (5, 3, 4, 6)]),
    ("...i,...i", [(2, 3, 4), (2, 3, 4)]),
    ("bii->bi", [(2, 4, 4)]),
    ("iii", [(3, 3, 3)]),
    ("bii,bjj->b", [(2, 4, 4), (2, 5, 5)]),
    ("bhii,bhij->bhj", [(2, 3, 4, 4), (2, 3, 4, 6)]),
    ("bqd,bkd,bke->bqe", [(2, 4, 6), (2, 5, 6), (2, 5, 3)]),
    ("bhqd,bhkd,hd,bhkv->bqhv", [(2, 3, 4, 6), (2, 3, 5, 6), (3, 6), (2, 3, 5, 2)]),
    ("bi,bj->bij", [(2, 4), (2, 5)]),
    ("i,j->ji", [(4,), (5,)]),
    ("bij,kj->", [(2, 4, 6), (3, 6)]),
    ("ba,bc", [(2, 3), (2, 4)]),
    ("bid,bjd->bij", [(1, 4, 6), (3, 5, 6)]),
    ("bij,bjk->bik", [(2, 4, 1), (2, 5, 3)]),
    ("abcij,abcjk->abcik", [(2, 3, 2, 4, 5), (2, 3, 2, 5, 6)]),
    ("bthd,hde->bte", [(2, 4, 3, 5), (3, 5, 7)]),
    ("bij->bji", [(2, 4, 6)]),
    ("ij,ij->ij", [(4, 6), (4, 6)]),
    (",ij->ij", [(), (4, 6)]),
)


class Apply(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, a: Tensor, b: Tensor | None = None, c: Tensor | None = None, d: Tensor | None = None) -> Tensor:
        return self.function(*(one for one in (a, b, c, d) if one is not None))


@pytest.mark.parametrize(("equation", "shapes"), EINSUMS, ids=[equation for equation, _ in EINSUMS])
def test_every_einsum_becomes_products(equation: str, shapes: Sequence[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    given = {name: torch.randn(shape) for name, shape in zip("abcd", shapes, strict=False)}
    program, counts = traced(Apply(lambda *operands: torch.einsum(equation, *operands)), given, plain_einsum)
    assert counts == {"plain_einsum": 1}
    assert "einsum" not in operators(program)
    torch.testing.assert_close(run(program, given), torch.einsum(equation, *given.values()), atol=1e-5, rtol=0)


def test_attention_by_einsum_is_two_products_of_four_axes() -> None:
    given = {name: torch.randn(2, 3, 4, 6) for name in "abc"}
    module = Apply(
        lambda q, k, v: torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)
    )
    program, _ = traced(module, given, plain_einsum)
    assert operators(program) == ["transpose", "matmul", "softmax", "matmul"]


@pytest.mark.parametrize(
    ("rewrite", "function", "given", "gone"),
    [
        (plain_diagonal, lambda x: x.diagonal() * 2, torch.randn(4, 6), "diagonal"),
        (plain_diagonal, lambda x: x.diagonal(2, 1, 2) * 2, torch.randn(3, 6, 4), "diagonal"),
        (plain_diagonal, lambda x: x.diagonal(-1, -1, 0) * 2, torch.randn(5, 3, 6), "diagonal"),
        (plain_diagonal, torch.trace, torch.randn(5, 3), "trace"),
        (plain_copies, lambda x: x.repeat(2, 1, 3, 1, 1), torch.randn(2, 3, 1, 4, 5), "repeat"),
        (plain_copies, lambda x: x.repeat(1, 2, 1, 40, 1), torch.randn(2, 3, 4), "repeat"),
        (plain_copies, lambda x: torch.ones(2, 4, 3, 5) @ x.expand(2, 4, -1, -1).mT, torch.randn(2, 1, 6, 5), "expand"),
        (plain_copies, lambda x: torch.ones(2, 6, 5) * x.expand(2, 6, 5), torch.randn(6, 1), "expand"),
    ],
)
def test_diagonals_and_copies_are_written_out(
    rewrite: Pass, function: Callable[..., Tensor], given: Tensor, gone: str
) -> None:
    program, counts = traced(Apply(function), {"a": given}, rewrite)
    assert counts == {rewrite.__name__: 1}
    if "repeat" not in gone:  # beyond 32 copies an expand of three axes is left
        assert gone not in operators(program)
    torch.testing.assert_close(run(program, {"a": given}), function(given), atol=1e-5, rtol=0)


def test_a_diagonal_that_is_written_into_stays() -> None:
    def marked(x: Tensor) -> Tensor:
        y = x.clone()
        y.diagonal().zero_()
        return y

    program, counts = traced(Apply(marked), {"a": torch.randn(4, 4)}, plain_diagonal)
    assert counts == {"plain_diagonal": 0}
    torch.testing.assert_close(run(program, {"a": torch.ones(4, 4)}), torch.ones(4, 4) - torch.eye(4))


def test_an_expand_that_a_product_sums_over_stays() -> None:
    given = torch.randn(2, 6, 1)
    program, counts = traced(Apply(lambda x: torch.ones(2, 3, 5) @ x.expand(2, 6, 5).mT), {"a": given}, plain_copies)
    assert counts == {"plain_copies": 0}
    torch.testing.assert_close(run(program, {"a": given}), torch.ones(2, 3, 5) @ given.expand(2, 6, 5).mT)


def test_an_expand_that_makes_the_result_s_shape_stays() -> None:
    given = torch.randn(6, 1)
    program, counts = traced(Apply(lambda x: 2 * x.expand(2, 6, 5) + x[:, 0].sum()), {"a": given}, plain_copies)
    assert counts == {"plain_copies": 0}
    assert "expand" in operators(program)
