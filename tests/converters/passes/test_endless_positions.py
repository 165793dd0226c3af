"""Streams that look their position up in a sinusoidal table go on beyond its end."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.converters.litert import to_tflite
from edgeattn.converters.onnx import export_onnx
from edgeattn.converters.passes.endless_positions import endless_positions
from edgeattn.model import Artifact, EdgeModel
from edgeattn.runtimes import open_session
from edgeattn.sources import from_module
from tests.converters.passes.tracing import run, traced

WIDTH, ROWS = 16, 50


def exact(position: int, halves: bool) -> np.ndarray:
    """Vaswani et al. (2017), section 3.5, in float64."""
    angles = [position / 10_000 ** (2 * i / WIDTH) for i in range(WIDTH // 2)]
    sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
    return np.array(
        sines + cosines if halves else [value for pair in zip(sines, cosines, strict=True) for value in pair]
    )


class Counted(nn.Module):
    """A step that counts itself and adds the position."""

    def __init__(self, halves: bool = False, learned: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        table = torch.tensor(np.array([exact(n, halves) for n in range(ROWS)]), dtype=torch.float32)
        self.register_buffer("table", torch.randn(ROWS, WIDTH) if learned else table)

    def forward(self, x: Tensor, count: Tensor) -> dict[str, Tensor]:
        return {"y": x + self.get_buffer("table")[count], "next_count": count + 1}


def given(count: int) -> dict[str, Tensor]:
    return {"x": torch.zeros(1, WIDTH), "count": torch.tensor([count])}


@pytest.mark.parametrize("halves", [False, True])
def test_positions_beyond_the_table_are_the_sines(halves: bool) -> None:
    program, counts = traced(Counted(halves), given(3), endless_positions)
    assert counts == {"endless_positions": 1}
    for count in (0, 3, ROWS - 1, ROWS, 1023, 1024, 100_000, 2**20 - 1):
        got = run(program, given(count))["y"][0]
        np.testing.assert_allclose(got, exact(count, halves), atol=1e-6)  # a few float32 steps of 6e-8
    wrapped = run(program, given(2**20 + 5))["y"][0]
    np.testing.assert_allclose(wrapped, exact(5, halves), atol=1e-6)


def test_a_learned_table_and_an_index_that_is_no_counter_stay() -> None:
    _, counts = traced(Counted(learned=True), given(3), endless_positions)
    assert counts == {"endless_positions": 0}

    class Looked(Counted):
        def forward(self, x: Tensor, count: Tensor) -> dict[str, Tensor]:
            return {"y": x + self.get_buffer("table")[count]}

    _, counts = traced(Looked(), given(3), endless_positions)
    assert counts == {"endless_positions": 0}


@pytest.fixture(scope="module")
def model() -> EdgeModel:
    return from_module(Counted(), given(3), "counted")


@pytest.mark.parametrize("engine", ["onnxruntime", "litert"])
def test_engines_count_beyond_the_table(engine: str, model: EdgeModel, tmp_path: Path) -> None:
    if engine == "litert":
        pytest.importorskip("litert_torch", reason="needs edgeattn[tflite]")
        artifact = to_tflite(model, tmp_path, "fp32")
    else:
        artifact = Artifact("onnxruntime", "fp32", export_onnx(model, tmp_path), "")
    with open_session(engine, artifact.models, model.spec, threads=1) as session:
        for count in (3, ROWS, 70_000):
            got = session.run({name: value.numpy() for name, value in given(count).items()})
            np.testing.assert_allclose(got["y"][0], exact(count, halves=False), atol=1e-6)
            assert got["next_count"].tolist() == [count + 1]
