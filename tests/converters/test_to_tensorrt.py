"""ONNX for TensorRT, and the check with TensorRT-RTX's own parser and builder."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeattn.converters.onnx import export_onnx
from edgeattn.converters.tensorrt import nearest_capability, on_dla, to_tensorrt
from edgeattn.errors import ConversionError, UnsupportedError
from edgeattn.models.streaming_conformer import GRAPH
from edgeattn.runtimes.tensorrt_build import BuildRecipe, recipe_from_build
from tests.converters.samples import (
    converted_stream,
    deployed_once,
    deployed_stream,
    generic_models,
    nested,
    onnx_types,
    reference_stream,
    sqnr_db,
    worst_difference,
)

trt = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)


def test_fp32_builds_and_500_steps_match_torch() -> None:
    files = converted_stream()
    artifact = to_tensorrt(files.onnx, files.new_directory("tensorrt-fp32"), "fp32")
    assert artifact.build is not None
    checked = artifact.build["checked"]
    assert checked["ok"] is True
    assert checked["layers"]["matrix_multiply"].keys() == {"float"}
    assert worst_difference(reference_stream()[1], deployed_stream(artifact, "onnxruntime")) <= 1e-4


def test_the_check_says_what_it_is_and_what_it_is_not() -> None:
    files = converted_stream()
    build = to_tensorrt(files.onnx, files.new_directory("tensorrt-fp32"), "fp32", capability="8.7").build
    assert build is not None
    checked = build["checked"]
    assert (checked["capability"], checked["target_capability"]) == ("8.6", "8.7")
    assert checked["version"] == trt.__version__
    assert checked["engine_bytes"] > 10_000
    assert checked["seconds"] > 0
    assert "standing in for sm_87" in checked["message"]
    assert "the device builds its own engine" in checked["message"]
    assert recipe_from_build(build).precision == "fp32"


def test_fp16_builds_with_float32_islands_and_keeps_50_db() -> None:
    files = converted_stream()
    artifact = to_tensorrt(files.onnx, files.new_directory("tensorrt-fp16"), "fp16")
    assert artifact.build is not None
    layers = artifact.build["checked"]["layers"]
    assert layers["matrix_multiply"].keys() == {"half"}
    assert layers["normalization"].keys() == {"float"}
    assert layers["softmax"].keys() == {"float"}
    ratios = sqnr_db(reference_stream()[1], deployed_stream(artifact, "onnxruntime"))
    assert min(ratios.values()) >= 50, ratios
    assert artifact.models[GRAPH].stat().st_size <= 0.7 * files.onnx[GRAPH].stat().st_size


def test_fp16_keeps_the_names_and_float32_at_the_border() -> None:
    files = converted_stream()
    artifact = to_tensorrt(files.onnx, files.new_directory("tensorrt-fp16"), "fp16")
    before, after = onnx.load(files.onnx[GRAPH]).graph, onnx.load(artifact.models[GRAPH]).graph
    for old, new in ((before.input, after.input), (before.output, after.output)):
        assert [(v.name, v.type) for v in old] == [(v.name, v.type) for v in new]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["tokens", "recurrent", "translation", "attention"])
def test_any_torch_module_builds(name: str, precision: Any, tmp_path: Path) -> None:
    model = generic_models()[name]
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    artifact = to_tensorrt(export_onnx(model, source), target, precision)
    assert artifact.build is not None
    assert artifact.build["checked"]["ok"] is True
    got = deployed_once(artifact, model, "onnxruntime")
    for output, expected in model.run(model.example["main"]).items():
        np.testing.assert_allclose(got[output], expected, atol=1e-5 if precision == "fp32" else 5e-3)


def test_an_operation_that_tensorrt_lacks_is_named_with_its_module(tmp_path: Path) -> None:
    model = nested(lambda x: ((x * 10).long() | 3).float())
    (tmp_path / "target").mkdir()
    with pytest.raises(ConversionError, match=r"cannot parse .* \(BitwiseOr\).* of module encoder\.odd"):
        to_tensorrt(export_onnx(model, tmp_path), tmp_path / "target", "fp32")


def quantized_onnx(path: Path, zero_point: int) -> Path:
    """A linear layer: Q and DQ on both inputs of a MatMul."""
    weight = np.random.default_rng(0).integers(-127, 127, (32, 32)).astype(np.int8)
    constants = {
        "scale": np.float32(0.05),
        "zero": np.int8(zero_point),
        "weight_scale": np.full(32, 0.01, np.float32),
        "weight_zero": np.zeros(32, np.int8),
        "weight": weight.astype(np.float32) * np.float32(0.01),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"], name="quantize_x"),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"], name="dequantize_x"),
        helper.make_node("QuantizeLinear", ["weight", "weight_scale", "weight_zero"], ["wq"], name="qw", axis=1),
        helper.make_node("DequantizeLinear", ["wq", "weight_scale", "weight_zero"], ["wd"], name="dqw", axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], name="product"),
    ]
    for node in nodes:
        node.metadata_props.add(key="edgeattn.module", value="encoder.linear")
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 32])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def test_int8_builds_with_float16_around_its_pairs(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    artifact = to_tensorrt({"main": quantized_onnx(tmp_path / "q.onnx", 0)}, tmp_path / "target", "int8")
    assert artifact.build is not None
    layers = artifact.build["checked"]["layers"]
    assert layers["quantize"] == {"int8": 2}
    assert layers["dequantize"] == {"half": 2}
    assert layers["matrix_multiply"] == {"half": 1}


def test_a_zero_point_that_is_not_zero_is_named_with_its_module(tmp_path: Path) -> None:
    source = {"main": quantized_onnx(tmp_path / "q.onnx", 3)}
    with pytest.raises(ConversionError, match=r"'quantize_x' .* of module encoder\.linear has a non-zero zero-point"):
        to_tensorrt(source, tmp_path, "int8")


def test_a_graph_without_pairs_beside_one_that_has_them_is_float16(tmp_path: Path) -> None:
    # A decoder's step has a single row per layer, which gains nothing in int8; its encoder has many.
    files = {"encoder": quantized_onnx(tmp_path / "q.onnx", 0), "step": converted_stream().onnx[GRAPH]}
    (tmp_path / "target").mkdir()
    artifact = to_tensorrt(files, tmp_path / "target", "int8")
    assert "step: no layer is worth int8, float16" in artifact.recipe
    types = onnx_types(onnx.load(artifact.models["step"]))
    assert TensorProto.FLOAT16 in types.values()
    assert TensorProto.INT8 not in types.values()


def test_int8_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="needs explicit Q/DQ"):
        to_tensorrt(converted_stream().onnx, tmp_path, "int8")


def test_an_unknown_precision_is_refused_with_the_valid_ones(tmp_path: Path) -> None:
    precision: Any = "int4"
    with pytest.raises(UnsupportedError, match="Valid: fp16, fp32, int8"):
        to_tensorrt(converted_stream().onnx, tmp_path, precision)


def test_without_the_checker_the_record_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    build = to_tensorrt(converted_stream().onnx, tmp_path, "fp32").build
    assert build is not None
    assert build["checked"]["ok"] is None
    assert "pip install 'edgeattn[tensorrt-check]'" in build["checked"]["message"]


@pytest.mark.parametrize(
    ("wanted", "expected"), [("8.7", "8.6"), ("8.9", "8.9"), ("7.2", "7.5"), ("11.0", "8.9"), ("12.1", "12.0")]
)
def test_the_nearest_lower_capability_stands_in(wanted: str, expected: str) -> None:
    assert nearest_capability(wanted, ("7.5", "8.0", "8.6", "8.9", "12.0")) == expected


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    to_tensorrt(converted_stream().onnx, tmp_path, "fp16")
    assert capfd.readouterr() == ("", "")


def test_a_bundle_for_a_dla_says_so_in_its_recipe_and_what_was_not_checked() -> None:
    files = converted_stream()
    recipe = BuildRecipe("fp16", sparsity=True, dla=True)  # builds here although there is no DLA
    made = to_tensorrt(files.onnx, files.new_directory("tensorrt-dla"), "fp16", recipe=replace(recipe, dla=False))
    asked = on_dla(made)
    assert recipe_from_build(asked.build) == recipe
    assert asked.build is not None
    assert asked.build["checked"]["ok"] is True
    assert "what its DLA takes is known on the device alone" in asked.build["checked"]["message"]
    direct = to_tensorrt(files.onnx, files.new_directory("tensorrt-dla"), "fp16", recipe=recipe)
    assert recipe_from_build(direct.build) == recipe


def test_a_dla_computes_no_float32() -> None:
    files = converted_stream()
    made = to_tensorrt(files.onnx, files.new_directory("tensorrt-fp32"), "fp32")
    with pytest.raises(UnsupportedError, match="a DLA computes in fp16 and int8 alone"):
        on_dla(made)
