"""Dynamic-range int8 for TFLite."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeattn.converters.tflite import to_tflite
from edgeattn.errors import ConversionError, UnsupportedError
from edgeattn.model import Artifact
from edgeattn.models.streaming_conformer import GRAPH
from edgeattn.quantize import int8_tflite, tflite
from edgeattn.runtimes import open_session
from edgeattn.sources import from_module
from tests.converters.samples import converted_stream, deployed_stream, reference_stream, sqnr_db, stream_model


@functools.cache
def quantized() -> Artifact:
    files = converted_stream()
    return int8_tflite(files.tflite, {}, files.room("tflite-int8"))


def test_the_stream_keeps_20_db_and_does_not_drift() -> None:
    expected, got = reference_stream()[1], deployed_stream(quantized())
    ratios = sqnr_db(expected, got)
    assert min(ratios.values()) >= 20, ratios
    first, last = sqnr_db(expected[50:150], got[50:150]), sqnr_db(expected[-100:], got[-100:])
    for name in ratios:
        assert last[name] >= first[name] - 3, name


def test_linear_layers_are_int8_and_the_delegate_takes_the_graph_in_one_partition() -> None:
    with open_session("litert", quantized().models, stream_model().spec, threads=1) as session:
        census = session.executed()
    assert census["FULLY_CONNECTED"].keys() == {"int8"}
    assert census["DEPTHWISE_CONV_2D"].keys() == {"float32"}
    assert census["DELEGATE"] == {"partitions": 1}


def test_the_file_shrinks() -> None:
    before, after = converted_stream().tflite.models[GRAPH], quantized().models[GRAPH]
    assert after.stat().st_size <= 0.6 * before.stat().st_size


def test_only_float32_tflite_is_taken(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="starts from float32 TFLite, got litert fp16"):
        int8_tflite(replace(converted_stream().tflite, precision="fp16"), {}, tmp_path)


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    int8_tflite(converted_stream().tflite, {}, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_product_with_a_constant_on_its_left_stays_float(tmp_path: Path) -> None:
    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.linear = torch.nn.Parameter(torch.randn(1, 24, 32)), torch.nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mixed: torch.Tensor = self.table @ self.linear(x)
            return mixed

    model = from_module(Mixed(), (torch.randn(1, 32, 64),), "mixed")
    (tmp_path / "fp32").mkdir()
    artifact = int8_tflite(to_tflite(model, tmp_path / "fp32", "fp32"), {}, tmp_path)
    with open_session("litert", artifact.models, model.spec) as session:
        got, expected = session.run(model.example["main"]), model.run(model.example["main"])
        assert session.executed()["FULLY_CONNECTED"].keys() == {"int8"}
    error, signal = np.abs(got["output"] - expected["output"]).max(), np.abs(expected["output"]).max()
    assert error < 0.05 * signal  # weights of 8 bits per channel


def test_a_file_that_the_interpreter_refuses_is_no_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflite, "_refusal", lambda _: "BATCH_MATMUL failed to prepare")
    with pytest.raises(ConversionError, match="LiteRT cannot run its int8 model: BATCH_MATMUL failed to prepare; ship"):
        int8_tflite(converted_stream().tflite, {}, tmp_path)
