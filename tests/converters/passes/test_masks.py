"""Eager attention: -1e4 in place of -inf and of the lowest float, rows that see nothing as they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgeattn.converters.passes.finite_masks import finite_masks
from edgeattn.converters.passes.fold_constants import fold_constants
from tests.converters.passes.tracing import constants, operators, run, traced

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
def test_infinities_go_and_a_row_that_sees_nothing_is_nan_as_in_torch(module: nn.Module) -> None:
    program, _ = traced(module, given(nothing=False), finite_masks)
    for nothing in (False, True):
        inputs = given(nothing)
        expected = module(**inputs)
        assert bool(torch.isnan(expected).any()) is nothing
        torch.testing.assert_close(run(program, inputs), expected, atol=1e-7, rtol=0, equal_nan=True)
    assert not any(bool(torch.isinf(value).any()) for value in constants(program))


class Mended(nn.Module):
    """Attention that mends rows that see nothing by itself, in the ways that people write."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, scores: Tensor, seen: Tensor, value: Tensor) -> Tensor:
        weights = scores.masked_fill(~seen, INFINITE).softmax(-1)
        if self.how == "nan_to_num":
            weights = torch.nan_to_num(weights)
        elif self.how == "a number":
            weights = torch.nan_to_num(torch.dropout(weights, 0.1, False), nan=0.25)
        elif self.how == "isnan":
            weights = weights.masked_fill(torch.isnan(weights), 0.0)
        elif self.how == "where isnan":
            weights = torch.where(weights.isnan(), torch.zeros(()), weights)
        elif self.how == "differs":
            weights = torch.where(weights != weights, 0.0, weights)
        elif self.how == "again":
            weights = weights.masked_fill(~seen, 0.0)
        elif self.how == "any":
            weights = torch.where(seen.any(-1, keepdim=True), weights, 0.0)
        elif self.how == "renormalised":
            weights = torch.nan_to_num(weights) * seen
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
        mixed = weights @ value
        if self.how == "after":
            mixed = torch.nan_to_num(mixed)
        if self.how == "end":
            mixed = torch.nan_to_num(torch.relu(mixed * 2.0 + 1.0).clamp(min=0.5), nan=-1.0)
        if self.how == "kept":
            mixed = torch.relu(mixed)
        return mixed


AT_ONCE = ["nan_to_num", "a number", "isnan", "where isnan", "renormalised"]
MENDED = [*AT_ONCE, "differs", "again", "any", "after", "end", "kept", "not at all"]


@pytest.mark.parametrize("how", MENDED)
def test_rows_that_see_nothing_come_out_as_the_model_mends_them(how: str) -> None:
    value = torch.randn(1, 2, 6, 4)
    program, counts = traced(Mended(how), given(nothing=False) | {"value": value}, finite_masks)
    assert counts["finite_masks"] == 1
    for nothing in (False, True):
        inputs = given(nothing) | {"value": value}
        torch.testing.assert_close(run(program, inputs), Mended(how)(**inputs), atol=1e-6, rtol=0, equal_nan=True)
    if how in AT_ONCE:  # no engine sees NaN
        assert not {"isnan", "nan_to_num"} & set(operators(program))
        assert not any(bool(torch.isnan(value).any()) for value in constants(program))


@pytest.mark.parametrize("form", ["amax", "amax kept", "max", "max kept"])
def test_the_largest_of_what_is_hidden_as_a_whole_is_infinite_without_asking_the_engine(form: str) -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor, seen: Tensor) -> Tensor:
            hidden = x.masked_fill(~seen.unsqueeze(-1), INFINITE)
            kept = form.endswith("kept")
            return hidden.amax(1, kept) if form.startswith("amax") else hidden.max(1, kept)[0]

    inputs = {"x": torch.randn(2, 5, 3), "seen": torch.tensor([[True, True, False, False, False], [False] * 5])}
    program, counts = traced(Pooled(), inputs, finite_masks)
    assert counts["finite_masks"] == 1
    assert operators(program)[-1] == "where"
    expected = Pooled()(**inputs)
    assert torch.equal(run(program, inputs), expected)
    assert bool(torch.isinf(expected[1]).all())


