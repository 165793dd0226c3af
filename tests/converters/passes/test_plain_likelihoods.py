"""Likelihoods: what engines lack is written otherwise, against torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, distributions, nn
from torch.nn import functional

from edgeattn.converters.passes.plain_likelihoods import plain_likelihoods
from edgeattn.converters.trace import unchecked_arguments
from tests.converters.passes.tracing import operators, run, traced

known: Any = distributions  # its methods have no types
LOGITS = torch.tensor([[-80.0, -3.0, 0.0], [0.5, 12.0, 90.0]])
TARGETS = torch.tensor([[0.0, 1.0, 0.3], [1.0, 0.0, 1.0]])
TRIANGLE = torch.tensor([[2.0, 0.0, 0.0], [0.5, 1.5, 0.0], [-1.0, 0.3, 0.8]])


class Stepped(nn.Module):
    def __init__(self, step: Callable[..., Any]) -> None:
        super().__init__()
        self.step = step

    def forward(self, *inputs: Tensor) -> Any:
        return self.step(*inputs)


@pytest.mark.parametrize("name", ["lgamma", "digamma"])
def test_gamma_functions_are_those_of_torch_in_double(name: str) -> None:
    x = torch.cat((torch.logspace(-3, 4, 60), torch.tensor([0.5, 1.0, 2.0, 7.999, 8.0, -0.5, -1.7, -3.3])))
    program, counts = traced(Stepped(getattr(torch, name)), {"x": x}, plain_likelihoods)
    assert counts["plain_likelihoods"] == 1
    assert name not in operators(program)
    expected = getattr(torch, name)(x.double())
    error = (run(program, {"x": x}).double() - expected).abs() / expected.abs().clamp(min=1)
    assert float(error.max()) <= 3e-6  # float32, a dozen operations


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "each": lambda x, t: functional.binary_cross_entropy_with_logits(x, t, reduction="none"),
    "mean of weighted": lambda x, t: functional.binary_cross_entropy_with_logits(x, t, weight=t + 1),
    "sum, positives count more": lambda x, t: functional.binary_cross_entropy_with_logits(
        x, t, reduction="sum", pos_weight=torch.tensor([1.0, 2.0, 3.0])
    ),
}


@pytest.mark.parametrize("case", LOSSES)
def test_cross_entropy_of_large_logits_stays_finite(case: str) -> None:
    inputs = {"x": LOGITS, "t": TARGETS}
    program, counts = traced(Stepped(LOSSES[case]), inputs, plain_likelihoods)
    assert counts["plain_likelihoods"] == 1
    torch.testing.assert_close(run(program, inputs), LOSSES[case](LOGITS, TARGETS), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("upper", "ones"), [(False, False), (True, False), (False, True)])
def test_triangular_systems_are_solved_row_by_row(upper: bool, ones: bool) -> None:
    inputs = {"a": torch.stack((TRIANGLE, TRIANGLE * 2)), "b": torch.arange(12.0).reshape(2, 3, 2)}
    inputs["a"] = inputs["a"].mT.contiguous() if upper else inputs["a"]

    def step(a: Tensor, b: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(a, b, upper=upper, unitriangular=ones)
        return solved

    program, counts = traced(Stepped(step), inputs, plain_likelihoods)
    assert counts["plain_likelihoods"] == 1
    torch.testing.assert_close(run(program, inputs), step(*inputs.values()), rtol=1e-5, atol=1e-5)


DISTRIBUTIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "beta": lambda x, t: known.Beta(x.exp() + 1, x.exp() + 2).log_prob(t * 0.5 + 0.25),
    "categorical": lambda x, t: (
        known.Categorical(logits=x).log_prob(t.sum(-1).long()),
        known.Categorical(logits=x).entropy(),
    ),
    "mixture": lambda x, t: known.MixtureSameFamily(known.Categorical(logits=x), known.Normal(x, x.exp() + 1)).log_prob(
        t.sum(-1)
    ),
    "normal of many": lambda x, t: known.MultivariateNormal(x, scale_tril=TRIANGLE + x.exp().diag_embed()).log_prob(t),
    "divergence, checked": lambda x, t: known.kl_divergence(
        known.Normal(x, 1.0, validate_args=True), known.Normal(t, 2.0)
    ),
}


@pytest.mark.parametrize("case", DISTRIBUTIONS)
def test_distributions_are_traced_in_spite_of_their_checks(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)  # dynamo switches it off for good
    inputs = {"x": LOGITS / 90, "t": TARGETS}
    expected = DISTRIBUTIONS[case](*inputs.values())
    with unchecked_arguments():
        program, _ = traced(Stepped(DISTRIBUTIONS[case]), inputs, plain_likelihoods)
    left = {"lgamma", "digamma", "linalg_solve_triangular"} & set(operators(program))
    assert not left
    torch.testing.assert_close(run(program, inputs), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="Expected parameter"):
        known.Normal(torch.tensor(0.0), torch.tensor(-1.0))
