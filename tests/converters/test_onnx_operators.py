"""Which operators of a file an engine has not, and what it gets instead."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="sources need edgeattn[convert]")
pytest.importorskip("onnxruntime", reason="ONNX sources need edgeattn[convert]")

import onnx
from onnx import helper, numpy_helper

from edgeattn.converters.onnx_operators import lacks, takes
from edgeattn.converters.preflight.judge import preflight
from edgeattn.converters.preflight.rule import given_as_file
from edgeattn.pipeline.steps.baseline import Baseline
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.sources import load_model
from edgeattn.targets import get_target

MICROSOFT = "com.microsoft"


def file(path: Path, *nodes: onnx.NodeProto, **held: np.ndarray) -> onnx.ModelProto:
    """A file that reads x (1, 4, 16)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 16])],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    onnx.save(model, path)
    return model


@pytest.mark.parametrize(
    ("op", "domain", "lacking"),
    [
        ("MatMul", "", ()),
        ("QLinearMatMul", "", ("tensorrt",)),
        ("MatMulNBits", MICROSOFT, ("tensorrt",)),
        ("QAttention", MICROSOFT, ("openvino", "tensorrt")),
    ],
)
def test_an_engine_lacks_what_is_onnx_runtimes_own(op: str, domain: str, lacking: tuple[str, ...]) -> None:
    node = helper.make_node(op, [], [], domain=domain)
    assert tuple(e for e in ("onnxruntime", "openvino", "tensorrt") if lacks(e, node)) == lacking


@pytest.mark.slow  # torch.onnx is imported
def test_packed_weights_go_to_an_engine_as_they_are_or_widened(tmp_path: Path) -> None:
    # TensorRT gets the torch module, exported again: the same numbers as ONNX Runtime's on the file, to 1e-4.
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 255, (5, 1, 8)).astype(np.uint8)
    node = helper.make_node("MatMulNBits", ["x", "b", "s"], ["y"], domain=MICROSOFT, K=16, N=5, bits=4, block_size=16)
    given = file(tmp_path / "m.onnx", node, b=codes, s=np.full(5, 0.1, np.float32))
    exports = Exports(load_model(str(tmp_path / "m.onnx")), Baseline({}, {}, None, None), tmp_path)
    assert takes("openvino", given)
    assert exports.fit("openvino") is exports
    (again,) = exports.fit("tensorrt").onnx.values()
    assert takes("tensorrt", onnx.load(again))


def test_an_operator_of_its_own_that_torch_has_not_stops_tensorrt_in_preflight(tmp_path: Path) -> None:
    table = np.zeros((2, 16), np.float32)
    node = helper.make_node("CDist", ["x2", "t"], ["y"], domain=MICROSOFT, metric="euclidean")
    flat = helper.make_node("Reshape", ["x", "sizes"], ["x2"])
    file(tmp_path / "m.onnx", flat, node, t=table, sizes=np.array([-1, 16]))
    model = load_model(str(tmp_path / "m.onnx"))
    found = preflight(model, get_target("jetson-orin-nano"), "tensorrt", ("fp32",))
    assert [(row.severity, row.rule) for row in found if row.severity == "stops"] == [
        ("stops", "onnx-unsupported-operation")
    ]


@pytest.mark.parametrize(
    ("engine", "refusal", "as_file"),
    [("onnxruntime", "", True), ("tensorrt", "", False), ("tensorrt", "not imported", True), ("litert", "", False)],
)
def test_preflight_asks_of_a_file_what_the_engine_gets(engine: str, refusal: str, as_file: bool) -> None:
    node = onnx.helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft")
    view: Any = SimpleNamespace(onnx=onnx.ModelProto(graph=onnx.GraphProto(node=[node])), refusal=refusal)
    question: Any = SimpleNamespace(engine=engine)
    assert given_as_file(view, question) is as_file
