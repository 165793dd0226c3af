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
from edgeattn.engines import Treatment
from edgeattn.errors import InputError, UnsupportedError
from edgeattn.graphs.layers import layer_path, linear_layers
from edgeattn.model import Artifact, EdgeModel
from edgeattn.models.streaming_conformer import GRAPH
from edgeattn.quantize.plan import Plan, Rule
from edgeattn.quantize.probe import probe
from edgeattn.quantize.qdq import (
    GROUP,
    INT8_MAX,
    NARROW_MAX,
    QdqOptions,
    best_scale,
    group_scales,
    quantize_onnx,
    rounded,
    weight_scales,
    worthwhile,
)
from edgeattn.runtimes import onnxruntime as runtime
from edgeattn.runtimes import open_session
from tests.converters.samples import (
    as_model,
    calibration,
    converted_stream,
    deployed_stream,
    reference_stream,
    sqnr_db,
    stream_model,
)
from tests.processors import needs_int8_dot


@functools.cache
def quantized() -> Path:
    files = converted_stream()
    return quantize_onnx(files.onnx, calibration(), files.new_directory("qdq")).models[GRAPH]


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


@needs_int8_dot
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


@needs_int8_dot
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


class One(nn.Module):
    """A layer with a bias, on a batch of rows or on rows alone, which ONNX writes as MatMul and Add or as Gemm."""

    def __init__(self, inner: int = 64, outer: int = 48) -> None:
        super().__init__()
        self.fc = nn.Linear(inner, outer)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.fc(x)}


def one(*shape: int) -> EdgeModel:
    torch.manual_seed(0)
    return as_model("one", One(shape[-1]), x=torch.randn(shape))


def written(model: EdgeModel, directory: Path, options: QdqOptions) -> Path:
    """The quantized file of a model whose calibration is its example."""
    (directory / "int8").mkdir()
    files = export_onnx(model, directory)
    return quantize_onnx(files, {"main": [model.example["main"]]}, directory / "int8", options).models["main"]


def activation_scale(path: Path) -> float:
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    (node,) = (node for node in graph.node if node.op_type == "QuantizeLinear")
    return float(constants[node.input[1]])


def simulated(model: EdgeModel, treatment: Treatment, limit: int, scale: float) -> np.ndarray:
    """What the layer computes, in float64: an oracle of a few lines that shares no code with the quantizer."""
    state = {name: value.double().numpy() for name, value in model.modules["main"].state_dict().items()}
    x, weight = model.example["main"]["x"].astype(np.float64), state["fc.weight"]
    if treatment == "int8":
        x = np.clip(np.rint(x.astype(np.float32) / np.float32(scale)), -128, 127) * np.float64(np.float32(scale))
    groups = weight.reshape(weight.shape[0], -1, 32 if treatment == "int4-weights" else weight.shape[1])
    steps = (np.abs(groups).max(axis=2, keepdims=True) / limit).astype(np.float32).astype(np.float64)
    restored = (np.clip(np.rint(groups / steps), -limit, limit) * steps).reshape(weight.shape)
    result: np.ndarray = x @ restored.T + state["fc.bias"]
    return result


@pytest.mark.parametrize("shape", [(1, 20, 64), (20, 64)])
@pytest.mark.parametrize(
    ("treatment", "narrow", "limit"),
    [("int8", False, 127), ("int8", True, 63), ("int8-weights", False, 127), ("int4-weights", False, 7)],
)
@needs_int8_dot
def test_each_treatment_computes_what_numpy_says(
    treatment: Treatment, narrow: bool, limit: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = one(*shape)
    options = QdqOptions(Plan(treatment), frozenset({"fc"} if narrow else ()))
    path = written(model, tmp_path, options)
    scale = activation_scale(path) if treatment == "int8" else 1.0
    expected = simulated(model, treatment, limit, scale)
    (exact,) = probe(onnx.load(path), ["y"], [model.example["main"]], optimize=False)
    np.testing.assert_allclose(exact["y"], expected, atol=1e-5)
    with open_session("onnxruntime", {"main": path}, model.spec) as session:
        got = session.run(model.example["main"])["y"]
    # narrow weights alone: its MatMulNBits rounds activations to 8 bits per block of 32
    tolerance = 1e-5 if treatment == "int8" else 0.02 * float(np.abs(expected).max())
    np.testing.assert_allclose(got, expected, atol=tolerance)
    source = model.run(model.example["main"])["y"]
    assert np.abs(expected - source).max() > 1e-4  # it is quantized at all


@pytest.mark.parametrize(("treatment", "bits"), [("int8", 8), ("int8-weights", 8), ("int4-weights", 4)])
def test_weights_are_stored_narrow_and_the_float_ones_are_gone(treatment: Treatment, bits: int, tmp_path: Path) -> None:
    model = onnx.load(written(one(1, 20, 64), tmp_path, QdqOptions(Plan(treatment))))
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2 and tensor.dims[0] > 2}
    assert kinds == {onnx.TensorProto.INT4 if bits == 4 else onnx.TensorProto.INT8}
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    assert opset == (21 if bits == 4 else 18)
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node) == (treatment == "int8")


