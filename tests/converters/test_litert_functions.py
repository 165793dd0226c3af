"""What stands in for lowerings that LiteRT's converter lacks computes what torch does; one file holds all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeattn.converters.litert import to_tflite
from edgeattn.converters.litert_functions import FUNCTIONS
from edgeattn.runtimes import open_session
from edgeattn.sources.modules import from_module

aten = torch.ops.aten


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("reduce", ["sum", "prod", "amax", "amin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_reduction_by_index_is_torch_s(reduce: str, include_self: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, source = (torch.randn(3, 5, 4) * 3).to(dtype), (torch.randn(3, 9, 4) * 3).to(dtype)
    index = torch.randint(0, 4, (3, 9, 4))  # nothing for the last place
    expected = x.scatter_reduce(1, index, source, reduce, include_self=include_self)
    got = FUNCTIONS[aten.scatter_reduce.two](x, -2, index, source, reduce, include_self=include_self)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)  # sums and products in another order


def test_a_sum_by_index_of_infinities_reaches_their_places_alone() -> None:
    source, index = torch.tensor([1.0, float("inf"), 2.0]), torch.tensor([0, 1, 0])
    got = FUNCTIONS[aten.scatter_add.default](torch.zeros(3), 0, index, source)
    assert got.tolist() == [3.0, float("inf"), 0.0]


def test_a_sum_by_index_without_axes() -> None:
    one = torch.ones(())
    assert FUNCTIONS[aten.scatter_add.default](one, 0, torch.tensor(0), one * 2) == torch.tensor(3.0)


class GraphAttention(nn.Module):
    """Softmax over the edges that reach a node (Velickovic et al., 2018)."""

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        scores = (x[source] * x[target]).sum(-1)
        highest = torch.full((6,), -1e30).scatter_reduce(0, target, scores, "amax")
        weights = (scores - highest[target]).exp()
        total = torch.zeros(6).index_add_(0, target, weights)
        return torch.zeros(6, 4).index_add_(0, target, (weights / total[target])[:, None] * x[source])


@pytest.mark.slow
def test_graph_attention_runs_on_litert(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    torch.manual_seed(0)
    inputs = {"x": torch.randn(6, 4), "edges": torch.randint(0, 6, (2, 15))}
    model = from_module(GraphAttention(), inputs, "graph")
    artifact = to_tflite(model, tmp_path, "fp32")
    other = {"x": torch.randn(6, 4), "edges": torch.randint(0, 6, (2, 15))}
    with open_session("litert", artifact.models, model.spec, threads=1) as session:
        (got,) = session.run({name: tensor.numpy() for name, tensor in other.items()}, "main").values()
    torch.testing.assert_close(torch.from_numpy(got), GraphAttention()(**other), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("operator", "function"),
    [(aten.exp2.default, torch.exp2), (aten.erfc.default, torch.erfc), (aten.signbit.default, torch.signbit)],
)
def test_a_function_of_numbers_is_torch_s(operator: Any, function: Any) -> None:
    x = torch.tensor([-30.0, -1.5, -0.0, 0.0, 0.3, 2.0, 30.0])
    torch.testing.assert_close(FUNCTIONS[operator](x), function(x), atol=1e-6, rtol=1e-5)


def test_exclusive_or_of_numbers_is_torch_s() -> None:
    a, b = torch.tensor([0.0, 2.0, 3.0, 0.0]), torch.tensor([0, 1, 0, 4])
    assert torch.equal(FUNCTIONS[aten.logical_xor.default](a, b), torch.logical_xor(a, b))
