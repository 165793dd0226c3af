"""Passes on ONNX files: LayerNorm in pieces fused, the scale of attention on Q; float16 ranges that they save."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeattn.converters.passes.dense_scatters import dense_scatters
from edgeattn.converters.passes.finite_onnx_masks import finite_onnx_masks
from edgeattn.converters.passes.fuse_layer_norm import fuse_layer_norm
from edgeattn.converters.passes.one_orientation import one_orientation
from edgeattn.converters.passes.plain_constants import plain_constants
from edgeattn.converters.passes.scale_on_query import scale_on_query
from edgeattn.converters.passes.whole_matrices import whole_matrices

FLOAT = TensorProto.FLOAT
RNG = np.random.default_rng(0)
SCALE, BIAS = (RNG.standard_normal(16).astype(np.float32) for _ in range(2))


def model_of(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[int]], opset: int = 17, **constants: Any
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def run(model: onnx.ModelProto, output: str = "y", **inputs: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([output], inputs)[0])


def half(array: np.ndarray) -> np.ndarray:
    """Float32 numbers as float16 can hold them, infinities where it cannot."""
    with np.errstate(over="ignore"):
        return array.astype(np.float16).astype(np.float32) if array.dtype == np.float32 else array


def run_half(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    """Every tensor rounded to float16, as an engine with a float16 switch keeps them; LayerNormalization is one step.

    ONNX Runtime would not show it: on a CPU it widens whole chains of nodes.
    """
    tensors: dict[str, Any] = {tensor.name: half(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    tensors |= {name: half(array) for name, array in inputs.items()}
    for step in model.graph.node:
        operands: dict[str, Any] = {str(name): tensors[name] for name in step.input}
        alone = helper.make_model(
            helper.make_graph([step], "step", [], [helper.make_tensor_value_info(step.output[0], FLOAT, None)]),
            opset_imports=model.opset_import,
        )
        alone.graph.input.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in operands)
        with np.errstate(all="ignore"):
            (made,) = ReferenceEvaluator(alone).run(None, operands)
        tensors[str(step.output[0])] = half(np.asarray(made))
    return np.asarray(tensors["y"])


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], name=f"node_{output}", **attributes)


def layer_norm(square: str = "Pow", root: str = "Div", affine: str = "Mul Add", again: bool = False) -> onnx.ModelProto:
    """A LayerNorm over the last axis of (2, 5, 16), written in one of many ways."""
    centred = "c2" if again else "c"
    nodes = [node("ReduceMean", "x", "mean", axes=[-1]), node("Sub", "x mean", "c"), node("Sub", "x mean", "c2")]
    if not again:
        nodes.pop()
    nodes.append(node("Pow", "c two", "square") if square == "Pow" else node("Mul", "c c", "square"))
    nodes += [node("ReduceMean", "square", "variance", axes=[-1]), node("Add", "variance epsilon", "shifted")]
    if root == "Div":
        nodes += [node("Sqrt", "shifted", "deviation"), node("Div", f"{centred} deviation", "n")]
    elif root == "Reciprocal":
        nodes += [node("Sqrt", "shifted", "deviation"), node("Reciprocal", "deviation", "inverse")]
        nodes.append(node("Mul", f"inverse {centred}", "n"))
    else:
        nodes += [node("Pow", "shifted minus_half", "inverse"), node("Mul", f"{centred} inverse", "n")]
    last = "n"
    for kind in affine.split():
        nodes.append(node(kind, f"{last} {'scale' if kind == 'Mul' else 'bias'}", f"after_{kind}"))
        last = f"after_{kind}"
    nodes.append(node("Identity", last, "y"))
    numbers: dict[str, Any] = {"two": np.float32(2), "minus_half": np.float32(-0.5), "epsilon": np.float32(1e-5)}
    return model_of(nodes, {"x": [2, 5, 16]}, scale=SCALE, bias=BIAS, **numbers)


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"square": "Mul", "root": "Reciprocal"},
        {"root": "Pow", "again": True},
        {"affine": "Mul"},
        {"affine": "Add"},
        {"affine": ""},
    ],
    ids=["division", "reciprocal", "power, subtracted twice", "scale alone", "bias alone", "neither"],
)
def test_a_layer_norm_in_pieces_becomes_one_operator(written: dict[str, object]) -> None:
    model = layer_norm(**written)  # type: ignore[arg-type]
    x = RNG.standard_normal((2, 5, 16)).astype(np.float32) * 3 + 1
    expected = run(model, x=x)
    assert fuse_layer_norm(model) == 1
    assert ops(model) == ["LayerNormalization", "Identity"]
    np.testing.assert_allclose(run(model, x=x), expected, atol=2e-6)


def test_in_float16_the_pieces_overflow_and_the_operator_does_not() -> None:
    # Residual outliers of trained transformers reach 1400; 300 squared is beyond 65504 already.
    x = RNG.standard_normal((2, 5, 16)).astype(np.float32)
    x[..., 3] = 1400.0
    pieces, fused = layer_norm(), layer_norm()
    fuse_layer_norm(fused)
    expected = run(pieces, x=x)
    broken, kept = run_half(pieces, x=x), run_half(fused, x=x)
    # The variance is infinite, so everything is divided away: only the bias is left.
    np.testing.assert_allclose(broken, np.broadcast_to(BIAS, broken.shape), atol=1e-2)
    assert np.abs(expected - BIAS).max() > 0.5
    np.testing.assert_allclose(kept, expected, atol=2e-2)


def test_epsilon_outside_the_root_is_another_function() -> None:
    nodes = [
        node("ReduceMean", "x", "mean", axes=[-1]),
        node("Sub", "x mean", "c"),
        node("Mul", "c c", "square"),
        node("ReduceMean", "square", "variance", axes=[-1]),
        node("Sqrt", "variance", "deviation"),
        node("Add", "deviation epsilon", "shifted"),
        node("Div", "c shifted", "y"),
    ]
    model = model_of(nodes, {"x": [2, 5, 16]}, epsilon=np.float32(1e-5))
    assert fuse_layer_norm(model) == 0


def test_an_opset_without_the_operator_is_left_alone() -> None:
    model = layer_norm()
    model.opset_import[0].version = 13
    assert fuse_layer_norm(model) == 0


def attention(kind: str, scale: float, order: str = "scores scale") -> onnx.ModelProto:
    nodes = [
        node("MatMul", "q k", "scores"),
        node(kind, order, "scaled"),
        node("Add", "scaled mask", "masked"),
        node("Softmax", "masked", "y", axis=-1),
    ]
    mask = np.triu(np.full((6, 6), -1e4, np.float32), 1)
    return model_of(nodes, {"q": [2, 6, 64], "k": [2, 64, 6]}, scale=np.float32(scale), mask=mask)


@pytest.mark.parametrize(
    ("kind", "scale", "order"),
    [("Mul", 0.125, "scores scale"), ("Mul", 0.125, "scale scores"), ("Div", 8.0, "scores scale")],
)
def test_the_scale_moves_to_the_query(kind: str, scale: float, order: str) -> None:
    model = attention(kind, scale, order)
    q, k = (RNG.standard_normal(shape).astype(np.float32) for shape in ((2, 6, 64), (2, 64, 6)))
    expected = run(model, q=q, k=k)
    assert scale_on_query(model) == 1
    assert ops(model) == ["Mul", "MatMul", "Add", "Softmax"]
    assert model.graph.node[0].input[0] == "q"
    np.testing.assert_allclose(run(model, q=q, k=k), expected, atol=1e-6)
    assert {value.name for value in model.graph.value_info} >= {model.graph.node[0].output[0]}


def test_in_float16_unscaled_scores_overflow_and_scaled_queries_do_not() -> None:
    q, k = np.full((2, 6, 64), 40.0, np.float32), np.full((2, 64, 6), 40.0, np.float32)
    k[..., 0] = 39.0
    before, after = attention("Mul", 0.125), attention("Mul", 0.125)
    scale_on_query(after)
    assert np.isnan(run_half(before, q=q, k=k)).any()
    np.testing.assert_allclose(run_half(after, q=q, k=k), run(before, q=q, k=k), atol=2e-2)


def test_a_scale_that_is_read_elsewhere_or_meets_no_softmax_stays() -> None:
    nodes = [node("MatMul", "q k", "scores"), node("Mul", "scores scale", "y")]
    model = model_of(nodes, {"q": [2, 6, 64], "k": [2, 64, 6]}, scale=np.float32(0.125))
    assert scale_on_query(model) == 0
    model = attention("Mul", 0.125)
    model.graph.output.append(helper.make_tensor_value_info("scores", FLOAT, [2, 6, 6]))
    assert scale_on_query(model) == 0


LOWEST = float(np.finfo(np.float32).min)
SEEN = RNG.random((1, 6, 6)) > 0.4
SEEN[:, :, 0] = True


def masked(kind: str, lowest: float) -> onnx.ModelProto:
    """Softmax of scores under a mask that is an input of 0 and 1, or a constant."""
    before = [node("Cast", "seen", "visible", to=TensorProto.BOOL), node("Sub", "one seen", "unseen")]
    ways = {
        "where": [node("Where", "visible scores lowest", "masked")],
        "added": [node("Where", "visible zero lowest", "bias"), node("Add", "scores bias", "masked")],
        "product": [node("Mul", "unseen lowest", "bias"), node("Add", "bias scores", "masked")],
        "constant": [node("Add", "scores bias", "masked")],
    }
    nodes = [*before, *ways[kind], node("Softmax", "masked", "y", axis=-1)]
    constants: dict[str, Any] = {"lowest": np.float32(lowest), "zero": np.float32(0), "one": np.float32(1)}
    if kind == "constant":
        constants["bias"] = np.where(SEEN, 0, lowest).astype(np.float32)
    return model_of(nodes, {"scores": [1, 6, 6], "seen": [1, 6, 6]}, **constants)


def numbers(model: onnx.ModelProto) -> np.ndarray:
    arrays = [numpy_helper.to_array(tensor).reshape(-1) for tensor in model.graph.initializer]
    return np.concatenate([array for array in arrays if array.dtype == np.float32])


@pytest.mark.parametrize("lowest", [LOWEST, -1e9, -np.inf])
@pytest.mark.parametrize("kind", ["where", "added", "product", "constant"])
def test_masks_become_finite_and_a_row_that_sees_nothing_stays_what_it_was(kind: str, lowest: float) -> None:
    if kind == "product" and np.isinf(lowest):
        pytest.skip("0 * -inf is NaN: nobody writes that")
    model, scores = masked(kind, lowest), 3 * RNG.standard_normal((1, 6, 6)).astype(np.float32)
    seen = SEEN.astype(np.float32)
    if kind != "constant":
        seen[:, 3] = 0
    expected = run(model, scores=scores, seen=seen)
    assert np.isnan(expected).any() == (np.isinf(lowest) and kind != "constant")
    finite = np.isfinite(lowest) or kind == "constant"  # -inf stays where no constant shows that every row sees
    assert finite_onnx_masks(model) == int(finite)
    np.testing.assert_allclose(run(model, scores=scores, seen=seen), expected, atol=1e-6)
    if finite:
        assert numbers(model).min() >= -2e4
        assert np.isfinite(run_half(model, scores=scores, seen=np.zeros_like(seen))).all()


@pytest.mark.parametrize("kind", ["where", "added", "product", "constant"])
@pytest.mark.parametrize("lowest", [LOWEST, -1e9, -np.inf])
def test_scores_that_are_read_elsewhere_too_and_log_probabilities_keep_their_numbers(kind: str, lowest: float) -> None:
    if kind == "product" and np.isinf(lowest):
        pytest.skip("0 * -inf is NaN: nobody writes that")
    model = masked(kind, lowest)
    model.graph.node.extend([node("LogSoftmax", "masked", "logs", axis=-1), node("Identity", "masked", "scored")])
    for name in ("logs", "scored"):
        model.graph.output.append(helper.make_tensor_value_info(name, FLOAT, [1, 6, 6]))
    scores, seen = RNG.standard_normal((1, 6, 6)).astype(np.float32), SEEN.astype(np.float32)
    names = ("y", "logs", "scored")
    expected = [run(model, name, scores=scores, seen=seen) for name in names]
    finite_onnx_masks(model)
    for name, wanted in zip(names, expected, strict=True):
        np.testing.assert_allclose(run(model, name, scores=scores, seen=seen), wanted, rtol=1e-6, atol=1e-6)
    assert expected[2].min() <= -1e8


@pytest.mark.parametrize("depths", [(LOWEST, -1e9), (-1e9, -1e9), (LOWEST, LOWEST)])
def test_numbers_that_hide_at_two_depths_stay(depths: tuple[float, float]) -> None:
    nodes = [
        node("Cast", "seen", "visible", to=TensorProto.BOOL),
        node("Where", "visible zero first", "bias"),
        node("Add", "scores causal", "half"),
        node("Add", "half bias", "masked"),
        node("Softmax", "masked", "y", axis=-1),
    ]
    causal = np.triu(np.full((6, 6), depths[1], np.float32), 1)
    constants: dict[str, Any] = {"zero": np.float32(0), "first": np.float32(depths[0]), "causal": causal}
    model = model_of(nodes, {"scores": [1, 6, 6], "seen": [1, 6, 6]}, **constants)
    scores, seen = RNG.standard_normal((1, 6, 6)).astype(np.float32), SEEN.astype(np.float32)
    seen[:, 3, :4] = 0
    expected = run(model, scores=scores, seen=seen)
    finite_onnx_masks(model)
    np.testing.assert_allclose(run(model, scores=scores, seen=seen), expected, atol=1e-6)


def test_a_file_that_looks_for_nan_itself_keeps_its_infinities() -> None:
    model = masked("added", -np.inf)
    model.graph.node[-1].output[0] = "weights"
    model.graph.node.extend([node("IsNaN", "weights", "blind"), node("Where", "blind zero weights", "y")])
    assert finite_onnx_masks(model) == 0


def test_quantized_constants_that_are_no_matrix_become_what_they_stand_for() -> None:
    nodes = [
        node("DequantizeLinear", "bias_q bias_scale bias_zero", "bias"),
        node("DequantizeLinear", "half_q half_scale", "half"),
        node("DequantizeLinear", "weight_q weight_scale", "weight"),
        node("MatMul", "x weight", "product"),
        node("Add", "product bias", "sum"),
        node("Mul", "sum half", "y"),
    ]
    constants: dict[str, Any] = {
        "bias_q": RNG.integers(0, 255, 4, np.uint8),
        "bias_scale": np.float32(0.037),
        "bias_zero": np.uint8(117),
        "half_q": np.int8(127),
        "half_scale": np.float32(0.5 / 127),
        "weight_q": RNG.integers(-127, 127, (16, 4), np.int8),
        "weight_scale": np.float32(0.011),
    }
    model = model_of(nodes, {"x": [2, 16]}, **constants)
    x = RNG.standard_normal((2, 16)).astype(np.float32)
    expected = run(model, x=x)
    assert plain_constants(model) == 2
    assert ops(model) == ["DequantizeLinear", "MatMul", "Add", "Mul"]
    np.testing.assert_array_equal(run(model, x=x), expected)


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize(("reduction", "axis"), [("add", 0), ("mul", 1), ("max", -1), ("min", 0)])
def test_a_scatter_that_reduces_becomes_a_comparison(reduction: str, axis: int, opset: int) -> None:
    if opset == 17 and reduction in ("max", "min"):
        reduction = "add"  # the others came with 18
    data, updates = RNG.standard_normal((6, 8)).astype(np.float32), RNG.standard_normal((6, 8)).astype(np.float32)
    indices = RNG.integers(0, 6, (6, 8))
    node = helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], name="sum", axis=axis, reduction=reduction)
    model = model_of([node], {"x": [6, 8], "u": [6, 8]}, opset=opset, i=indices)
    expected = run(model, x=data, u=updates)
    assert dense_scatters(model) == 1
    assert "ScatterElements" not in {each.op_type for each in model.graph.node}
    assert [each.name for each in model.graph.node if "y" in each.output] == ["sum"]  # a scan's name for it
    np.testing.assert_allclose(run(model, x=data, u=updates), expected, atol=1e-6)


def test_a_scatter_that_only_writes_stays() -> None:
    node = helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], axis=0)
    model = model_of([node], {"x": [6, 8], "u": [6, 8]}, i=np.zeros((6, 8), np.int64))
    assert dense_scatters(model) == 0


@pytest.mark.parametrize(("shape", "equal", "copies"), [((8, 8), True, 1), ((8, 8), False, 0), ((8, 16), True, 0)])
def test_a_square_weight_read_both_ways_gets_a_transposed_copy(
    shape: tuple[int, int], equal: bool, copies: int
) -> None:
    weight = RNG.standard_normal(shape).astype(np.float32)
    other = weight.copy() if equal else weight + 1
    nodes = [
        node("MatMul", "x one", "h"),
        node("Gemm", "h two", "first", transB=1),
        node("Gemm", "h two", "second", transB=1, alpha=2.0),
        node("Add", "first second", "y"),
    ]
    model = model_of(nodes, {"x": [5, 8]}, one=weight, two=other)
    x = RNG.standard_normal((5, 8)).astype(np.float32)
    expected = run(model, x=x)
    assert one_orientation(model) == 2 * copies
    assert one_orientation(model) == 0
    assert len(model.graph.initializer) == 2
    np.testing.assert_allclose(run(model, x=x), expected, rtol=1e-5)


@pytest.mark.parametrize(("scale", "count"), [("Mul", 1), ("Div", 1), ("Add", 0)])
def test_a_scaled_product_with_a_vector_is_one_with_a_matrix(scale: str, count: int) -> None:
    vector = RNG.standard_normal(8).astype(np.float32)
    nodes = [node("MatMul", "x vector", "scores"), node(scale, "scores factor", "y")]
    model = model_of(nodes, {"x": [2, 5, 6, 8]}, vector=vector, factor=np.float32(3))
    x = RNG.standard_normal((2, 5, 6, 8)).astype(np.float32)
    expected = run(model, x=x)
    assert whole_matrices(model) == count
    assert whole_matrices(model) == 0
    assert ops(model) == (["MatMul", "Reshape", scale] if count else ["MatMul", scale])
    np.testing.assert_allclose(run(model, x=x), expected, rtol=1e-5, atol=1e-6)
