"""TensorRT: the builder for real with tensorrt_rtx, and what this host without a GPU must say."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgeattn.errors import BundleError, DeviceError
from edgeattn.runtimes import open_session
from edgeattn.runtimes.cuda import Cuda
from edgeattn.runtimes.engine_cache import engine_cache
from edgeattn.runtimes.tensorrt import Board, engine_key, files_beside, inspected_layers, timing_key
from edgeattn.runtimes.tensorrt_build import (
    BuildRecipe,
    build_engine,
    capabilities,
    recipe_from_build,
    recipe_to_build,
)
from tests.runtimes.cudart import has_gpu
from tests.runtimes.simulated_tensorrt import Network, simulated_tensorrt
from tests.runtimes.tiny import tiny_spec, write_qdq

Files = Callable[[str], Path]


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    module: ModuleType = pytest.importorskip("tensorrt_rtx", reason="building here needs pip install tensorrt-rtx")
    return module


@pytest.mark.parametrize(("kind", "precision", "dtype"), [("onnxruntime", "fp32", "float"), ("fp16", "fp16", "half")])
def test_builder_builds_an_engine_whose_layers_have_the_dtype_of_the_file(
    rtx: ModuleType, kind: str, precision: str, dtype: str, tiny_file: Files
) -> None:
    recipe = replace(BuildRecipe(), precision=precision)  # type: ignore[arg-type]  # a Literal, from parametrize
    outcome = build_engine(rtx, tiny_file(kind), recipe, "8.6")
    assert outcome.ok, outcome.failure
    assert outcome.engine is not None
    assert len(outcome.engine) > 10_000
    assert outcome.strongly_typed
    assert outcome.network["matrix_multiply"] == {dtype: 6}
    assert (outcome.version, outcome.capability, outcome.failure) == (rtx.__version__, "8.6", "")
    assert 0 < outcome.seconds < 60


def test_builder_takes_explicit_qdq(rtx: ModuleType, tmp_path: Path) -> None:
    outcome = build_engine(rtx, write_qdq(tmp_path / "main.onnx")[0], BuildRecipe("int8"), "8.6")
    assert outcome.ok, outcome.failure
    assert outcome.network["dequantize"] == {"float": 2}
    assert outcome.network["quantize"] == {"int8": 1}


def test_sparse_and_tf32_flags_are_taken(rtx: ModuleType, tiny_file: Files) -> None:
    recipe = BuildRecipe(sparsity=True, tf32=True, optimization_level=1)
    assert build_engine(rtx, tiny_file("onnxruntime"), recipe, "8.9").ok


def test_refused_node_is_named_with_its_op(rtx: ModuleType, tiny_file: Files, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tiny_file("onnxruntime"))
    model.graph.node.append(onnx.helper.make_node("Frobnicate", ["log_probs"], ["odd"], name="layer7/odd"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("odd", onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "odd.onnx")
    outcome = build_engine(rtx, tmp_path / "odd.onnx", BuildRecipe(), "8.6")
    assert not outcome.ok
    assert (outcome.parser_errors[0].node, outcome.parser_errors[0].op) == ("layer7/odd", "Frobnicate")
    assert "cannot parse the ONNX file: node 'layer7/odd' (Frobnicate)" in outcome.failure
    assert "\n" not in outcome.failure


def test_non_zero_zero_point_is_refused_as_on_the_device(rtx: ModuleType, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path, _, _ = write_qdq(tmp_path / "main.onnx")
    model = onnx.load(path)
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.name == "zero":
            shifted = onnx.numpy_helper.to_array(tensor) + np.int8(3)
            model.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(shifted, "zero"))
    onnx.save(model, path)
    outcome = build_engine(rtx, path, BuildRecipe("int8"), "8.6")
    assert not outcome.ok
    assert "zero" in outcome.failure.lower()


def test_calls_of_the_runtime_exist_in_nvidias_package(rtx: ModuleType) -> None:
    calls = {
        "ICudaEngine": "num_io_tensors get_tensor_name get_tensor_mode get_tensor_dtype get_tensor_shape "
        "create_execution_context create_engine_inspector device_memory_size_v2 get_engine_stat",
        "IExecutionContext": "set_tensor_address execute_async_v3 profiler",
        "EngineInspector": "get_engine_information",
        "LayerInformationFormat": "JSON",
        "TensorIOMode": "INPUT OUTPUT",
        "IProfiler": "report_layer_time",
        "Runtime": "deserialize_cuda_engine",
        "Logger": "ERROR",
        "Builder": "num_DLA_cores",
        "IBuilderConfig": "create_timing_cache set_timing_cache default_device_type DLA_core",
        "ITimingCache": "serialize",
        "DeviceType": "DLA",
        "BuilderFlag": "GPU_FALLBACK SPARSE_WEIGHTS TF32",
        "EngineStat": "TOTAL_WEIGHTS_SIZE",
    }
    missing = [
        f"{kind}.{name}"
        for kind, names in calls.items()
        for name in names.split()
        if not hasattr(getattr(rtx, kind), name)
    ]
    assert missing == []


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing"])
def test_damaged_onnx_is_an_outcome_with_a_reason(
    rtx: ModuleType, damage: str, tiny_file: Files, tmp_path: Path
) -> None:
    path = tmp_path / "main.onnx"
    if damage != "missing":
        data = tiny_file("onnxruntime").read_bytes()
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"hello world")
    outcome = build_engine(rtx, path, BuildRecipe(), "8.6")
    assert not outcome.ok
    assert outcome.engine is None
    assert outcome.failure


def test_capability_that_cannot_be_built_for_is_refused_with_the_valid_ones(rtx: ModuleType, tiny_file: Files) -> None:
    assert "8.6" in capabilities(rtx)
    with pytest.raises(ValueError, match=r"cannot build for compute capability '8.7'; valid: .*8.6"):
        build_engine(rtx, tiny_file("onnxruntime"), BuildRecipe(), "8.7")


def test_recipe_goes_through_the_manifest_unchanged() -> None:
    recipe = BuildRecipe("fp16", 2**28, 5, sparsity=True, tf32=True, dla=True)
    assert recipe_from_build(recipe_to_build(recipe, {"ok": True})) == recipe


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (None, "no build recipe"),
        ({"checked": {}}, "no build recipe"),
        ({"recipe": {"precision": "fp8"}}, "build.recipe.precision: expected one of fp32, fp16, int8"),
        ({"recipe": {"precison": "fp16"}}, "unknown field 'precison'"),
        ({"recipe": {"workspace_bytes": 5}}, "workspace_bytes must be at least 1 MiB"),
        ({"recipe": {"optimization_level": 9}}, "optimization_level must be 0 to 5"),
        ({"recipe": {"precision": "fp32", "dla": True}}, "a DLA computes in fp16 and int8 alone"),
    ],
)
def test_wrong_recipe_is_refused_by_field(build: dict[str, object] | None, message: str, tiny_file: Files) -> None:
    with pytest.raises(BundleError, match=message):
        open_session("tensorrt", {"main": tiny_file("onnxruntime")}, tiny_spec(), build=build)


def test_host_without_tensorrt_or_gpu_says_what_is_missing(tiny_file: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DeviceError) as caught:
        open_session("tensorrt", {"main": tiny_file("onnxruntime")}, tiny_spec(), build=recipe_to_build(BuildRecipe()))
    message = str(caught.value)
    assert "tensorrt is not installed (it comes with JetPack)" in message
    assert 'backend="onnxruntime"' in message
    assert "\n" not in message
    assert caught.value.exit_code == 3
    if not has_gpu():
        assert "cuda" in message.lower()


@pytest.mark.skipif(has_gpu(), reason="this host has a GPU")
def test_cuda_without_a_gpu_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="CUDA"):
        Cuda()


def test_engine_key_changes_with_all_that_an_engine_is_tied_to() -> None:
    onnx, files = Path("m[1].onnx"), {"m[1].onnx": "1" * 64, "weights of any name": "2" * 64}
    recipe, board = BuildRecipe("fp16"), Board("10.3.0", "8.7", 8, "# R36", "15W")
    base = engine_key(onnx, files, recipe, board)
    changes = [
        (replace(recipe, precision="int8"), board),
        (replace(recipe, workspace_bytes=2**21), board),
        (replace(recipe, optimization_level=1), board),
        (replace(recipe, sparsity=True), board),
        (replace(recipe, tf32=True), board),
        (replace(recipe, dla=True), board),
        (recipe, replace(board, tensorrt="10.3.1")),
        (recipe, replace(board, capability="8.6")),
        (recipe, replace(board, multiprocessors=16)),
        (recipe, replace(board, l4t="# R39")),
        (recipe, replace(board, power_mode="MAXN")),
    ]
    others = {engine_key(onnx, files, *change) for change in changes}
    for change in ({"m[1].onnx": "3" * 64}, {"weights of any name": "3" * 64}, {"another": "2" * 64}):
        others.add(engine_key(onnx, files | change, recipe, board))
    others.add(engine_key(onnx, {"m[1].onnx": "1" * 64}, recipe, board))
    others.add(engine_key(Path("weights of any name"), files, recipe, board))
    assert len(others | {base}) == 17
    assert engine_key(onnx, dict(reversed(files.items())), recipe, board) == base


@pytest.mark.parametrize("name", ["m[1].onnx", "m*.onnx", "main.onnx"])
@pytest.mark.parametrize("weights", ["w", "weights.bin", "deep/er/[x].data", "main.onnx.data"])
def test_files_beside_an_onnx_file_are_those_that_it_names(tmp_path: Path, name: str, weights: str) -> None:
    (tmp_path / weights).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / weights).write_bytes(b"weights")
    (tmp_path / "neighbour").write_bytes(b"large")
    (tmp_path / name).write_bytes(b"\x0a\x08location\x12" + weights.encode())
    before = files_beside(tmp_path / name)
    assert set(before) == {name, weights}
    (tmp_path / weights).write_bytes(b"others")
    after = files_beside(tmp_path / name)
    assert before[name] == after[name]
    assert before[weights] != after[weights]


def test_timings_are_shared_by_all_engines_of_a_board_and_by_no_other() -> None:
    board = Board("10.3.0", "8.7", 8, "# R36", "15W")
    others = (
        replace(board, tensorrt="10.3.1"),
        replace(board, capability="8.6"),
        replace(board, multiprocessors=16),
        replace(board, l4t="# R39"),
        replace(board, power_mode="MAXN"),
    )
    assert len({timing_key(board), *map(timing_key, others)}) == 1 + len(fields(board))


def test_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path))
    assert engine_cache() == tmp_path / "engines"
    monkeypatch.delenv("EDGEATTN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert engine_cache() == tmp_path / "xdg" / "edgeattn" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert engine_cache() == Path.home() / ".cache" / "edgeattn" / "engines"


def test_inspector_text_of_each_version_gives_types_and_dtypes() -> None:
    text = """{"Layers": [
      {"Name": "a", "LayerType": "gemm", "Outputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}]},
      {"Name": "b", "LayerType": "CaskGemm", "Outputs": [{"Name": "x", "Format/Datatype": "Half"}]},
      {"Name": "c", "LayerType": "conv", "Outputs": [
        {"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}]},
      {"Name": "d", "LayerType": "kgen", "Outputs": []},
      "fused layer without details"], "Bindings": ["x"]}"""
    assert inspected_layers(text) == [
        ("gemm", ["float32"]),
        ("CaskGemm", ["float16"]),
        ("conv", ["int8"]),
        ("kgen", []),
        ("layer", []),
    ]


def test_the_simulator_has_no_call_that_nvidias_package_lacks(rtx: ModuleType) -> None:
    simulated = simulated_tensorrt("11.0.0", ctypes.CDLL(None), lambda _: Network({}, {}, lambda *_: None))
    logger = simulated.Logger(simulated.Logger.ERROR)
    builder = simulated.Builder(logger)
    engine = simulated.Runtime(logger).deserialize_cuda_engine(b"11.0.0\n")
    config = builder.create_builder_config()
    pairs = {
        "Builder": builder,
        "IBuilderConfig": config,
        "ITimingCache": config.create_timing_cache(b""),
        "ICudaEngine": engine,
        "IExecutionContext": engine.create_execution_context(),
        "Runtime": simulated.Runtime(logger),
        "OnnxParser": simulated.OnnxParser(builder.create_network(0), logger),
        "EngineInspector": engine.create_engine_inspector(),
    }
    inside = {"limits", "cache", "known", "version", "network", "names", "addresses", "used", "ready", "errors"}
    extra = {
        f"{kind}.{name}"
        for kind, made in pairs.items()
        for name in dir(made)
        if not name.startswith("_") and name not in inside and not hasattr(getattr(rtx, kind), name)
    }
    assert extra == set()
    for kind in ("DataType", "TensorIOMode", "DeviceType", "BuilderFlag", "MemoryPoolType", "EngineStat"):
        assert [name for name in simulated.__dict__[kind].__members__ if not hasattr(getattr(rtx, kind), name)] == []