def test_nan_passes_the_activations_on_its_way_to_where_it_is_mended() -> None:
    # OpenVINO makes 0 of relu(NaN).
    program, _ = traced(Mended("end"), given(nothing=False) | {"value": torch.randn(1, 2, 6, 4)}, finite_masks)
    assert "relu" not in operators(program)
    program, _ = traced(Mended("kept"), given(nothing=False) | {"value": torch.randn(1, 2, 6, 4)}, finite_masks)
    assert "relu" in operators(program)


class Policy(nn.Module):
    """What a caller reads beside the softmax: scores of legal actions, and their log-probabilities."""

    def forward(self, scores: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        legal = scores.masked_fill(~seen, INFINITE)
        known = (scores + torch.full((6, 6), INFINITE).triu(1)) / 0.7
        return (
            legal.softmax(-1),
            legal,
            legal.log_softmax(-1),
            known.log_softmax(-1),
            scores.masked_fill(~seen, -1e30).log_softmax(-1),
        )


@pytest.mark.parametrize("nothing", [False, True])
def test_what_is_returned_or_logarithmised_stays_infinite(nothing: bool) -> None:
    program, counts = traced(Policy(), given(nothing=False), finite_masks)
    assert counts["finite_masks"] == 1
    for got, expected in zip(run(program, given(nothing)), Policy()(**given(nothing)), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0, equal_nan=True)


class Depths(nn.Module):
    """Two numbers that hide: in a row without anything else, the higher one is seen."""

    def __init__(self, first: float, second: float, how: str) -> None:
        super().__init__()
        self.first, self.second, self.how = first, second, how

    def forward(self, scores: Tensor, seen: Tensor, near: Tensor) -> Tensor:
        if self.how == "filled":
            scores = scores.masked_fill(~near, self.first).masked_fill(~seen, self.second)
        elif self.how == "added":
            zero = torch.zeros(())
            scores = scores + torch.where(near, zero, self.first) + torch.where(seen, zero, self.second)
        elif self.how == "one mask":
            zero = torch.zeros(())
            scores = scores + (torch.where(near, zero, self.first) + torch.where(seen, zero, self.second))
        elif self.how == "biased":
            scores = scores.masked_fill(~seen, self.second) + near.float()
        elif self.how == "causal":
            scores = scores + torch.full((6, 6), self.first).triu(1) + torch.where(seen, torch.zeros(()), self.second)
        return scores.softmax(-1)


@pytest.mark.parametrize("how", ["filled", "added", "one mask", "biased", "causal"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (LOWEST, INFINITE),
        (INFINITE, LOWEST),
        (-1e9, LOWEST),
        (LOWEST, -1e9),
        (LOWEST, LOWEST),
        (-1e9, -1e9),
        (-1e5, -1e6),
    ],
)
def test_a_row_hidden_at_two_depths_is_what_it_was(first: float, second: float, how: str) -> None:
    generator = torch.Generator().manual_seed(3)
    near, seen = (torch.rand(1, 2, 6, 6, generator=generator) > 0.5 for _ in range(2))
    near[:, 0, 2], seen[:, 0, 2], seen[:, :, 4] = False, False, False
    near[:, 1, 4, :3] = True
    inputs = {"scores": 3 * torch.randn(1, 2, 6, 6, generator=generator), "seen": seen, "near": near}
    program, _ = traced(Depths(first, second, how), inputs, finite_masks)
    expected = Depths(first, second, how)(**inputs)
    torch.testing.assert_close(run(program, inputs), expected, atol=1e-6, rtol=0, equal_nan=True)


@pytest.mark.parametrize("axis", [-1, -2, 1])
def test_rows_are_those_of_the_softmax_whatever_its_axis_and_shape(axis: int) -> None:
    class Folded(nn.Module):
        def forward(self, scores: Tensor, seen: Tensor) -> Tensor:
            hidden = scores.masked_fill(~seen[:, :1], INFINITE).view(2, 6, 6).unsqueeze(0)
            return torch.nan_to_num(hidden.transpose(-1, -2).softmax(axis))

    inputs = given(nothing=True)
    inputs["seen"][..., 2] = False
    program, counts = traced(Folded(), inputs, finite_masks)
    assert counts["finite_masks"] == 1
    torch.testing.assert_close(run(program, inputs), Folded()(**inputs), atol=1e-6, rtol=0)


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