def test_narrow_weights_stay_within_seven_bits_in_the_layers_that_are_named(tmp_path: Path) -> None:
    files = converted_stream()
    options = QdqOptions(narrow=frozenset({"classify"}))
    graph = onnx.load(quantize_onnx(files.onnx, calibration(), tmp_path, options).models[GRAPH]).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    largest = {
        layer_path(node): int(np.abs(constants[node.input[0]].astype(int)).max())
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    assert largest.pop("classify") == NARROW_MAX
    assert set(largest.values()) == {INT8_MAX}


def test_a_learned_scale_goes_before_calibration(tmp_path: Path) -> None:
    model = one(1, 20, 64)
    path = written(model, tmp_path, QdqOptions(scales={"fc": 0.05}))
    assert activation_scale(path) == pytest.approx(0.05)
    (got,) = probe(onnx.load(path), ["y"], [model.example["main"]], optimize=False)
    np.testing.assert_allclose(got["y"], simulated(model, "int8", 127, 0.05), atol=1e-5)


def test_int4_needs_blocks_that_fit(tmp_path: Path) -> None:
    model = one(1, 20, 40)
    (tmp_path / "int4").mkdir()
    made = quantize_onnx(export_onnx(model, tmp_path), {}, tmp_path / "int4", QdqOptions(Plan("int4-weights")))
    assert made.treatments == {"fc": "int8-weights"}


def test_a_plan_decides_layer_by_layer(tmp_path: Path) -> None:
    files = converted_stream()
    rules = (Rule("blocks.0.*", "float"), Rule("blocks.0.ffn1.*", "int8"), Rule("classify", "int8-weights"))
    made = quantize_onnx(files.onnx, calibration(), tmp_path, QdqOptions(Plan("int8", rules)))
    for path, treatment in made.treatments.items():
        kept = path.startswith("blocks.0.") and ".ffn1." not in path
        assert treatment == ("float" if kept else "int8-weights" if path == "classify" else "int8"), path


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    files = converted_stream()
    options = QdqOptions(Plan("int8", (Rule("encoder.*", "float"),)))
    with pytest.raises(InputError, match=r"no layer matches 'encoder\.\*'; the layers are subsampling\.project"):
        quantize_onnx(files.onnx, calibration(), tmp_path, options)
    assert not list(tmp_path.iterdir())


@given(st.integers(1, 4), st.integers(1, 8), st.integers(0, 1), st.integers(0, 2**32 - 1))
def test_groups_come_back_within_half_a_step_of_their_own(blocks: int, outer: int, axis: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((outer, blocks * GROUP)).astype(np.float32) * rng.uniform(0.1, 10, (outer, 1))
    weight = rows.T if axis == 1 else rows
    scale = group_scales(weight, axis)
    integers = rounded(weight, axis, scale, 7)
    assert integers.dtype == np.int8
    assert np.abs(integers).max() <= 7
    by_row = (scale.T if axis == 1 else scale).repeat(GROUP, axis=1)
    error = np.abs((integers.T if axis == 1 else integers) * by_row - rows)
    assert (error <= by_row * 0.5001).all()


def stream_census(path: Path) -> dict[str, dict[str, int]]:
    with open_session("onnxruntime", {GRAPH: path}, stream_model().spec, threads=1) as session:
        return session.executed()


@functools.cache
def apart() -> Path:
    """The stream with a pair for each layer."""
    files = converted_stream()
    options = QdqOptions(shared=False)
    return quantize_onnx(files.onnx, calibration(), files.new_directory("qdq-apart"), options).models[GRAPH]


def test_onnx_runtime_executes_every_layer_in_integers() -> None:
    layers = linear_layers(onnx.load(converted_stream().onnx[GRAPH]).graph)
    census = stream_census(apart())
    assert census["MatMulIntegerToFloat"].keys() <= {"int8", "uint8"}
    assert sum(census["MatMulIntegerToFloat"].values()) == len(layers)
    assert "Gemm" not in census
    assert "DequantizeLinear" not in census  # nothing is widened


def test_without_its_switch_onnx_runtime_would_compute_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "FLOAT_FUSIONS", ())
    census = stream_census(apart())
    assert "MatMulIntegerToFloat" not in census
    assert census["Gemm"].keys() == {"float32"}


def test_pairs_of_their_own_change_no_number() -> None:
    inputs = calibration()[GRAPH][7]
    names = [value.name for value in onnx.load(apart()).graph.output]
    (shared,), (own,) = (
        list(probe(onnx.load(path), names, [inputs], optimize=False)) for path in (quantized(), apart())
    )
    for name in names:
        np.testing.assert_array_equal(shared[name], own[name])


def test_float_files_keep_all_their_fusions() -> None:
    assert "Gemm" in stream_census(converted_stream().onnx[GRAPH])


def test_a_file_tells_by_its_bytes_whether_it_is_quantized(tmp_path: Path) -> None:
    assert runtime._holds_integers(apart())
    assert not runtime._holds_integers(converted_stream().onnx[GRAPH])
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert not runtime._holds_integers(tmp_path / "empty.onnx")


def test_a_gemm_with_factors_of_its_own_stays_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((32, 48)), "b": rng.standard_normal(48)}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], "fc", alpha=0.5, beta=2.0)],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (20, 32))],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (20, 48))],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    source = tmp_path / "source.onnx"
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), source)
    (tmp_path / "int8").mkdir()
    sample = {"x": rng.standard_normal((20, 32)).astype(np.float32)}
    made = quantize_onnx({"main": source}, {"main": [sample]}, tmp_path / "int8").models["main"]
    (got,) = probe(onnx.load(made), ["y"], [sample], optimize=False)
    expected = 0.5 * sample["x"] @ constants["w"] + 2.0 * constants["b"]
    assert 10 * np.log10((expected**2).sum() / ((expected - got["y"]) ** 2).sum()) > 30
