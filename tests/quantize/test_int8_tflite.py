"""Dynamic-range int8 for TFLite."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest

from edgeattn.errors import UnsupportedError
from edgeattn.model import Artifact
from edgeattn.models.streaming_conformer import GRAPH
from edgeattn.quantize import int8_tflite
from edgeattn.runtimes import open_session
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
