"""``unfold``, ``fold`` and windows of a signal without operators of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeattn.converters.litert import to_tflite
from edgeattn.converters.passes.plain_windows import plain_windows
from tests.converters.passes.tracing import operators, run, traced
from tests.converters.samples import as_model, deployed_once

Function = Callable[[Tensor], Tensor]


class Apply(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.function(x)}


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x.unfold(2, 7, 1), (1, 4, 10, 3)),
        (lambda x: x.unfold(-1, 3, 1).unfold(2, 2, 2), (1, 2, 6, 7)),
        (lambda x: x.unfold(1, 40, 16), (2, 200, 3)),
        (lambda x: x.unfold(0, 5, 5), (11,)),
        (lambda x: x.unfold(1, 40, 1), (2, 50)),
        (lambda x: x.unfold(1, 9, 3), (2, 9)),
        (lambda x: functional.fold(x, (8, 10), 3, padding=1, stride=2), (2, 27, 20)),
        (lambda x: functional.fold(x, (8, 10), (2, 3), dilation=2, padding=1), (1, 12, 64)),
        (lambda x: functional.fold(x, (7, 6), 2, stride=2), (12, 9)),
        (lambda x: functional.unfold(x, 3), (3, 8, 8)),
    ],
)
def test_windows_are_torch_s(function: Function, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    given = {"x": torch.randn(shape)}
    program, counts = traced(Apply(function), given, plain_windows)
    assert counts["plain_windows"]
    assert not {"unfold", "col2im"} & set(operators(program))
    torch.testing.assert_close(run(program, given)["y"], function(given["x"]), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_local_attention_by_unfold_and_a_fold_run_on_litert(tmp_path: Path) -> None:
    def both(x: Tensor) -> Tensor:
        keys = functional.pad(x, (0, 0, 2, 2)).unfold(2, 5, 1)
        scores = torch.einsum("bhtd,bhtdw->bhtw", x, keys).softmax(-1)
        near = torch.einsum("bhtw,bhtdw->bhtd", scores, keys)
        return functional.fold(near.reshape(1, 8, 9), (4, 4), 2, padding=1, stride=2)

    model = as_model("windows", Apply(both), x=torch.randn(1, 2, 9, 4))
    got = deployed_once(to_tflite(model, tmp_path, "fp32"), model)["y"]
    np.testing.assert_allclose(got, model.run(model.example["main"])["y"], atol=1e-5)
