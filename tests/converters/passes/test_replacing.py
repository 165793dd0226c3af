"""A call replaced by a function of plain torch: what stays of it, and what makes it stay as a whole."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn

from edgeattn.converters.passes.graph import Program
from edgeattn.converters.passes.replacing import is_read, replace_calls
from tests.converters.passes.tracing import operators, run, traced

aten = torch.ops.aten


class Norms(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.aminmax(x.relu(), dim=1).max.sigmoid()


def highest(x: Tensor, *, dim: int) -> tuple[None, Tensor]:
    return None, x.amax(dim) + torch.zeros(())


X = {"x": torch.arange(6.0).reshape(2, 3)}


def test_only_outputs_that_are_read_need_a_value() -> None:
    read: list[bool] = []

    def replaced(program: Program) -> int:
        (node,) = program.calls(aten.aminmax.default)
        read.extend(is_read(node, output) for output in (0, 1))
        return replace_calls(program, {aten.aminmax.default: highest})

    program, counts = traced(Norms(), X, replaced)
    assert counts == {"replaced": 1}
    assert read == [False, True]
    assert operators(program) == ["relu", "amax", "zeros", "add", "sigmoid"]
    torch.testing.assert_close(run(program, X), Norms()(**X))


def test_new_nodes_stand_where_the_call_stood() -> None:
    places: list[Any] = []

    def replaced(program: Program) -> int:
        (node,) = program.calls(aten.aminmax.default)
        places.append(node.meta["stack_trace"])
        return replace_calls(program, {aten.aminmax.default: highest})

    program, _ = traced(Norms(), X, replaced)
    nodes = [node for node in program.graph.nodes if "amax" in str(node.target)]
    assert [node.meta["stack_trace"] for node in nodes] == places
    assert all("nn_module_stack" in node.meta for node in nodes)


def test_a_call_may_stay() -> None:
    def replaced(program: Program) -> int:
        return replace_calls(program, {aten.aminmax.default: lambda *_, **__: NotImplemented})

    program, counts = traced(Norms(), X, replaced)
    assert counts == {"replaced": 0}
    assert operators(program)[:2] == ["relu", "aminmax"]
    assert any(node.target is operator.getitem for node in program.graph.nodes)


def test_a_size_that_values_give_stays() -> None:
    class Chosen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.masked_select(x, x > 2).relu().sum()

    def replaced(program: Program) -> int:
        return replace_calls(program, {aten.relu.default: lambda x: x.clamp(min=0)})

    _, counts = traced(Chosen(), X, replaced)
    assert counts == {"replaced": 0}
