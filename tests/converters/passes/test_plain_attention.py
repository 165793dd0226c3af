"""Attention written out: the source's values, finite masks, grouped heads without a copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeattn.converters.passes.plain_attention import plain_attention
from edgeattn.spec import HIDDEN
from tests.converters.passes.tracing import constants, operators, run, traced


class Attention(nn.Module):
    """scaled_dot_product_attention as given, K and V with fewer heads if wanted."""

    def __init__(self, heads: int = 4, groups: int = 4, repeat: bool = False, **options: object) -> None:
        super().__init__()
        self.heads, self.groups, self.repeat, self.options = heads, groups, repeat, options

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.repeat:
            copies = self.heads // self.groups
            key, value = (
                x[:, :, None].expand(*x.shape[:2], copies, *x.shape[2:]).reshape(x.shape[0], self.heads, *x.shape[2:])
                for x in (key, value)
            )
        return functional.scaled_dot_product_attention(query, key, value, mask, **self.options)  # type: ignore[arg-type]


def inputs(heads: int = 4, groups: int = 4, mask: Tensor | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"query": (2, heads, 5, 8), "key": (2, groups, 5, 8), "value": (2, groups, 5, 8)}
    tensors = {name: torch.randn(*shape) for name, shape in shapes.items()}
    return tensors if mask is None else tensors | {"mask": mask}


LEFT_PADDED = torch.tril(torch.ones(5, 5, dtype=torch.bool)) & (torch.arange(5) >= 2)  # rows 0 and 1 see nothing


@pytest.mark.parametrize(
    ("module", "given"),
    [
        (Attention(), inputs()),
        (Attention(is_causal=True), inputs()),
        (Attention(scale=0.5), inputs()),
        (Attention(), inputs(mask=torch.tril(torch.ones(5, 5, dtype=torch.bool)))),
        (Attention(), inputs(mask=torch.randn(5, 5))),
        (Attention(groups=2, enable_gqa=True, is_causal=True), inputs(groups=2)),
        (Attention(groups=1, enable_gqa=True), inputs(groups=1)),
        (Attention(groups=2, repeat=True), inputs(groups=2, mask=LEFT_PADDED)),
    ],
    ids=["plain", "causal", "scale", "boolean mask", "bias", "grouped causal", "one group", "grouped by expand"],
)
def test_what_is_written_out_computes_the_same(module: Attention, given: dict[str, Tensor]) -> None:
    program, counts = traced(module, given, plain_attention)
    assert counts == {"plain_attention": 1}
    assert "scaled_dot_product_attention" not in operators(program)
    # Another order of the same float32 sums: some steps of 6e-8.
    torch.testing.assert_close(run(program, given), module(**given), atol=2e-6, rtol=0)


@pytest.mark.parametrize("module", [Attention(groups=2, enable_gqa=True), Attention(groups=2, repeat=True)])
def test_grouped_heads_need_no_copy(module: Attention) -> None:
    program, _ = traced(module, inputs(groups=2), plain_attention)
    assert not {"expand", "cat", "repeat", "repeat_interleave"} & set(operators(program))
    without, _ = traced(module, inputs(groups=2))
    left = set(operators(without))
    assert "expand" in left or "scaled_dot_product_attention" in left  # what the pass is for


def test_a_mask_that_is_known_becomes_one_finite_constant() -> None:
    program, _ = traced(Attention(is_causal=True), inputs(), plain_attention)
    (bias,) = constants(program)
    assert bias.shape == (5, 5)
    assert set(bias.reshape(-1).tolist()) == {HIDDEN, 0.0}
    assert "mul" in operators(program)  # the scale
    assert operators(program).count("mul") == 1  # and no product for rows that see nothing: there are none


def test_rows_that_see_nothing_give_zeros_as_torch_does() -> None:
    given = inputs(mask=LEFT_PADDED)
    program, _ = traced(Attention(), given, plain_attention)
    got = run(program, given)
    assert torch.equal(got[:, :, :2], torch.zeros(2, 4, 2, 8))
    torch.testing.assert_close(got, Attention()(**given), atol=2e-6, rtol=0)


class Padded(nn.Module):
    """A padding mask turned into -inf, as torch.nn.functional does for key_padding_mask, on top of a causal one."""

    def __init__(self, lowest: float) -> None:
        super().__init__()
        self.lowest = lowest

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor) -> Tensor:
        hidden = torch.zeros(2, 1, 1, 5).masked_fill(padding[:, None, None, :], self.lowest)
        causal = torch.full((5, 5), self.lowest).triu(1)
        mask = (hidden + causal).clamp(min=self.lowest)
        if self.lowest == float("-inf"):
            mask = hidden + causal
        return functional.scaled_dot_product_attention(query, key, value, mask)


def test_an_additive_mask_of_infinities_is_read_as_the_boolean_behind_it() -> None:
    padding = torch.tensor([[True, True, False, False, False], [False, False, False, False, True]])
    given = inputs() | {"padding": padding}
    program, _ = traced(Padded(float("-inf")), given, plain_attention)
    torch.testing.assert_close(run(program, given), Padded(float("-inf"))(**given), atol=2e-6, rtol=0)
    assert "masked_fill" not in operators(program)
    assert not any(bool(torch.isinf(value.float()).any()) for value in constants(program))


def test_a_mask_from_outside_may_hold_infinities() -> None:
    mask = torch.where(LEFT_PADDED, 0.0, float("-inf"))
    given = inputs(mask=mask)
    program, _ = traced(Attention(), given, plain_attention)
    torch.testing.assert_close(run(program, given), Attention()(**given), atol=2e-6, rtol=0)


LOWEST = torch.finfo(torch.float32).min


@pytest.mark.parametrize("numbers", [(LOWEST, 0.0), (-1e9, 0.5), (LOWEST, float("-inf")), (-1e4, -2.0)])
@pytest.mark.parametrize("known", [False, True])
def test_a_row_that_numbers_hide_is_what_torch_makes_of_it(numbers: tuple[float, float], known: bool) -> None:
    mask = torch.full((1, 1, 5, 5), numbers[1])
    mask[..., 1:3, :] = numbers[0]
    mask[..., 2, :2] = float("-inf")
    mask[..., 3, :] = float("-inf")

    class Kept(nn.Module):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", mask)

        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(query, key, value, self.mask)

    given = inputs() if known else inputs(mask=torch.zeros(1, 1, 5, 5))
    module = Kept() if known else Attention()
    program, _ = traced(module, given, plain_attention)
    if not known:
        given["mask"] = mask
    torch.testing.assert_close(run(program, given), module(**given), atol=2e-6, rtol=0)
    assert torch.equal(run(program, given)[:, :, 3], torch.zeros(2, 4, 8))


@pytest.mark.parametrize("fill", [LOWEST, float("-inf")])
def test_a_bias_with_holes_that_hides_a_row(fill: float) -> None:
    class Relative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(4, 5, 5))

        def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
            mask = self.bias.masked_fill(~seen, fill)
            return functional.scaled_dot_product_attention(query, key, value, mask)

    seen = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    torch.manual_seed(1)
    module = Relative()
    program, _ = traced(module, inputs() | {"seen": seen}, plain_attention)
    seen[:, :, 2] = False
    given = inputs() | {"seen": seen}
    torch.testing.assert_close(run(program, given), module(**given), atol=2e-6, rtol=0)


def test_layers_share_one_mask() -> None:
    class Two(nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
            first = functional.scaled_dot_product_attention(query, key, value, mask)
            return functional.scaled_dot_product_attention(first, key, value, mask)

    given = inputs(mask=LEFT_PADDED)
    program, _ = traced(Two(), given, plain_attention)
    assert operators(program).count("sub") == 1
    assert operators(program).count("amax") == 1
