"""Operations are counted from the file that ships: closed forms, and three formats that tell the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeattn.bundle import BundleDraft, open_bundle, read_manifest
from edgeattn.errors import BundleError, InputError, UnsupportedError
from edgeattn.graphs.counting import GraphFigures, file_figures
from edgeattn.graphs.estimate import estimate_bundle, op_figures
from edgeattn.model import Artifact
from edgeattn.pipeline.steps.baseline import recorded
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.recipes import build
from edgeattn.progress import Quiet
from edgeattn.sources.modules import from_module
from edgeattn.targets import Memory, get_target, host_target
from edgeattn.targets.calibration import Calibration, EngineCalibration, keep_calibration
from edgeattn.targets.roofline import Efficiency, Range
from tests.small import small_manifest

ROWS, WIDTH, HIDDEN, HEADS = 8, 32, 64, 4
LINEAR_FLOPS = 2 * ROWS * WIDTH * (3 * WIDTH + WIDTH + HIDDEN + HIDDEN)
ATTENTION_FLOPS = 2 * 2 * HEADS * ROWS * ROWS * (WIDTH // HEADS)
WEIGHTS = WIDTH * (3 * WIDTH + WIDTH + HIDDEN + HIDDEN)


class Block(nn.Module):
    """One attention block whose operations are known: (1, 8, 32) -> (1, 8, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.expand = nn.Linear(WIDTH, HIDDEN)
        self.contract = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (part.reshape(1, ROWS, HEADS, -1).transpose(1, 2) for part in parts)
        seen = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        x = x + self.out(seen.transpose(1, 2).reshape(1, ROWS, WIDTH))
        return {"y": x + self.contract(torch.relu(self.expand(x)))}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    torch.manual_seed(0)
    model = from_module(Block(), {"x": torch.randn(1, ROWS, WIDTH)}, "block")
    rng = np.random.default_rng(0)
    samples = tuple({"x": rng.standard_normal((1, ROWS, WIDTH)).astype(np.float32)} for _ in range(8))
    base = replace(recorded(model, None, Quiet()), calibration={"main": samples})
    return Exports(model, base, tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def made(exports: Exports) -> Callable[[str, str], Artifact]:
    kept: dict[tuple[str, str], Artifact] = {}

    def artifact(backend: str, recipe: str) -> Artifact:
        target = get_target("jetson" if backend == "tensorrt" else "cpu")
        if (backend, recipe) not in kept:
            kept[backend, recipe] = build(backend, exports, recipe, target)
        return kept[backend, recipe]

    return artifact


def figures(artifact: Artifact, dynamic: bool = False) -> GraphFigures:
    return file_figures(artifact.backend, artifact.models, dynamic)["main"]


def products(found: GraphFigures, precision: str | None = None) -> float:
    kinds = ("MatMul", "Gemm", "FULLY_CONNECTED", "BATCH_MATMUL")
    return sum(op.flops for op in found.ops if op.type in kinds and precision in (None, op.precision))


@pytest.mark.parametrize(
    ("backend", "recipe"),
    [("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "fp16"), ("litert", "fp32"), ("tensorrt", "fp16")],
)
def test_every_format_tells_the_same_operations(
    made: Callable[[str, str], Artifact], backend: str, recipe: str
) -> None:
    found = figures(made(backend, recipe))
    assert products(found) == LINEAR_FLOPS + ATTENTION_FLOPS
    # Only an accelerator computes in float16: the processors' engines unpack the weights.
    assert {op.precision for op in found.ops} <= ({"fp16", "fp32"} if backend == "tensorrt" else {"fp32"})
    assert products(found, "fp16") == (products(found) if backend == "tensorrt" else 0)


@pytest.mark.parametrize(
    ("backend", "recipe"), [("onnxruntime", "int8-static"), ("openvino", "int8-static"), ("litert", "int8-dynamic")]
)
def test_what_is_int8_in_the_file_is_int8_in_the_figures(
    made: Callable[[str, str], Artifact], backend: str, recipe: str
) -> None:
    found = figures(made(backend, recipe))
    # The two products of attention are never int8.
    assert products(found) == LINEAR_FLOPS + ATTENTION_FLOPS
    assert products(found, "int8") == LINEAR_FLOPS
    assert products(found, "fp32") == ATTENTION_FLOPS


def test_int8_weights_are_read_as_a_quarter_of_the_bytes(made: Callable[[str, str], Artifact]) -> None:
    def linear_bytes(artifact: Artifact) -> float:
        return sum(op.bytes for op in figures(artifact).ops if op.type in ("MatMul", "Gemm"))

    plain, quantized = linear_bytes(made("openvino", "fp32")), linear_bytes(made("openvino", "int8-static"))
    inputs = ROWS * (WIDTH + WIDTH + WIDTH + HIDDEN)  # entries that the four layers read
    attention = 4 * (2 * HEADS * ROWS * ROWS + 4 * ROWS * WIDTH)
    outputs = ROWS * (3 * WIDTH + WIDTH + HIDDEN + WIDTH)
    assert plain == 4 * (WEIGHTS + inputs + outputs) + attention
    assert quantized == WEIGHTS + inputs + 4 * outputs + attention


def test_weights_alone_in_int8_are_computed_as_the_engine_did(made: Callable[[str, str], Artifact]) -> None:
    artifact = made("openvino", "int8-dynamic")
    assert products(figures(artifact), "int8") == 0
    assert products(figures(artifact, dynamic=True), "int8") == LINEAR_FLOPS


# --- single operations, by hand ---------------------------------------------------------------------------------------


def write(
    path: Path, nodes: list[onnx.NodeProto], shapes: dict[str, tuple[int, ...]], weights: dict[str, np.ndarray]
) -> Path:
    """An ONNX file that reads ``shapes`` and writes what its last node gives."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("example", 1)])
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("node", "shapes", "weights", "flops"),
    [
        (("MatMul", {}), {"x": (2, 3, 4)}, {"w": zeros(4, 5)}, 2 * 2 * 3 * 4 * 5),
        (("Gemm", {"transA": 1}), {"x": (4, 6)}, {"w": zeros(4, 5)}, 2 * 6 * 4 * 5),
        (("Gemm", {"transB": 1}), {"x": (6, 4)}, {"w": zeros(5, 4)}, 2 * 6 * 4 * 5),
        (("Conv", {}), {"x": (1, 8, 10)}, {"w": zeros(16, 8, 3)}, 2 * 16 * 8 * 8 * 3),
        (("Conv", {"group": 8}), {"x": (1, 8, 10)}, {"w": zeros(8, 1, 3)}, 2 * 8 * 8 * 3),
        (("ConvTranspose", {"strides": [2]}), {"x": (1, 8, 10)}, {"w": zeros(8, 4, 2)}, 2 * 8 * 10 * 4 * 2),
        (("Einsum", {"equation": "bqd,bkd->bqk"}), {"x": (2, 3, 4), "y": (2, 5, 4)}, {}, 2 * 2 * 3 * 5 * 4),
        (("Softmax", {}), {"x": (2, 3, 4)}, {}, 24),
        (("Transpose", {}), {"x": (2, 3, 4)}, {}, 0),
    ],
)
def test_an_operation_has_the_flops_of_its_definition(
    tmp_path: Path,
    node: tuple[str, dict[str, Any]],
    shapes: dict[str, tuple[int, ...]],
    weights: dict[str, np.ndarray],
    flops: int,
) -> None:
    kind, options = node
    made = helper.make_node(kind, [*shapes, *weights], ["z"], **options)
    path = write(tmp_path / "one.onnx", [made], shapes, weights)
    found = file_figures("onnxruntime", {"main": path})["main"]
    assert [(op.type, op.flops, op.kernels) for op in found.ops] == [(kind, flops, 1)]
    if kind != "Transpose":
        inputs = sum(int(np.prod(shape)) for shape in shapes.values()) + sum(w.size for w in weights.values())
        output = onnx.load(path).graph.output[0].type.tensor_type.shape.dim
        assert found.ops[0].bytes == 4 * (inputs + int(np.prod([dim.dim_value for dim in output])))


@pytest.mark.parametrize(
    ("kind", "options", "weight"),
    [("Conv", {}, (16, 8, 3)), ("Conv", {"group": 8}, (8, 1, 3)), ("ConvTranspose", {"strides": [2]}, (8, 4, 2))],
)
def test_a_convolution_of_openvino_has_the_flops_of_the_onnx_file(
    tmp_path: Path, kind: str, options: dict[str, Any], weight: tuple[int, ...]
) -> None:
    openvino = pytest.importorskip("openvino")
    made = helper.make_node(kind, ["x", "w"], ["z"], **options)
    path = write(tmp_path / "one.onnx", [made], {"x": (1, 8, 10)}, {"w": zeros(*weight)})
    openvino.save_model(openvino.Core().read_model(path), tmp_path / "one.xml", compress_to_fp16=False)
    ours, theirs = (
        sum(op.flops for op in file_figures(engine, {"main": tmp_path / name})["main"].ops)
        for engine, name in (("onnxruntime", "one.onnx"), ("openvino", "one.xml"))
    )
    assert ours == theirs > 0


def test_a_table_is_not_read_as_a_whole(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["z"])],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, (1, 7))],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 7, 16))],
        [numpy_helper.from_array(zeros(30_000, 16), "table")],
    )
    path = tmp_path / "table.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    (op,) = file_figures("onnxruntime", {"main": path})["main"].ops
    assert (op.flops, op.bytes) == (0, 2 * 4 * 7 * 16)


def test_engines_that_fuse_start_no_kernel_for_an_elementwise_operation(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["z"])]
    path = write(tmp_path / "two.onnx", nodes, {"x": (2, 4)}, {"w": zeros(4, 5)})
    kernels = {
        engine: [op.kernels for op in file_figures(engine, {"main": path})["main"].ops]
        for engine in ("onnxruntime", "tensorrt")
    }
    assert kernels == {"onnxruntime": [1, 1], "tensorrt": [1, 0]}


def test_what_is_known_before_the_call_costs_nothing(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("Sqrt", ["wt"], ["v"]),
        helper.make_node("MatMul", ["x", "v"], ["z"]),
    ]
    path = write(tmp_path / "folded.onnx", nodes, {"x": (2, 4)}, {"w": zeros(5, 4)})
    assert [op.type for op in file_figures("onnxruntime", {"main": path})["main"].ops] == ["MatMul"]


def test_the_activation_peak_is_that_of_the_worst_moment(tmp_path: Path) -> None:
    # x and z always live (40 + 40 entries); beside them a, then a and b, then b and c: 100 + 60 at the worst.
    nodes = [
        helper.make_node("MatMul", ["x", "wa"], ["a"]),
        helper.make_node("MatMul", ["a", "wb"], ["b"]),
        helper.make_node("MatMul", ["b", "wc"], ["c"]),
        helper.make_node("MatMul", ["c", "wz"], ["z"]),
    ]
    weights = {"wa": zeros(4, 10), "wb": zeros(10, 6), "wc": zeros(6, 2), "wz": zeros(2, 4)}
    path = write(tmp_path / "chain.onnx", nodes, {"x": (10, 4)}, weights)
    assert file_figures("onnxruntime", {"main": path})["main"].activation_bytes == 4 * (40 + 40 + 100 + 60)


# --- bundles, and what is refused -------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path, made: Callable[[str, str], Artifact]) -> Path:
    """The block for LiteRT, with a manifest of its own."""
    artifact = made("litert", "fp32")
    spec = replace(small_manifest().spec, stream=None)
    graph = replace(spec.graphs[0], states=())
    with BundleDraft(tmp_path / "block.cpu.edge") as draft:
        (draft.path / "main.tflite").write_bytes(artifact.models["main"].read_bytes())
        manifest = replace(
            small_manifest(),
            backend="litert",
            spec=replace(spec, graphs=(graph,)),
            models={"main": "main.tflite"},
            golden=None,
        )
        draft.write_manifest(manifest)
        return draft.publish()


def test_a_bundle_is_estimated_as_a_range_and_named_so(bundle: Path) -> None:
    found = estimate_bundle(bundle, get_target("raspberry-pi-5"))
    assert (found.kind, found.target, found.engine) == ("estimated", "raspberry-pi-5", "litert")
    assert 0 < found.low_ms < found.mid_ms < found.high_ms
    with open_bundle(bundle) as opened:
        flops = op_figures(opened)["main"].flops
    # No faster than the peak of one core of 2.4 GHz with 16 operations a cycle.
    assert found.low_ms > 1e3 * flops / (2.4e9 * 16)
    assert found.fits is True
    weights = next(iter(read_manifest(bundle).files.values())).size
    assert found.needs_bytes is not None
    assert found.needs_bytes > weights


def test_a_device_that_the_model_does_not_fit_into_is_told(bundle: Path) -> None:
    tiny = replace(get_target("raspberry-pi-5"), memory=Memory("an example", bytes=1000, bytes_per_second=1e9))
    assert estimate_bundle(bundle, tiny).fits is False


def test_a_target_without_a_rate_is_refused(bundle: Path) -> None:
    with pytest.raises(
        UnsupportedError, match=r"x86-avx2: its latency cannot be estimated, \[memory\] bytes_per_second"
    ):
        estimate_bundle(bundle, get_target("x86-avx2"))


def test_a_bundle_of_an_engine_that_the_target_does_not_have_is_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match="jetson-orin-nano has no engine 'litert'; it has tensorrt, onnxruntime"):
        estimate_bundle(bundle, get_target("jetson"))


def test_this_machine_is_estimated_by_its_calibration_alone(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match="this machine was not calibrated for 1 thread"):
        estimate_bundle(bundle, host_target())
    one = Range(1, 1, 1)
    launch = Range(1e-6, 2e-6, 4e-6)
    engine = EngineCalibration("1.0", Efficiency(one, one, launch, "planted", {"fp32": one}), 2.0, ())
    keep_calibration(Calibration("this machine", 1, 1, 1e9, 1e9, {"litert": engine}))
    with open_bundle(bundle) as opened:
        kernels = sum(op.kernels for op in op_figures(opened)["main"].ops)
    found = estimate_bundle(bundle, host_target())
    assert found.source == "planted"
    # Computing and moving take the same at both ends here, so what lies between them is the kernels' cost alone.
    assert found.high_ms - found.low_ms == pytest.approx(kernels * 3e-3, rel=1e-6)


def test_control_flow_is_refused_by_name(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, (2,))
        return helper.make_graph([helper.make_node("Identity", ["x"], [name])], name, [], [out])

    choice = helper.make_node("If", ["c"], ["z"], "choice", then_branch=branch("a"), else_branch=branch("b"))
    graph = helper.make_graph(
        [choice],
        "g",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, (2,)),
        ],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, (2,))],
    )
    path = tmp_path / "if.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    with pytest.raises(UnsupportedError, match=r"'choice' \(If\) runs other operations as values decide"):
        file_figures("onnxruntime", {"main": path})


def test_an_operation_of_unknown_size_is_refused_by_name(tmp_path: Path) -> None:
    node = helper.make_node("Odd", ["x"], ["h"], "odd", domain="example")
    last = helper.make_node("Identity", ["h"], ["z"])
    path = write(tmp_path / "odd.onnx", [node, last], {"x": (2, 4)}, {})
    with pytest.raises(UnsupportedError, match=r"does not tell what size operation 'odd' \(Odd\) gives"):
        file_figures("onnxruntime", {"main": path})


@pytest.mark.parametrize(
    ("engine", "name", "told"),
    [("onnxruntime", "a.onnx", "as ONNX"), ("openvino", "a.xml", "as IR"), ("litert", "a.tflite", "as TFLite")],
)
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"\xff" * 4096])
def test_a_damaged_file_is_refused(tmp_path: Path, engine: str, name: str, told: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    if engine == "onnxruntime" and content == b"":
        content = b"\xff"
        (tmp_path / name).write_bytes(content)  # no bytes are an ONNX model without a graph
    with pytest.raises(BundleError, match=f"graph 'main' cannot be read {told}"):
        file_figures(engine, {"main": tmp_path / name})
