"""Files in ONNX Runtime's own format: read as the .onnx that they were made from, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="sources need edgeattn[convert]")
pytest.importorskip("onnxruntime", reason="the oracle is ONNX Runtime: edgeattn[convert]")

import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgeattn.errors import ModelError
from edgeattn.sources import load_model, read_model
from edgeattn.sources.onnx.imported import ImportedModel
from edgeattn.sources.onnx.ort import read_ort
from tests.sources.damaged import refusals

RNG = np.random.default_rng(1)


def network() -> onnx.ModelProto:
    """Rows of a table, a product, a branch on values, a constant of a node, an open size."""
    weight = RNG.standard_normal((4, 4)).astype(np.float32)
    branches = {
        key: helper.make_graph(
            [helper.make_node(kind, ["h"], [key])],
            key,
            [],
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, None)],
        )
        for key, kind in (("then_branch", "Tanh"), ("else_branch", "Neg"))
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], axis=0),
        helper.make_node("MatMul", ["rows", "w"], ["h"]),
        helper.make_node("ReduceSum", ["h"], ["s"], keepdims=0),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0, np.float32))),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["b"], **branches),
        helper.make_node("LeakyRelu", ["b"], ["y"], alpha=0.25),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "seq"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "seq", 4])],
        [numpy_helper.from_array(RNG.standard_normal((7, 4)).astype(np.float32), "table"),
         numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def written(path: Path) -> Path:
    """The network as ONNX Runtime writes it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(network().SerializeToString(), options, providers=["CPUExecutionProvider"])
    return path


def test_a_file_is_what_onnx_runtime_made_it_from(tmp_path: Path) -> None:
    path = written(tmp_path / "net.ort")
    source = load_model(str(path))  # in a child first
    assert isinstance(source.modules["main"], ImportedModel)
    assert source.dims == {"main": {"ids": {0: "batch", 1: "seq"}}}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for _ in range(4):  # both branches
        ids = RNG.integers(0, 7, source.example["main"]["ids"].shape)
        (expected,) = session.run(None, {"ids": ids})
        np.testing.assert_allclose(source.run({"ids": ids})["y"], expected, rtol=1e-5, atol=1e-5)


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    assert refusals(read_ort, written(tmp_path / "net.ort"), 150) > 30


def test_what_is_not_of_the_format_is_told(tmp_path: Path) -> None:
    path = tmp_path / "net.ort"
    path.write_bytes(network().SerializeToString())
    with pytest.raises(ModelError, match="lacks the mark ORTM"):
        read_model(str(path))
