"""Preflight on models whose source is an ONNX file: what its quantization and its operations ask of an engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeattn.converters.preflight.judge import Finding, preflight
from edgeattn.errors import UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.recipes import build
from edgeattn.sources import load_model
from edgeattn.targets import get_target

TARGETS = {"openvino": get_target("cpu"), "tensorrt": get_target("jetson"), "onnxruntime": get_target("jetson")}
RNG = np.random.default_rng(0)


class Writer:
    """An ONNX graph, node by node; ``x`` is (1, 8, 16)."""

    def __init__(self, length: int = 8) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.length = length

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, operation: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operation.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [name], name=name, **attributes))
        return name

    def quantized(self, name: str, zero_point: int = 0) -> str:
        scale, zero = self.constant(0.05), self.constant(zero_point, np.int8)
        return self.node("DequantizeLinear", self.node("QuantizeLinear", name, scale, zero), scale, zero)

    def weight(self, axis: int, size: int = 16) -> str:
        """A (16, size) weight in int8 with one scale per slice of an axis."""
        value = self.constant(RNG.integers(-100, 100, (16, size)), np.int8)
        scales = self.constant(np.full((16, size)[axis], 0.01))
        zeros = self.constant(np.zeros((16, size)[axis]), np.int8)
        return self.node("DequantizeLinear", value, scales, zeros, axis=axis)

    def model(self, output: str, path: Path) -> EdgeModel:
        """Written, then read as users' files are."""
        self.node("Identity", output)
        self.nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, self.length, 16))],
            [helper.make_empty_tensor_value_info("y")],
            self.constants,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(onnx.shape_inference.infer_shapes(proto), path / "model.onnx")
        return load_model(str(path / "model.onnx"))


def rows(model: EdgeModel, engine: str, rule: str) -> list[Finding]:
    return [row for row in preflight(model, TARGETS[engine], engine, ("fp32",)) if row.rule == rule]


def converted(model: EdgeModel, engine: str, scratch: Path) -> None:
    pytest.importorskip("tensorrt_rtx" if engine == "tensorrt" else engine)
    exports = Exports(model, SimpleNamespace(calibration={}, score=None), scratch)  # type: ignore[arg-type]
    build(engine, exports, "fp32", TARGETS[engine])


def linear(writer: Writer, zero_point: int = 0, axis: int = 1) -> str:
    return writer.node("MatMul", writer.quantized("x", zero_point), writer.weight(axis))


def test_a_zero_point_stops_tensorrt_as_conversion_does(tmp_path: Path) -> None:
    writer = Writer()
    model = writer.model(linear(writer, zero_point=3), tmp_path)
    found = rows(model, "tensorrt", "zero-point")
    assert {row.severity for row in found} == {"stops"}
    assert found[0].node.startswith(("quantizelinear", "dequantizelinear"))
    assert not rows(model, "openvino", "zero-point")
    with pytest.raises(UnsupportedError, match="zero-point"):
        converted(model, "tensorrt", tmp_path)


def test_symmetric_quantization_stops_nothing(tmp_path: Path) -> None:
    writer = Writer()
    model = writer.model(linear(writer), tmp_path)
    for engine, target in TARGETS.items():
        assert not [r for r in preflight(model, target, engine, ("fp32",)) if r.severity in ("stops", "slow")]
    converted(model, "tensorrt", tmp_path)


@pytest.mark.parametrize(("axis", "named"), [(0, True), (1, False)])
def test_scales_along_the_wrong_axis_are_named(tmp_path: Path, axis: int, named: bool) -> None:
    writer = Writer()
    model = writer.model(linear(writer, axis=axis), tmp_path)
    assert [row.severity for row in rows(model, "openvino", "channel-axis")] == ["risk"] * named


@pytest.mark.parametrize("both", [True, False])
def test_a_quantized_residual_is_named(tmp_path: Path, both: bool) -> None:
    writer = Writer()
    product = linear(writer)
    other = writer.quantized(product) if both else product
    model = writer.model(writer.node("Add", writer.quantized("x"), other), tmp_path)
    assert [row.severity for row in rows(model, "tensorrt", "quantized-add")] == ["risk"] * both


@pytest.mark.parametrize(("length", "named"), [(520, True), (64, False)])
def test_int8_attention_over_many_positions_is_named(tmp_path: Path, length: int, named: bool) -> None:
    writer = Writer(length)
    keys = writer.node("Transpose", "x", perm=[0, 2, 1])
    model = writer.model(writer.node("MatMul", writer.quantized("x"), writer.quantized(keys)), tmp_path)
    assert [row.severity for row in rows(model, "tensorrt", "quantized-attention")] == ["slow"] * named


def test_an_operation_that_an_engine_lacks_stops_there(tmp_path: Path) -> None:
    writer = Writer()
    square = writer.node("MatMul", writer.node("Transpose", "x", perm=[0, 2, 1]), "x")
    model = writer.model(writer.node("Det", square), tmp_path)
    stopped = [engine for engine in TARGETS if rows(model, engine, "onnx-unsupported-operation")]
    assert stopped == ["openvino", "tensorrt"]
    for engine in stopped:
        with pytest.raises(UnsupportedError):
            converted(model, engine, tmp_path)
    converted(model, "onnxruntime", tmp_path)
