"""Eager attention: -1e4 in place of -inf and of the lowest float, rows that see nothing as they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgeattn.converters.passes.finite_masks import finite_masks
from edgeattn.converters.passes.fold_constants import fold_constants
from tests.converters.passes.tracing import operators, run, traced

INFINITE, LOWEST = float("-inf"), torch.finfo(torch.float32).min


class Filled(nn.Module):
    """Scores replaced by one number."""

    def __init__(self, lowest: float, where: bool) -> None:
        super().__init__()
        self.lowest, self.where = lowest, where

    def forward(self, scores: Tensor, seen: Tensor) -> Tensor:
        if self.where:
            return torch.softmax(torch.where(seen, scores, self.lowest), -1)
        return torch.softmax(scores.masked_fill(~seen, self.lowest), -1)


class Added(nn.Module):
    """A number added to the scores, written in two of the usual ways."""

    def __init__(self, lowest: float, product: bool) -> None:
        super().__init__()
        self.lowest, self.product = lowest, product

    def forward(self, scores: Tensor, seen: Tensor) -> Tensor:
        mask = (1.0 - seen.float()) * self.lowest if self.product else torch.where(seen, 0.0, self.lowest)
        return torch.softmax(scores + mask, -1)


def given(nothing: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    seen = torch.rand(1, 2, 6, 6) > 0.4
    seen[..., 0] = True
    if nothing:
        seen[:, :, 3] = False
    return {"scores": 3 * torch.randn(1, 2, 6, 6), "seen": seen}


MODULES = {
    "masked_fill": Filled(LOWEST, where=False),
    "where": Filled(LOWEST, where=True),
    "added": Added(LOWEST, product=False),
    "one minus": Added(LOWEST, product=True),
    "minus a billion": Added(-1e9, product=True),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_row_that_sees_nothing_is_what_it_was(name: str) -> None:
    inputs = given(nothing=True)
    program, counts = traced(MODULES[name], inputs, finite_masks)
    assert counts["finite_masks"] == 1
    expected = MODULES[name](**inputs)
    torch.testing.assert_close(expected[:, :, 3], torch.full((1, 2, 6), 1 / 6))
    torch.testing.assert_close(run(program, inputs), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    "module", [Filled(INFINITE, where=False), Filled(INFINITE, where=True), Added(INFINITE, False)]
)
def test_infinities_go_and_no_row_is_nan(module: nn.Module) -> None:
    inputs = given(nothing=False)
    program, _ = traced(module, inputs, finite_masks)
    torch.testing.assert_close(run(program, inputs), module(**inputs), atol=1e-7, rtol=0)
    blind = given(nothing=True)
    assert torch.isnan(module(**blind)).any()
    assert torch.isfinite(run(program, blind)).all()


@pytest.mark.parametrize("name", MODULES)
def test_in_float16_the_rewritten_mask_makes_no_nan(name: str) -> None:
    # What a GPU delegate computes: every number of the graph in float16, the lowest float32 among them.
    inputs = {key: value.half() if value.is_floating_point() else value for key, value in given(nothing=True).items()}
    program, _ = traced(MODULES[name], given(nothing=True), finite_masks)
    module = program.module(check_guards=False).half()
    for node in module.graph.nodes:
        node.args = tuple(torch.float16 if argument is torch.float32 else argument for argument in node.args)
    module.recompile()
    assert torch.isfinite(module(*inputs.values())).all()


def test_a_known_mask_becomes_a_constant() -> None:
    class Causal(nn.Module):
        def forward(self, scores: Tensor) -> Tensor:
            return torch.softmax(scores + torch.full((6, 6), INFINITE).triu(1), -1)

    inputs = {"scores": torch.randn(1, 2, 6, 6)}
    program, _ = traced(Causal(), inputs, fold_constants, finite_masks)
    assert operators(program) == ["add", "softmax"]
    assert all(bool(torch.isfinite(value.float()).all()) for value in program.constants.values())
    torch.testing.assert_close(run(program, inputs), Causal()(**inputs), atol=1e-7, rtol=0)


def test_a_learned_bias_is_no_mask() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(6, 6) * 100)

        def forward(self, scores: Tensor) -> Tensor:
            return torch.softmax(scores + self.bias, -1)

    inputs = {"scores": torch.randn(1, 2, 6, 6)}
    program, counts = traced(Biased(), inputs, finite_masks)
    assert counts["finite_masks"] == 0
    assert operators(program) == ["add", "softmax"]
