"""Element types: what is brought to float32, what stays, and what is refused by the node that makes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="sources need edgeattn[convert]")
pytest.importorskip("onnxruntime", reason="the oracle is ONNX Runtime: edgeattn[convert]")

import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeattn.errors import ModelError, UnsupportedError
from edgeattn.sources import read_model
from edgeattn.sources.onnx.imported import ImportedModel
from edgeattn.sources.onnx.reference import OnnxRuntimeModule, runtime_session

node = helper.make_node
WEIGHT = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    kind: int = TensorProto.FLOAT,
    made: int = TensorProto.FLOAT,
    constants: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """Input x (1, 4) and output y of these element types."""
    ports = [helper.make_tensor_value_info(name, k, [1, 4]) for name, k in (("x", kind), ("y", made))]
    graph = helper.make_graph(nodes, "main", ports[:1], ports[1:], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_doubles_become_float32_and_are_compared_with_the_file_as_it_is(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(WEIGHT.astype(np.float64), "w")
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Softmax", ["h"], ["y"])]
    model = model_of(nodes, TensorProto.DOUBLE, TensorProto.DOUBLE, [weight])
    onnx.save(model, tmp_path / "net.onnx")
    source = read_model(str(tmp_path / "net.onnx"))
    assert {port.dtype for port in (*source.spec.graphs[0].inputs, *source.spec.graphs[0].outputs)} == {"float32"}
    assert "read as float32: the file's float64 numbers are narrowed" in source.notes
    x = np.random.default_rng(1).standard_normal((1, 4))
    expected = runtime_session(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(source.run({"x": x.astype(np.float32)})["y"], expected, atol=1e-6)


def test_the_lowest_double_of_a_mask_is_the_lowest_float_and_an_example_beyond_is_refused(tmp_path: Path) -> None:
    low = numpy_helper.from_array(np.array([0, 0, np.finfo(np.float64).min, -np.inf]), "low")
    nodes = [node("Add", ["x", "low"], ["h"]), node("Softmax", ["h"], ["y"])]
    onnx.save(model_of(nodes, TensorProto.DOUBLE, TensorProto.DOUBLE, [low]), tmp_path / "net.onnx")
    given = read_model(str(tmp_path / "net.onnx")).run({"x": np.zeros((1, 4), np.float32)})["y"]
    np.testing.assert_array_equal(given, [[0.5, 0.5, 0, 0]])
    np.savez(tmp_path / "net.npz", x=np.full((1, 4), 1e300))
    with pytest.raises(ModelError, match="'x' holds values beyond float32"):
        read_model(str(tmp_path / "net.onnx"))


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4"])
def test_numbers_of_few_bits_that_are_made_at_run_time_are_refused(kind: str, tmp_path: Path) -> None:
    element = TensorProto.DataType.Value(kind)
    zero = helper.make_tensor("z", element, [], b"\0", raw=True)
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "s")
    for name, nodes in {
        "pair": [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        "cast": [node("Cast", ["x"], ["q"], to=element), node("Cast", ["q"], ["y"], to=TensorProto.FLOAT)],
    }.items():
        path = tmp_path / f"{name}.onnx"
        onnx.save(model_of(nodes, constants=[zero, scale]), path)
        with pytest.raises(UnsupportedError, match=rf"node 'q' \(\w+\) makes {kind.lower()} while it runs") as caught:
            read_model(str(path))
        assert caught.value.exit_code == 4


def test_text_is_refused_by_the_node_that_holds_it(tmp_path: Path) -> None:
    nodes = [node("Constant", [], ["words"], value_strings=["a", "b"]), node("Identity", ["x"], ["y"])]
    onnx.save(model_of(nodes), tmp_path / "net.onnx")
    with pytest.raises(UnsupportedError, match=r"node 'words' \(Constant\): text tensors have no place"):
        read_model(str(tmp_path / "net.onnx"))


def test_what_torch_has_no_kernel_for_runs_in_onnx_runtime_and_says_so(tmp_path: Path) -> None:
    three = numpy_helper.from_array(np.array(3, np.uint32), "three")
    nodes = [node("Cast", ["x"], ["u"], to=TensorProto.UINT32), node("Add", ["u", "three"], ["v"]),
             node("Cast", ["v"], ["y"], to=TensorProto.FLOAT)]  # fmt: skip
    onnx.save(model_of(nodes, constants=[three]), tmp_path / "net.onnx")
    module = read_model(str(tmp_path / "net.onnx")).modules["main"]
    assert isinstance(module, OnnxRuntimeModule)
    assert module.unsupported.startswith("node 'v' (Add): ")


def test_nodes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    nodes = [node("Neg", ["x"], ["a"], name="same"), node("Abs", ["a"], ["y"], name="same")]
    onnx.save(model_of(nodes), tmp_path / "net.onnx")
    source = read_model(str(tmp_path / "net.onnx"))
    assert isinstance(source.modules["main"], ImportedModel)
    assert [n.name for n in source.onnx["main"].graph.node] == ["same", "same_1"]


def test_nodes_without_a_name_have_that_of_their_output(tmp_path: Path) -> None:
    onnx.save(model_of([node("Neg", ["x"], ["a"]), node("Abs", ["a"], ["y"])]), tmp_path / "net.onnx")
    source = read_model(str(tmp_path / "net.onnx"))
    assert [n.name for n in source.onnx["main"].graph.node] == ["a", "y"]
