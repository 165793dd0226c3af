"""Every engine against the numpy oracle, and against what can be wrong with a file, an input or an installation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from edgeattn.engines import ENGINES as ROWS
from edgeattn.errors import BundleError, InputError, MissingExtraError, UnsupportedError
from edgeattn.runtimes import Session, backends, open_session
from edgeattn.spec import GraphSpec, ModelSpec, StateSpec, TensorSpec, to_json
from tests.runtimes.tiny import ENGINES, NumpyStep, fill, numpy_step, tiny_spec, tiny_weights, write_onnx, write_qdq

Files = Callable[[str], Path]


def test_run_binds_same_shaped_inputs_by_name(session: Session, random_inputs: dict[str, np.ndarray]) -> None:
    expected = numpy_step(tiny_weights(), random_inputs)
    results = session.run(random_inputs)
    assert set(results) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(results[name], array, atol=1e-5, err_msg=name)


def test_500_carried_state_steps_stay_within_1e_4_of_numpy(session: Session) -> None:
    rng = np.random.default_rng(0)
    step, oracle = session.step(), NumpyStep.new()
    worst = 0.0
    for _ in range(500):
        fill(rng, step, oracle)
        step.run()
        oracle.run()
        worst = max(worst, float(np.abs(step.outputs["log_probs"] - oracle.outputs["log_probs"]).max()))
    assert worst <= 1e-4
    for name, array in oracle.states().items():
        np.testing.assert_allclose(step.states()[name], array, atol=1e-4, err_msg=name)


def test_interleaved_steps_give_the_bits_that_a_step_alone_gives(session: Session) -> None:
    def outputs(of: int, others: int) -> list[bytes]:
        rngs = [np.random.default_rng(seed) for seed in range(others + 1)]
        steps = [session.step() for _ in rngs]
        collected = []
        for _ in range(20):
            for index, (rng, step) in enumerate(zip(rngs, steps, strict=True)):
                fill(rng, step)
                step.run()
                if index == of:
                    collected.append(step.outputs["log_probs"].tobytes())
        return collected

    assert outputs(0, others=0) == outputs(0, others=2)


def test_reset_after_any_number_of_steps_is_a_fresh_step(session: Session) -> None:
    fresh, used = session.step(), session.step()
    for runs in (1, 2):  # both parities of the state buffers
        for _ in range(runs):
            fill(np.random.default_rng(runs), used)
            used.run()
        used.reset()
        assert all(not array.any() for array in used.states().values())
        for step in (fresh, used):
            fill(np.random.default_rng(9), step)
            step.run()
        assert fresh.outputs["log_probs"].tobytes() == used.outputs["log_probs"].tobytes()
        fresh.reset()
        used.reset()


def test_states_start_at_the_initial_value_of_the_spec(tiny_file: Files) -> None:
    spec = tiny_spec()
    graph = replace(spec.graphs[0], states=tuple(replace(state, initial=0.5) for state in spec.graphs[0].states))
    with open_session("onnxruntime", {"main": tiny_file("onnxruntime")}, replace(spec, graphs=(graph,))) as session:
        step = session.step()
        step.run()
        step.reset()
        assert all((array == 0.5).all() for array in step.states().values())


def test_run_leaves_steps_alone_and_returns_arrays_of_its_own(
    session: Session, random_inputs: dict[str, np.ndarray]
) -> None:
    step = session.step()
    fill(np.random.default_rng(1), step)
    step.run()
    before = {name: array.tobytes() for name, array in step.states().items()}
    first = session.run(random_inputs)
    kept = {name: array.copy() for name, array in first.items()}
    second = session.run({name: array + 1 for name, array in random_inputs.items()})
    assert {name: array.tobytes() for name, array in step.states().items()} == before
    for name, array in kept.items():
        np.testing.assert_array_equal(first[name], array)
        assert not np.array_equal(second[name], array), name


def test_states_are_copies(session: Session) -> None:
    step = session.step()
    states = step.states()
    for array in states.values():
        array.fill(7.0)
    assert all(not array.any() for array in step.states().values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feats": None}, "graph 'main' needs input 'feats'; given: att_bias"),
        ({"feat": np.zeros(1)}, "no input 'feat', did you mean 'feats'"),
        ({"feats": np.zeros((1, 4, 6), np.float32)}, r"'feats' must have shape \(1, 5, 6\), got \(1, 4, 6\)"),
        ({"feats": np.zeros((1, 5, 6), np.float64)}, "'feats' must be float32, got float64"),
        ({"key_cache": np.zeros((1, 4, 6), np.int64)}, "'key_cache' must be float32, got int64"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(
    session: Session, random_inputs: dict[str, np.ndarray], change: dict[str, np.ndarray | None], message: str
) -> None:
    inputs = {name: array for name, array in (random_inputs | change).items() if array is not None}
    with pytest.raises(InputError, match=message):
        session.run(inputs)


def test_unknown_graph_is_refused_with_the_known_ones(session: Session) -> None:
    with pytest.raises(InputError, match="no graph 'decoder'; it has main"):
        session.step("decoder")


def test_two_graphs_of_a_session_keep_apart(tiny_file: Files, random_inputs: dict[str, np.ndarray]) -> None:
    spec = tiny_spec()
    both = replace(spec, graphs=(spec.graphs[0], replace(spec.graphs[0], name="second")))
    with open_session("onnxruntime", {"main": tiny_file("fp16"), "second": tiny_file("onnxruntime")}, both) as session:
        exact = numpy_step(tiny_weights(), random_inputs)["log_probs"]
        half, full = (session.run(random_inputs, graph)["log_probs"] for graph in ("main", "second"))
    assert 1e-5 < np.abs(half - exact).max() < 5e-2
    assert np.abs(full - exact).max() < 1e-5


def test_session_tells_engine_version_and_load_time(session: Session) -> None:
    modules = {"openvino": "openvino", "litert": "ai-edge-litert", "onnxruntime": "onnxruntime"}
    assert metadata.version(modules[session.backend]).startswith(session.engine_version)
    assert 0 < session.load_ms < 60_000
    assert session.threads == 1


def test_fp32_model_executes_float32_only(session: Session) -> None:
    census = session.executed()
    assert sum(sum(kinds.values()) for kinds in census.values()) >= 8
    partitions = census.pop("DELEGATE", None)
    assert (partitions is not None) == (session.backend == "litert")
    assert {dtype for kinds in census.values() for dtype in kinds} == {"float32"}


def test_layer_times_are_positive_and_of_the_size_of_a_run(
    session: Session, random_inputs: dict[str, np.ndarray]
) -> None:
    layers = session.layers(random_inputs, 5)
    if session.backend == "litert":
        assert layers is None
        return
    assert layers is not None
    assert len(layers) >= 8
    assert all(layer.microseconds >= 0 and layer.name and layer.type for layer in layers)
    assert 0 < sum(layer.microseconds for layer in layers) < 1e6


@pytest.mark.parametrize("backend", ENGINES)
def test_two_threads_compute_the_same(backend: str, tiny_file: Files, random_inputs: dict[str, np.ndarray]) -> None:
    with open_session(backend, {"main": tiny_file(backend)}, tiny_spec(), threads=2) as session:
        result = session.run(random_inputs)["log_probs"]
        assert session.threads == 2
    np.testing.assert_allclose(result, numpy_step(tiny_weights(), random_inputs)["log_probs"], atol=1e-5)


def test_closing_twice_is_fine(tiny_file: Files) -> None:
    session = open_session("onnxruntime", {"main": tiny_file("onnxruntime")}, tiny_spec())
    session.close()
    session.close()


def test_float16_onnx_runs_on_the_cpu_as_substitute_for_tensorrt(
    tiny_file: Files, random_inputs: dict[str, np.ndarray]
) -> None:
    with open_session("onnxruntime", {"main": tiny_file("fp16")}, tiny_spec()) as session:
        results, census = session.run(random_inputs), session.executed()
    for name, array in numpy_step(tiny_weights(), random_inputs).items():
        noise = np.square(results[name] - array).sum()
        assert 10 * np.log10(np.square(array).sum() / noise) >= 50, name
    assert any("float16" in kinds for kinds in census.values())


def test_qdq_onnx_executes_int8_on_the_cpu(tmp_path: Path) -> None:
    path, spec, weights = write_qdq(tmp_path / "main.onnx")
    x = np.random.default_rng(5).uniform(-1, 1, (4, 32)).astype(np.float32)
    with open_session("onnxruntime", {"main": path}, spec) as session:
        result, census = session.run({"x": x})["y"], session.executed()
    np.testing.assert_allclose(result, x @ weights, atol=0.1)  # 32 products, steps of 1/127 and 1/63
    assert any("int8" in kinds for kinds in census.values())


def test_int8_weights_are_counted_as_int8_on_openvino(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    path, spec, _ = write_qdq(tmp_path / "main.onnx")
    openvino.save_model(openvino.Core().read_model(str(path)), str(tmp_path / "main.xml"))
    with open_session("openvino", {"main": tmp_path / "main.xml"}, spec) as session:
        census = session.executed()
    assert {"int8", "uint8"} & set(census["FullyConnected"]), census


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_damaged_model_file_is_one_clear_error(backend: str, damage: str, tiny_file: Files, tmp_path: Path) -> None:
    source = tiny_file(backend)
    data = source.read_bytes()
    broken = tmp_path / source.name
    broken.write_bytes({"truncated": data[: len(data) // 2], "garbage": b"not a model" * 50, "empty": b""}[damage])
    if backend == "openvino":
        broken.with_suffix(".bin").write_bytes(source.with_suffix(".bin").read_bytes())
    with pytest.raises(BundleError, match=f"{broken}: .* cannot load it, it is damaged or not its format") as caught:
        open_session(backend, {"main": broken}, tiny_spec())
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_openvino_weights_cut_short_are_refused(tiny_file: Files, tmp_path: Path) -> None:
    source = tiny_file("openvino")
    (tmp_path / "main.xml").write_bytes(source.read_bytes())
    (tmp_path / "main.bin").write_bytes(source.with_suffix(".bin").read_bytes()[:-16])
    with pytest.raises(BundleError, match="OpenVINO cannot load it"):
        open_session("openvino", {"main": tmp_path / "main.xml"}, tiny_spec())


@pytest.mark.parametrize("backend", ENGINES)
def test_missing_model_file_is_refused(backend: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such model file"):
        open_session(backend, {"main": tmp_path / "none"}, tiny_spec())


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: replace(g, inputs=(*g.inputs, TensorSpec("more", "float32", (1,)))), "has no input 'more'"),
        (lambda g: replace(g, outputs=(TensorSpec("scores", "float32", (1, 2, 4)),)), "has no output 'scores'"),
        (lambda g: replace(g, inputs=g.inputs[:1]), "takes an input 'att_bias' that the spec does not have"),
        (lambda g: replace(g, states=(replace(g.states[0], shape=(1, 8, 6)), g.states[1])), r"float32\[1, 4, 6\]"),
        (lambda g: replace(g, outputs=(replace(g.outputs[0], dtype="float16"),)), r"the spec says float16\[1, 2, 4\]"),
    ],
)
def test_file_that_is_not_what_the_spec_says_is_refused(
    backend: str, change: Callable[[GraphSpec], GraphSpec], message: str, tiny_file: Files
) -> None:
    spec = tiny_spec()
    other = replace(spec, graphs=(change(spec.graphs[0]),), stream=None)
    with pytest.raises(BundleError, match=message):
        open_session(backend, {"main": tiny_file(backend)}, other)


def test_engine_that_fails_while_running_is_one_clear_error(tmp_path: Path) -> None:
    spec = ModelSpec(
        "gather",
        "test",
        (GraphSpec("main", (TensorSpec("index", "int64", (1,)),), (TensorSpec("y", "float32", (1,)),)),),
    )
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    table = helper.make_tensor("table", onnx.TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "index"], ["y"])],
        "g",
        [helper.make_tensor_value_info("index", onnx.TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
        [table],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "g.onnx")
    with open_session("onnxruntime", {"main": tmp_path / "g.onnx"}, spec) as session:
        assert session.run({"index": np.array([2])})["y"] == [3.0]
        with pytest.raises(UnsupportedError, match="ONNX Runtime failed while running graph 'main'"):
            session.run({"index": np.array([7])})


def test_unknown_backend_is_refused_with_a_near_miss(tiny_file: Files) -> None:
    with pytest.raises(InputError, match="did you mean 'openvino'"):
        open_session("openvin", {"main": tiny_file("onnxruntime")}, tiny_spec())


def test_no_threads_and_no_file_for_a_graph_are_refused(tiny_file: Files) -> None:
    with pytest.raises(InputError, match="threads must be at least 1, got 0"):
        open_session("onnxruntime", {"main": tiny_file("onnxruntime")}, tiny_spec(), threads=0)
    with pytest.raises(InputError, match="no model file for graph 'main'; given: other"):
        open_session("onnxruntime", {"other": tiny_file("onnxruntime")}, tiny_spec())


@pytest.mark.parametrize(
    ("backend", "command"),
    [
        ("openvino", "pip install openvino"),
        ("litert", "pip install ai-edge-litert"),
        ("onnxruntime", "pip install onnxruntime"),
    ],
)
def test_missing_engine_names_the_command(
    backend: str, command: str, tiny_file: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny_file(backend)
    for module in ROWS[backend].modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=command):
        open_session(backend, {"main": file}, tiny_spec())
    assert next(status for status in backends() if status.name == backend).module is None


def test_backends_tells_what_is_installed_without_importing_it() -> None:
    code = (
        "import sys; from edgeattn.runtimes import backends; found = backends();"
        "print(*(f'{b.name}={b.version}' for b in found if b.module));"
        "assert not {'openvino', 'onnxruntime', 'ai_edge_litert', 'tensorrt'} & set(sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"onnxruntime={metadata.version('onnxruntime')}" in printed.split()


def test_importing_runtimes_loads_numpy_and_nothing_heavier() -> None:
    code = "import sys, edgeattn.runtimes; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "ai_edge_litert", "tflite_runtime", "tensorrt", "tensorrt_rtx"}
    assert "numpy" in loaded
    assert not loaded & (heavy | {"zipfile", "tempfile", "getpass", "typer", "rich", "wave", "asyncio"})


def test_loading_imports_one_engine_only(tiny_file: Files) -> None:
    graph = json.dumps(to_json(tiny_spec().graphs[0]))
    code = (
        "import sys, json, pathlib; from edgeattn.runtimes import open_session; from edgeattn import spec;"
        f"graph = spec.from_json(spec.GraphSpec, json.loads({graph!r}));"
        f"path = pathlib.Path({str(tiny_file('onnxruntime'))!r});"
        "open_session('onnxruntime', {'main': path}, spec.ModelSpec('tiny', 'asr', (graph,))).close();"
        "assert 'onnxruntime' in sys.modules;"
        "assert not {'torch', 'onnx', 'openvino', 'ai_edge_litert', 'tensorrt'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_openvino_leaves_no_telemetry_behind(tiny_file: Files, tmp_path: Path) -> None:
    graph = json.dumps(to_json(tiny_spec().graphs[0]))
    code = (
        "import json, pathlib; from edgeattn.runtimes import open_session; from edgeattn import spec;"
        f"graph = spec.from_json(spec.GraphSpec, json.loads({graph!r}));"
        f"path = pathlib.Path({str(tiny_file('openvino'))!r});"
        "open_session('openvino', {'main': path}, spec.ModelSpec('tiny', 'asr', (graph,))).close();"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*")) == []  # its client id would lie in intel/ here


def test_dynamic_sizes_in_the_file_are_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(write_onnx(tmp_path / "main.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, tmp_path / "main.onnx")
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(BundleError, match=r"'feats' is float32\[-1, 5, 6\]"):
            open_session(backend, {"main": tmp_path / "main.onnx"}, tiny_spec())


def test_state_named_like_another_of_its_shape_is_carried_to_itself(session: Session) -> None:
    graph = session.spec.graphs[0]
    assert graph.states[0] == StateSpec("value_cache", "next_value_cache", (1, 4, 6))
    step, oracle = session.step(), NumpyStep.new()
    fill(np.random.default_rng(2), step, oracle)
    step.run()
    oracle.run()
    for name, array in oracle.states().items():
        np.testing.assert_allclose(step.states()[name], array, atol=1e-5, err_msg=name)
