"""Multiply-adds against torch's own counter, memory against a chain worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgeattn.graphs.work import (
    Lifetime,
    attention_macs,
    convolution_macs,
    einsum_macs,
    peak_bytes,
    recurrent_macs,
    transposed_convolution_macs,
)


def counted(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Multiply-adds by torch, which counts two operations for each."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_count_as_torch_counts_them(groups: int) -> None:
    plain = nn.Conv2d(4, 8, (3, 2), groups=groups)
    data = torch.zeros(2, 4, 9, 7)
    assert convolution_macs(plain(data).shape, plain.weight.shape) == counted(plain, data)


def test_transposed_convolutions_count_as_torch_counts_them() -> None:
    module = nn.ConvTranspose2d(4, 6, 3, stride=2)
    data = torch.zeros(2, 4, 9, 7)
    assert transposed_convolution_macs(data.shape, module.weight.shape) == counted(module, data)


def test_attention_counts_both_products() -> None:
    queries, keys, values = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 8), torch.zeros(2, 3, 7, 6)

    class Written(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return torch.softmax(q @ k.mT, -1) @ v

    assert attention_macs(queries.shape, keys.shape, values.shape) == counted(Written(), queries, keys, values)


def test_an_einsum_of_two_counts_as_its_product_and_spaces_do_not_matter() -> None:
    left, right = torch.zeros(2, 3, 5), torch.zeros(2, 5, 7)

    class Written(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.einsum("bij,bjk->bik", a, b)

    assert einsum_macs("b i j, b j k -> b i k", [left.shape, right.shape]) == counted(Written(), left, right)


def test_a_recurrence_reads_every_weight_once_per_step() -> None:
    module = nn.GRU(4, 6)
    weights = [parameter.shape for parameter in module.parameters() if parameter.dim() == 2]
    assert recurrent_macs((10, 2), weights) == 10 * 2 * 3 * 6 * (4 + 6)


def test_memory_is_that_of_the_worst_moment_and_views_take_none() -> None:
    steps = [
        Lifetime(inputs=["x"], outputs={"a": 100}),
        Lifetime(inputs=["a"], outputs={"shown": 100}, views="a"),
        Lifetime(inputs=["shown"], outputs={"b": 30}),  # a and b: 130
        Lifetime(inputs=["b"], outputs={"c": 60}),  # b and c: 90, a is gone
        Lifetime(inputs=["c", "x"], outputs={"y": 7}),
    ]
    assert peak_bytes(steps, {"x": 5}, ["y"]) == 5 + 7 + 130
    assert peak_bytes(steps, {"x": 5}, ["y", "shown"]) == 5 + 7 + 100 + 90  # what is given back stays all the time


def test_what_nobody_reads_is_gone_after_its_step() -> None:
    steps = [Lifetime(inputs=["x"], outputs={"unused": 50}), Lifetime(inputs=["x"], outputs={"y": 1})]
    assert peak_bytes(steps, {"x": 2}, ["y"]) == 2 + 1 + 50
