"""Sequences of known lengths against ONNX Runtime on the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="sources need edgeattn[convert]")
pytest.importorskip("onnxruntime", reason="the oracle is ONNX Runtime: edgeattn[convert]")

import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeattn.errors import UnsupportedError
from edgeattn.sources import read_model
from edgeattn.sources.onnx.imported import ImportedModel
from edgeattn.sources.onnx.reference import runtime_session

node = helper.make_node
CONSTANTS = {
    "zero": np.array(0), "one": np.array(1), "last": np.array(-1), "two": np.array(2), "parts": np.array([1, 3]),
    "three": np.array(3), "go": np.array(True),
}  # fmt: skip


def model_of(nodes: Sequence[onnx.NodeProto], extra: Sequence[onnx.ValueInfoProto] = ()) -> onnx.ModelProto:
    """Input x (2, 4), output y."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])
    stored = [numpy_helper.from_array(array, name) for name, array in CONSTANTS.items()]
    graph = helper.make_graph(nodes, "main", [x, *extra], [helper.make_value_info("y", onnx.TypeProto())], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def grown() -> list[onnx.NodeProto]:
    """A loop that puts a row of x into a sequence at each of two steps, as torch's exporter writes a list."""
    sequence = helper.make_tensor_sequence_value_info
    body = helper.make_graph(
        [node("Gather", ["x", "i"], ["row"], axis=0), node("SequenceInsert", ["held", "row"], ["more"]),
         node("Identity", ["c"], ["c_out"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("c", TensorProto.BOOL, []), sequence("held", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("c_out", TensorProto.BOOL, []), sequence("more", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return [
        node("SequenceEmpty", [], ["none"]),
        node("Loop", ["two", "go", "none"], ["rows"], body=body),
        node("ConcatFromSequence", ["rows"], ["y"], axis=1, new_axis=1),
    ]


CASES = {
    "sizes": [node("SplitToSequence", ["x", "parts"], ["s"], axis=1), node("SequenceAt", ["s", "last"], ["y"])],
    "one size": [node("SplitToSequence", ["x", "three"], ["s"], axis=-1), node("SequenceAt", ["s", "one"], ["y"])],
    "without the axis": [node("SplitToSequence", ["x"], ["s"], axis=1, keepdims=0),
                         node("SequenceAt", ["s", "two"], ["y"])],
    "joined": [node("SplitToSequence", ["x"], ["s"], axis=1), node("ConcatFromSequence", ["s"], ["y"], axis=0)],
    "changed": [node("Neg", ["x"], ["n"]), node("SequenceConstruct", ["x", "n"], ["s"]),
                node("SequenceInsert", ["s", "n", "zero"], ["t"]), node("SequenceErase", ["t", "one"], ["u"]),
                node("Identity", ["u"], ["v"]), node("ConcatFromSequence", ["v"], ["y"], axis=-1, new_axis=1)],
    "length": [node("SplitToSequence", ["x"], ["s"], axis=1), node("SequenceLength", ["s"], ["l"]),
               node("Cast", ["l"], ["f"], to=TensorProto.FLOAT), node("Mul", ["x", "f"], ["y"])],
    "a list in a loop": grown(),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_sequence_of_known_length_is_the_tensors_in_it(name: str, tmp_path: Path) -> None:
    model = model_of(CASES[name])
    onnx.save(model, tmp_path / "net.onnx")
    source = read_model(str(tmp_path / "net.onnx"))
    assert isinstance(source.modules["main"], ImportedModel)
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    np.testing.assert_array_equal(source.run({"x": x})["y"], runtime_session(model).run(None, {"x": x})[0])


def test_a_place_that_depends_on_values_is_refused_by_name(tmp_path: Path) -> None:
    nodes = [node("SplitToSequence", ["x"], ["s"], axis=1), node("SequenceAt", ["s", "i"], ["y"], name="chosen")]
    model = model_of(nodes, [helper.make_tensor_value_info("i", TensorProto.INT64, [])])
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(UnsupportedError, match=r"node 'chosen' \(SequenceAt\): its place in the sequence depends on"):
        read_model(str(tmp_path / "net.onnx"))
