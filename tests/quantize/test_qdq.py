"""Explicit Q/DQ: where it stands, what its scales are, and that TensorRT's builder takes it."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn

from edgeattn.converters.onnx import export_onnx
from edgeattn.converters.tensorrt import to_tensorrt
from edgeattn.errors import UnsupportedError
from edgeattn.layers import linear_layers
from edgeattn.model import Artifact
from edgeattn.models.streaming_conformer import GRAPH
from edgeattn.quantize import quantize_onnx
from edgeattn.quantize.qdq import INT8_MAX, best_scale, weight_scales, worthwhile
from tests.converters.samples import (
    as_model,
    calibration,
    converted_stream,
    deployed_stream,
    reference_stream,
    sqnr_db,
    stream_model,
)


@functools.cache
def quantized() -> Path:
    files = converted_stream()
    return quantize_onnx(files.onnx, calibration(), files.room("qdq")).models[GRAPH]


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def test_pairs_stand_on_both_inputs_of_linear_layers_and_nowhere_else() -> None:
    graph = onnx.load(quantized()).graph
    made = producers(graph)
    readers = [
        node for node in graph.node if any(made.get(n) and made[n].op_type == "DequantizeLinear" for n in node.input)
    ]
    assert {node.op_type for node in readers} <= {"MatMul", "Gemm"}
    for node in readers:
        assert [made[name].op_type for name in node.input[:2]] == ["DequantizeLinear", "DequantizeLinear"]
    linears = sum(isinstance(module, nn.Linear) for module in stream_model().modules[GRAPH].modules())
    assert len(readers) == linears


def test_all_is_symmetric_and_weights_are_per_output_channel() -> None:
    graph = onnx.load(quantized()).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    source_graph = onnx.load(converted_stream().onnx[GRAPH]).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in source_graph.initializer}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if len(node.input) > 2:  # without one it is 0
            zero_point = constants[node.input[2]]
            assert zero_point.dtype == np.int8
            assert not zero_point.any()
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            integers, steps = constants[node.input[0]], constants[node.input[1]]
            assert integers.dtype == np.int8
            axis = next(a.i for a in node.attribute if a.name == "axis")
            largest = [np.abs(np.take(integers, i, axis)).max() for i in range(integers.shape[axis])]
            assert set(largest) == {127}  # each channel uses its whole range
            source = weights[node.output[0].rpartition("_axis")[0]]
            restored = integers * np.expand_dims(steps, 1 - axis)
            assert np.abs(restored - source).max() <= steps.max() / 2 * (1 + 1e-5)
        elif node.op_type == "QuantizeLinear":
            assert constants[node.input[1]].shape == ()


def test_one_activation_is_quantized_once_for_query_key_and_value() -> None:
    graph = onnx.load(quantized()).graph
    sources = [node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(sources) == len(set(sources))


def test_the_stream_keeps_20_db_and_does_not_drift() -> None:
    artifact = Artifact("onnxruntime", "int8", {GRAPH: quantized()}, "")
    expected, got = reference_stream()[1], deployed_stream(artifact)
    ratios = sqnr_db(expected, got)
    assert min(ratios.values()) >= 20, ratios
    first, last = sqnr_db(expected[50:150], got[50:150]), sqnr_db(expected[-100:], got[-100:])
    for name in ratios:
        assert last[name] >= first[name] - 3, name


def test_tensorrt_builds_it_in_float16_and_it_computes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    artifact = to_tensorrt({GRAPH: quantized()}, tmp_path, "int8")
    assert artifact.build is not None
    layers = artifact.build["checked"]["layers"]
    pairs = sum(node.op_type == "QuantizeLinear" for node in onnx.load(quantized()).graph.node)
    assert layers["quantize"] == {"int8": pairs}
    assert layers["matrix_multiply"].keys() == {"half"}
    ratios = sqnr_db(reference_stream()[1], deployed_stream(artifact, "onnxruntime"))
    assert min(ratios.values()) >= 20, ratios


class Small(nn.Module):
    """Layers that int8 does not pay for: too narrow, one row, and a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(32, 8)
        self.row = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": x @ x.transpose(-1, -2), "narrow": self.narrow(x), "row": self.row(x.mean(1))}


def test_narrow_layers_single_rows_and_attention_products_are_left_alone(tmp_path: Path) -> None:
    model = as_model("small", Small(), x=torch.randn(1, 20, 32))
    files = export_onnx(model, tmp_path)
    layers = linear_layers(onnx.load(files["main"]).graph)
    assert {worthwhile(layer, "int8") for layer in layers} == {"float"}
    (tmp_path / "int8").mkdir()
    with pytest.raises(UnsupportedError, match="no linear layer is left for int8"):
        quantize_onnx(files, {"main": [model.example["main"]]}, tmp_path / "int8")


class Tied(nn.Module):
    """One weight used by a product in both directions: two axes, two pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 24))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = x @ self.weight
        return {"y": torch.nn.functional.linear(torch.tanh(hidden), self.weight)}


def test_a_weight_used_both_ways_keeps_its_axes_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = as_model("tied", Tied(), x=torch.randn(1, 20, 32))
    (tmp_path / "int8").mkdir()
    made = quantize_onnx(export_onnx(model, tmp_path), {"main": [model.example["main"]]}, tmp_path / "int8").models
    import onnxruntime

    session = onnxruntime.InferenceSession(str(made["main"]), providers=["CPUExecutionProvider"])
    got = session.run(["y"], {"x": model.example["main"]["x"]})[0]
    expected = model.run(model.example["main"])["y"]
    assert 10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum()) > 30


@given(
    st.lists(st.floats(-1e3, 1e3, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3), min_size=2, max_size=50),
    st.integers(0, 1),
)
def test_weights_come_back_within_half_a_step(values: list[float], axis: int) -> None:
    weight = np.array([values, values[::-1]], np.float32)
    scale = weight_scales(weight, axis)
    shaped = np.expand_dims(scale, 1 - axis)
    steps = np.rint(weight / shaped)
    assert np.abs(steps).max() <= INT8_MAX
    assert (np.abs(steps * shaped - weight) <= shaped * 0.5001).all()


def test_an_outlier_is_clipped_only_where_that_loses_less() -> None:
    rng = np.random.default_rng(0)
    even = rng.uniform(-1, 1, 10_000)
    assert best_scale(even, 1.0) == pytest.approx(1 / INT8_MAX)
    heavy = np.append(rng.standard_normal(100_000) * 0.1, 1.0)
    scale = best_scale(heavy, 1.0)
    assert scale < 1 / INT8_MAX
    candidates = np.linspace(0.1, 1.0, 200) / INT8_MAX
    errors = [np.mean((np.clip(np.rint(heavy / s), -127, 127) * s - heavy) ** 2) for s in candidates]
    assert np.mean((np.clip(np.rint(heavy / scale), -127, 127) * scale - heavy) ** 2) <= 1.2 * min(errors)


def test_an_activation_that_is_always_zero_gets_a_finite_scale() -> None:
    assert best_scale(np.zeros(10), 0.0) == 1.0
