"""Integers: what engines lack is written otherwise, and every value stays what torch gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeattn.converters.passes.drop_asserts import drop_asserts
from edgeattn.converters.passes.whole_arithmetic import whole_arithmetic
from edgeattn.converters.passes.whole_numbers import whole_numbers
from edgeattn.converters.passes.whole_products import whole_products
from tests.converters.passes.tracing import operators, run, traced

Step = Callable[[Tensor], Any]
NUMBERS = torch.tensor([[3, 1, 4, 15, 9, 2], [7, 6, 5, 44, 33, 0]])


class Stepped(nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step
        self.register_buffer("stored", torch.arange(-12, 12, dtype=torch.int8).reshape(4, 6))

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        return self.step(x, *more)


def same(expected: Any, got: Any) -> None:
    for one, other in zip(torch.utils._pytree.tree_leaves(expected), torch.utils._pytree.tree_leaves(got), strict=True):
        assert one.dtype is other.dtype
        assert torch.equal(one, other)


ARITHMETIC: dict[str, tuple[Step, str]] = {
    "argmax": (lambda x: (x.argmax(-1), x.argmin(0, keepdim=True), x.argmax()), "argmin"),
    "max": (lambda x: (*x.max(-1), *x.min(0, keepdim=True)), "max"),
    "abs": (lambda x: (x - 9).abs(), "abs"),
    "sign": (lambda x: (x - 9).sign(), "sign"),
    "pow": (lambda x: ((x - 9) ** 2, x**1, (x - 5) ** 3), "pow"),
    "xor": (lambda x: ((x > 3) ^ (x < 9), torch.logical_xor(x, x > 4)), "logical_xor"),
    "low bits": (lambda x: (x & 7, torch.bitwise_and(x, torch.tensor(3))), "__and__"),
    "mean": (lambda x: (x.mean(dtype=torch.float32), (x > 3).mean(-1, keepdim=True, dtype=torch.float32)), "none"),
    "shifts": (lambda x: (x >> 1, x << 2, ~x), "__rshift__"),
}


@pytest.mark.parametrize("case", ARITHMETIC)
def test_integer_arithmetic_is_exact_without_the_operation(case: str) -> None:
    step, gone = ARITHMETIC[case]
    program, counts = traced(Stepped(step), {"x": NUMBERS}, whole_arithmetic)
    assert counts["whole_arithmetic"]
    assert gone not in operators(program)
    same(step(NUMBERS), run(program, {"x": NUMBERS}))


def test_a_softmax_of_one_axis_is_one_of_two() -> None:
    x = torch.linspace(-2, 3, 6)
    program, counts = traced(Stepped(lambda x: (x.softmax(0), x.log_softmax(-1))), {"x": x}, whole_arithmetic)
    assert counts["whole_arithmetic"] == 2
    assert operators(program).count("squeeze") == 2
    for expected, got in zip((x.softmax(0), x.log_softmax(-1)), run(program, {"x": x}), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_exclusive_or_of_unknown_integers_stays() -> None:
    program, counts = traced(Stepped(lambda x: x ^ x.flip(-1)), {"x": NUMBERS}, whole_arithmetic)
    assert not counts["whole_arithmetic"]
    assert "__xor__" in operators(program)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16])
def test_small_integers_are_computed_in_int32_and_wrap_as_torchs(kind: torch.dtype) -> None:
    low, high = torch.iinfo(kind).min, torch.iinfo(kind).max
    x = torch.tensor([[low, -3 % (high + 1), 5, high]]).to(kind)

    def step(x: Tensor) -> Any:
        turned = x.flip(-1)
        return (turned + 100) * 3, x.max(-1), -x, x.sum(-1), torch.where(x > 4, x, 0), (x.to(torch.int32) * 7).to(kind)

    program, counts = traced(Stepped(step), {"x": x}, drop_asserts, whole_numbers)
    assert counts["whole_numbers"]
    computed = [node for node in program.graph.nodes if node.op == "call_function" and node.meta["val"] is not None]
    small = [node for node in computed if getattr(node.meta["val"], "dtype", None) is kind]
    assert all(str(node.target) == "aten.to.dtype" for node in small)  # on the way out
    same(step(x), run(program, {"x": x}))


def test_what_is_only_cast_stays_small() -> None:
    module = Stepped(lambda x: x)
    stored = module.get_buffer("stored")
    module.step = lambda x: (x.float() @ stored.float(), (x.float() * 9).to(torch.uint8))  # the latter goes out
    _, counts = traced(module, {"x": torch.ones(2, 4, dtype=torch.uint8)}, drop_asserts, whole_numbers)
    assert not counts["whole_numbers"]
    assert stored.dtype is torch.int8


PRODUCTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], torch.dtype, bool]] = {
    "int64": (lambda x, y: x @ y, torch.int64, False),
    "batches of int32": (lambda x, y: torch.bmm(x[None], y[None]), torch.int32, False),
    "linear of int64": (lambda x, y: nn.functional.linear(x, y.mT), torch.int64, False),
    "int8 in int32": (lambda x, y: x.int() @ y.int(), torch.int8, True),
    "_int_mm": (torch._int_mm, torch.int8, True),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_products_of_integers_are_exact(case: str) -> None:
    step, kind, in_float = PRODUCTS[case]
    x, y = (torch.randint(-128, 128, size, dtype=kind) for size in ((17, 8), (8, 16)))
    if not in_float:
        x, y = x * 300_001, y * 3  # beyond what float32 holds
    program, counts = traced(Stepped(step), {"x": x, "y": y}, whole_products)  # type: ignore[arg-type]
    assert counts["whole_products"] == 1
    assert ("sum" in operators(program)) != in_float
    same(step(x, y), run(program, {"x": x, "y": y}))
