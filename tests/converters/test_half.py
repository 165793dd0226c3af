"""float32 -> float16 ONNX: what stays float32, and that it computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeattn.converters.half import to_half
from edgeattn.models.streaming_conformer import GRAPH
from edgeattn.spec import HALF_MAX
from tests.converters.samples import converted_stream, onnx_types

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def graph_of(nodes: list[onnx.NodeProto], **constants: np.ndarray | np.generic) -> onnx.ModelProto:
    """A model with input x (4, 8), output y of the last node, opset 18."""
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", FLOAT, [4, 8])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    # Not ONNX Runtime: its CPU computes most float16 nodes in float32 and drops the Casts between them, even without
    # optimisation, so that nothing overflows. numpy rounds every tensor as the file says.
    with np.errstate(all="ignore"):
        (y, *_) = ReferenceEvaluator(model).run(None, {"x": x})
    return np.asarray(y)


def computed_in(model: onnx.ModelProto, op_type: str) -> set[int]:
    types = onnx_types(model)
    return {types[node.output[0]] for node in model.graph.node if node.op_type == op_type}


def linear(name: str = "product", source: str = "x", target: str = "h") -> onnx.NodeProto:
    return helper.make_node("MatMul", [source, "w"], [target], name=name)


WEIGHT = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)


def test_products_become_half_and_norms_and_softmax_stay_single() -> None:
    model = onnx.load(converted_stream().onnx[GRAPH])
    report = to_half(model)
    for kind in ("MatMul", "Gemm", "Conv", "Sigmoid"):
        assert computed_in(model, kind) <= {HALF}, kind
    for kind in ("LayerNormalization", "Softmax", "LogSoftmax"):
        assert computed_in(model, kind) == {FLOAT}, kind
    assert report.half > 3 * report.single


def test_arithmetic_on_raw_inputs_stays_single() -> None:
    # Log mel energies around 15 have a step of 1/128 in float16: normalising them afterwards would keep the loss.
    model = graph_of(
        [helper.make_node("Sub", ["x", "mean"], ["c"]), linear(source="c", target="y")],
        mean=np.full(8, 1000.0, np.float32),
        w=WEIGHT,
    )
    x = X + 1000.0
    expected = run(model, x)
    to_half(model)
    assert computed_in(model, "Sub") == {FLOAT}
    assert computed_in(model, "MatMul") == {HALF}
    np.testing.assert_allclose(run(model, x), expected, atol=2e-2)


def test_what_only_carries_an_input_to_a_float32_node_stays_single() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("Reshape", ["t", "shape"], ["r"]),
        helper.make_node("Softmax", ["r"], ["y"], axis=-1),
    ]
    model = graph_of(nodes, shape=np.array([4, 8]))
    before = model.graph.node[:]
    to_half(model)
    assert [node.op_type for node in model.graph.node] == [node.op_type for node in before]


def test_a_cache_moves_in_half_where_products_read_it() -> None:
    model = onnx.load(converted_stream().onnx[GRAPH])
    to_half(model)
    assert computed_in(model, "Concat") == {HALF}
    assert computed_in(model, "Slice") == {HALF}


def test_a_square_written_out_does_not_overflow() -> None:
    nodes = [
        linear(),
        helper.make_node("Mul", ["h", "h"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axes"], ["mean"]),
        helper.make_node("Add", ["mean", "epsilon"], ["sum"]),
        helper.make_node("Sqrt", ["sum"], ["norm"]),
        helper.make_node("Div", ["h", "norm"], ["y"]),
    ]
    model = graph_of(nodes, w=1000 * WEIGHT, axes=np.array([-1]), epsilon=np.float32(1e-12))
    expected = run(model, X)
    to_half(model)
    assert np.abs(1000 * X @ WEIGHT).max() > 256  # its square is beyond float16
    np.testing.assert_allclose(run(model, X), expected, atol=5e-3)


def test_an_rms_norm_in_pieces_stays_single_to_its_end() -> None:
    nodes = [
        linear(),
        helper.make_node("Pow", ["h", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axes"], ["mean"]),
        helper.make_node("Add", ["mean", "epsilon"], ["sum"]),
        helper.make_node("Sqrt", ["sum"], ["root"]),
        helper.make_node("Reciprocal", ["root"], ["inverse"]),
        helper.make_node("Mul", ["h", "inverse"], ["n"]),
        helper.make_node("Mul", ["n", "gain"], ["y"]),
    ]
    gain = np.linspace(0.5, 2, 8, dtype=np.float32)
    model = graph_of(
        nodes, w=6000 * WEIGHT, two=np.float32(2), axes=np.array([-1]), epsilon=np.float32(1e-6), gain=gain
    )
    expected = run(model, X)
    to_half(model)
    assert np.abs(6000 * X @ WEIGHT).max() > 2**14  # 1 / x is subnormal in float16: 4 bits are left of it
    assert computed_in(model, "Mul") == {FLOAT}
    np.testing.assert_allclose(run(model, X), expected, atol=3e-3)


def test_a_comparison_of_raw_inputs_stays_single() -> None:
    # In float16 the lowest float32 is -inf, and "is it -inf" would be true of both.
    nodes = [
        helper.make_node("GreaterOrEqual", ["x", "lowest"], ["finite"]),
        helper.make_node("Cast", ["finite"], ["y"], to=FLOAT),
    ]
    model = graph_of(nodes, lowest=np.float32(np.finfo(np.float32).min))
    x = X.copy()
    x[0], x[1] = -np.inf, np.finfo(np.float32).min
    to_half(model)
    np.testing.assert_array_equal(run(model, x)[:2], [[0.0] * 8, [1.0] * 8])


@pytest.mark.parametrize("constant", [1e6, 1e-9])
def test_a_constant_that_half_cannot_hold_keeps_its_node_single(constant: float) -> None:
    nodes = [linear(), helper.make_node("Mul", ["h", "k"], ["m"]), helper.make_node("Div", ["m", "k"], ["y"])]
    model = graph_of(nodes, w=WEIGHT, k=np.float32(constant))
    expected = run(model, X)
    to_half(model)
    assert computed_in(model, "Mul") == {FLOAT}
    np.testing.assert_allclose(run(model, X), expected, atol=2e-2)


def test_a_mask_of_the_lowest_float_hides_without_nan() -> None:
    mask = np.zeros((4, 8), np.float32)
    mask[:, 3] = np.finfo(np.float32).min
    mask[0] = np.finfo(np.float32).min  # a row that sees nothing
    nodes = [
        linear(),
        helper.make_node("Add", ["h", "mask"], ["s"]),
        helper.make_node("Softmax", ["s"], ["y"], axis=-1),
    ]
    model = graph_of(nodes, w=WEIGHT, mask=mask)
    expected = run(model, X)
    to_half(model)
    got = run(model, X)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert constants["mask_half"].min() == -HALF_MAX
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[1:, 3], 0.0)
    np.testing.assert_allclose(got[1:], expected[1:], atol=5e-3)


def test_a_branch_keeps_its_bodies_and_what_they_capture_single() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["h", "k"], ["then_out"])],
        "then",
        [],
        [helper.make_tensor_value_info("then_out", FLOAT, [4, 8])],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["else_out"])],
        "else",
        [],
        [helper.make_tensor_value_info("else_out", FLOAT, [4, 8])],
    )
    nodes = [
        linear(),
        helper.make_node("If", ["yes"], ["b"], then_branch=body, else_branch=other),
        linear("second", "b", "y"),
    ]
    model = graph_of(nodes, w=WEIGHT, k=np.float32(2.0), yes=np.array(True))
    expected = run(model, X)
    to_half(model)
    assert computed_in(model, "If") == {FLOAT}
    np.testing.assert_allclose(run(model, X), expected, atol=5e-2)


def test_border_and_names_are_unchanged_where_an_output_is_read_again() -> None:
    graph = graph_of([linear(target="y")], w=WEIGHT).graph
    first = helper.make_node("Relu", ["y"], ["z"])
    graph.node.append(first)
    graph.output.append(helper.make_tensor_value_info("z", FLOAT, [4, 8]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    expected = run(model, X)
    to_half(model)
    assert [value.name for value in model.graph.output] == ["y", "z"]
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {FLOAT}
    np.testing.assert_allclose(run(model, X), expected, atol=2e-2)


def test_weights_are_stored_once_in_half(tmp_path: Path) -> None:
    big = np.random.default_rng(0).standard_normal((8, 4096)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["x", "w"], ["b"])]
    nodes.append(helper.make_node("Add", ["a", "b"], ["y"]))
    model = graph_of(nodes, w=big)
    before = model.ByteSize()
    to_half(model)
    assert model.ByteSize() < 0.55 * before


@pytest.mark.parametrize("epsilon", [1e-5, 1e-7, 1e-9, 1e-12])
@pytest.mark.parametrize("guard", ["Add", "Max", "Where"])
def test_what_an_epsilon_keeps_off_zero_is_divided_by_in_float32(guard: str, epsilon: float) -> None:
    sums = helper.make_node("ReduceSum", ["h", "axes"], ["s"])
    zero = helper.make_node("Equal", ["s", "nought"], ["none"])
    guards = {
        "Add": [helper.make_node("Add", ["s", "eps"], ["t"])],
        "Max": [helper.make_node("Max", ["s", "eps"], ["t"])],
        "Where": [zero, helper.make_node("Where", ["none", "eps", "s"], ["t"])],
    }
    moved = [helper.make_node("Expand", ["t", "shape"], ["wide"]), helper.make_node("Div", ["h", "wide"], ["y"])]
    nodes = [linear(target="g"), helper.make_node("Relu", ["g"], ["h"]), sums, *guards[guard], *moved]
    constants: dict[str, np.ndarray | np.generic] = {
        "w": WEIGHT,
        "axes": np.array([-1], np.int64),
        "eps": np.float32(epsilon),
        "shape": np.array([4, 8], np.int64),
    }
    if guard == "Where":
        constants["nought"] = np.float32(0)
    model = graph_of(nodes, **constants)
    nothing = np.zeros_like(X)
    np.testing.assert_array_equal(run(model, nothing), 0)
    expected = run(model, X)
    to_half(model)
    assert computed_in(model, "Div") == {FLOAT}
    np.testing.assert_array_equal(run(model, nothing), 0)  # not 0 / 0
    np.testing.assert_allclose(run(model, X), expected, atol=5e-3)
