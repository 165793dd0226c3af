"""int8 for OpenVINO through NNCF."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from edgeattn.errors import ConversionError
from edgeattn.model import Artifact
from edgeattn.models.streaming_conformer import GRAPH
from edgeattn.quantize import int8_openvino, openvino
from edgeattn.runtimes import open_session
from tests.converters.samples import (
    calibration,
    converted_stream,
    deployed_stream,
    reference_stream,
    sqnr_db,
    stream_model,
)


@functools.cache
def quantized() -> Artifact:
    files = converted_stream()
    return int8_openvino(files.onnx, calibration(), files.room("openvino-int8"))


def test_the_stream_keeps_20_db_and_does_not_drift() -> None:
    expected, got = reference_stream()[1], deployed_stream(quantized())
    ratios = sqnr_db(expected, got)
    assert min(ratios.values()) >= 20, ratios
    first, last = sqnr_db(expected[50:150], got[50:150]), sqnr_db(expected[-100:], got[-100:])
    for name in ratios:
        assert last[name] >= first[name] - 3, name


def test_linear_layers_are_quantized_and_norms_and_convolutions_are_not() -> None:
    text = quantized().models[GRAPH].read_text()
    assert text.count('type="FakeQuantize"') > 10
    with open_session("openvino", quantized().models, stream_model().spec, threads=1) as session:
        census = session.executed()
    assert census["MVN"].keys() == {"float32"}
    assert census["Convolution"].keys() == {"float32"}


def test_the_weights_shrink_on_disk() -> None:
    single = sum(path.stat().st_size for path in converted_stream().onnx.values())
    assert quantized().models[GRAPH].with_suffix(".bin").stat().st_size <= 0.55 * single


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    int8_openvino(converted_stream().onnx, {GRAPH: calibration()[GRAPH][:2]}, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_an_ir_that_does_not_compile_is_no_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> dict[str, str]:
        raise RuntimeError("Check 'convert->constant_fold(...)' failed")

    monkeypatch.setattr(openvino, "safe_properties", refuse)
    with pytest.raises(ConversionError, match=r"cannot compile its int8 model: Check .* failed; ship fp16"):
        int8_openvino(converted_stream().onnx, {GRAPH: calibration()[GRAPH][:2]}, tmp_path)
