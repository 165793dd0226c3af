"""The session on TensorRT: what it binds, captures and keeps, on simulators of TensorRT and of the CUDA runtime."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgeattn.runtimes.cuda
import edgeattn.runtimes.tensorrt
from edgeattn.errors import ConversionError, UnsupportedError
from edgeattn.runtimes import Session, open_session
from edgeattn.runtimes.engine_cache import HEAD_BYTES, engine_cache, fetch, store
from edgeattn.runtimes.tensorrt_build import BuildRecipe, recipe_to_build
from edgeattn.spec import GraphSpec, ModelSpec, TensorSpec
from tests.runtimes.cudart import build_simulator
from tests.runtimes.simulated_tensorrt import SCRATCH, STREAMED, onnxruntime_network, simulated_tensorrt
from tests.runtimes.test_sharing import wrong_calls
from tests.runtimes.tiny import NumpyStep, fill, tiny_spec, write_onnx, write_qdq

VERSIONS = ("8.6.2", "10.3.0", "11.0.0")


@dataclass
class Board:
    """A board with TensorRT on it, as far as simulators go."""

    cudart: ctypes.CDLL
    model: Path
    patch: pytest.MonkeyPatch

    def install(self, version: str = "10.3.0", **options: Any) -> Any:
        module = simulated_tensorrt(version, self.cudart, onnxruntime_network(self.cudart), **options)
        self.patch.setitem(sys.modules, "tensorrt", module)
        return module

    def open(self, recipe: BuildRecipe = BuildRecipe()) -> Session:  # noqa: B008 - frozen
        return open_session("tensorrt", {"main": self.model}, tiny_spec(), build=recipe_to_build(recipe))

    @property
    def live(self) -> int:
        """Memory, streams, events and graphs that were not given back."""
        gc.collect()
        return int(self.cudart.simulatedLive())

    @property
    def launches(self) -> int:
        """Captured graphs that were started."""
        return int(self.cudart.simulatedLaunches())


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_simulator(tmp_path_factory.mktemp("cudart"))


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime", reason="evaluates the tiny model")
    pytest.importorskip("onnx", reason="writes the tiny model")
    return write_onnx(tmp_path_factory.mktemp("tiny") / "main.onnx")


@pytest.fixture
def board(simulator: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setattr(edgeattn.runtimes.cuda, "LIBRARIES", (str(simulator),))
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path / "cache"))
    return Board(ctypes.CDLL(str(simulator)), tiny_model, monkeypatch)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stream_of_steps_is_that_of_the_oracle_and_all_is_given_back(board: Board, version: str) -> None:
    board.install(version)
    before, launched = board.live, board.launches
    rng, oracle = np.random.default_rng(1), NumpyStep.new()
    with board.open() as session:
        step = session.step()
        for _ in range(9):
            fill(rng, step, oracle)
            step.run()
            oracle.run()
            np.testing.assert_allclose(step.outputs["log_probs"], oracle.outputs["log_probs"], atol=1e-5)
        for name, state in step.states().items():
            np.testing.assert_allclose(state, oracle.states()[name], atol=1e-5)
        assert session.engine_version == version
        del step
    del session
    assert board.launches - launched == 7  # the first run of either direction is a plain one
    assert board.live == before


def test_a_step_that_is_captured_gives_what_plain_runs_give(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    results = []
    for capturable in (True, False):
        board.install(capturable=capturable)
        launched = board.launches
        rng = np.random.default_rng(2)
        with board.open() as session, caplog.at_level(logging.INFO):
            step = session.step()
            collected = []
            for _ in range(8):
                fill(rng, step)
                step.run()
                collected.append(step.outputs["log_probs"].copy())
            results.append((np.stack(collected), step.states()))
        assert board.launches - launched == (6 if capturable else 0)
    np.testing.assert_array_equal(results[0][0], results[1][0])
    for name, state in results[0][1].items():
        np.testing.assert_array_equal(state, results[1][1][name])
    told = [record.message for record in caplog.records if "without a CUDA graph" in record.message]
    assert len(told) == 1  # once, not at every run
    assert "graph 'main' runs without a CUDA graph: " in told[0]


def test_states_can_be_set_and_reset_between_captured_runs(board: Board) -> None:
    board.install()
    rng, oracle = np.random.default_rng(3), NumpyStep.new()
    with board.open() as session:
        step = session.step()
        for round_ in range(4):
            for _ in range(3):
                fill(rng, step, oracle)
                step.run()
                oracle.run()
                np.testing.assert_allclose(step.outputs["log_probs"], oracle.outputs["log_probs"], atol=1e-5)
            step.reset()
            oracle.reset()
            assert not any(state.any() for state in step.states().values()), round_


@pytest.mark.slow
@given(st.lists(st.sampled_from(["run", "run", "run", "reset", "set", "look"]), min_size=1, max_size=25))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_course_of_runs_and_states_is_that_of_the_oracle(board: Board, course: list[str]) -> None:
    board.install()
    rng, oracle = np.random.default_rng(len(course)), NumpyStep.new()
    with board.open() as session:
        step = session.step()
        for what in course:
            if what == "run":
                fill(rng, step, oracle)
                step.run()
                oracle.run()
                np.testing.assert_allclose(step.outputs["log_probs"], oracle.outputs["log_probs"], atol=1e-4)
            elif what == "reset":
                step.reset()
                oracle.reset()
            elif what == "set":
                values = {name: rng.standard_normal(state.shape) for name, state in oracle.states().items()}
                step.set_states(values)
                oracle._states = {name: value.astype(np.float32) for name, value in values.items()}
            for name, state in step.states().items():
                np.testing.assert_allclose(state, oracle.states()[name], atol=1e-4)


def test_a_graph_without_states_is_captured_once(board: Board, tmp_path: Path) -> None:
    path, spec, weights = write_qdq(tmp_path / "linear.onnx")
    board.install("11.0.0")
    before, launched = board.live, board.launches
    with open_session("tensorrt", {"main": path}, spec, build=recipe_to_build(BuildRecipe("int8"))) as session:
        step = session.step()
        for index in range(5):
            step.inputs["x"][:] = np.random.default_rng(index).uniform(-1, 1, (4, 32))
            step.run()
            np.testing.assert_allclose(step.outputs["y"], step.inputs["x"] @ weights, atol=0.3)
        assert session.engine_bytes == SCRATCH + STREAMED
        del step
    del session
    assert board.launches - launched == 4
    assert board.live == before


def test_an_output_named_like_an_input_is_bound_apart(board: Board, tmp_path: Path) -> None:
    value = [onnx.helper.make_tensor_value_info(name, 1, [3]) for name in ("x", "x_out")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["x_out"])], "g", value[:1], value[1:])
    onnx.save(
        onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]),
        tmp_path / "main.onnx",
    )
    tensors = (TensorSpec("x", "float32", (3,)),)
    spec = ModelSpec("negative", "any", (GraphSpec("main", tensors, tensors),))
    board.install("11.0.0")
    build = recipe_to_build(BuildRecipe("fp32"))
    with open_session("tensorrt", {"main": tmp_path / "main.onnx"}, spec, build=build) as session:
        np.testing.assert_array_equal(session.run({"x": np.arange(3, dtype=np.float32)})["x"], [0.0, -1.0, -2.0])


def test_steps_of_one_session_are_independent(board: Board) -> None:
    board.install()
    rng, oracles = np.random.default_rng(4), (NumpyStep.new(), NumpyStep.new())
    with board.open() as session:
        steps = (session.step(), session.step())
        for turn in (0, 0, 1, 0, 1, 1, 1, 0, 0, 1):
            fill(rng, steps[turn], oracles[turn])
            steps[turn].run()
            oracles[turn].run()
            expected = oracles[turn].outputs["log_probs"]
            np.testing.assert_allclose(steps[turn].outputs["log_probs"], expected, atol=1e-5)


def test_run_gives_outputs_and_next_states_in_arrays_of_their_own(board: Board) -> None:
    board.install()
    rng = np.random.default_rng(5)
    with board.open() as session, open_session("onnxruntime", {"main": board.model}, tiny_spec()) as reference:
        first: dict[str, np.ndarray] = {}
        for _ in range(5):
            inputs = {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in tiny_spec().graphs[0].all_inputs}
            given, expected = session.run(inputs), reference.run(inputs)
            first = first or given
            assert given.keys() == expected.keys()
            for name, array in given.items():
                np.testing.assert_allclose(array, expected[name], atol=1e-6)
        assert not np.array_equal(first["log_probs"], given["log_probs"])


def test_the_time_of_a_run_is_told_by_the_devices_clock(board: Board) -> None:
    board.install()
    with board.open() as session:
        step = session.step()
        told = [step.device_ms]
        for _ in range(4):  # plain and captured
            step.run()
            told.append(step.device_ms)
    assert told[0] is None
    assert all(milliseconds is not None and milliseconds > 0 for milliseconds in told[1:])


def test_an_engine_is_built_once_and_then_loaded(board: Board) -> None:
    module = board.install()
    for _ in range(3):
        board.open().close()
    assert len(module.configs) == 1
    assert len(list(engine_cache().glob("*.engine"))) == 1
    board.open(BuildRecipe(optimization_level=5)).close()
    assert len(module.configs) == 2


def test_an_engine_that_tensorrt_cannot_read_is_built_again(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    module = board.install()
    board.open().close()
    (engine,) = engine_cache().glob("*.engine")
    store(engine.name, b"another version\nof it")
    with caplog.at_level(logging.WARNING):
        board.open().close()
    assert "not readable by TensorRT 10.3.0, building it again" in caplog.text
    assert len(module.configs) == 2
    assert (fetch(engine.name) or b"").startswith(b"10.3.0\n")


def planted(engine: Path, _: Path) -> None:
    engine.write_bytes(b"10.3.0\nother network")


def swapped(engine: Path, _: Path) -> None:
    store("another.engine", b"10.3.0\nother network")
    engine.with_name("another.engine").replace(engine)


def cut_short(engine: Path, _: Path) -> None:
    engine.write_bytes(engine.read_bytes()[:-1])


def changed(engine: Path, _: Path) -> None:
    data = bytearray(engine.read_bytes())
    data[-1] ^= 1
    engine.write_bytes(data)


def open_file(engine: Path, _: Path) -> None:
    engine.chmod(0o666)


def open_folder(engine: Path, _: Path) -> None:
    engine.parent.chmod(0o777)


def open_parent(engine: Path, _: Path) -> None:
    engine.parent.parent.chmod(0o777)


def linked_file(engine: Path, elsewhere: Path) -> None:
    engine.rename(elsewhere / "engine")
    engine.symlink_to(elsewhere / "engine")


def linked_folder(engine: Path, elsewhere: Path) -> None:
    engine.parent.rename(elsewhere / "engines")
    engine.parent.symlink_to(elsewhere / "engines")


def pipe(engine: Path, _: Path) -> None:
    engine.unlink()
    os.mkfifo(engine)


FAULTS = [
    planted, swapped, cut_short, changed, open_file, open_folder, open_parent, linked_file, linked_folder, pipe,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_an_engine_that_others_could_have_exchanged_is_not_loaded(
    board: Board, tmp_path: Path, fault: Callable[[Path, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    module = board.install()
    board.open().close()
    (engine,) = engine_cache().glob("*.engine")
    (tmp_path / "elsewhere").mkdir()
    fault(engine, tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING):
        board.open().close()
    assert len(module.configs) == 2
    assert f"{engine}: not used, " in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another account")
@pytest.mark.parametrize("place", ["engine", "engines", "cache"])
def test_a_cache_of_another_account_is_not_used(board: Board, place: str, caplog: pytest.LogCaptureFixture) -> None:
    module = board.install()
    board.open().close()
    (engine,) = engine_cache().glob("*.engine")
    os.chown({"engine": engine, "engines": engine.parent, "cache": engine.parent.parent}[place], 12_345, 12_345)
    with caplog.at_level(logging.WARNING):
        board.open().close()
    assert len(module.configs) == 2
    assert "not used, " in caplog.text


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_the_cache_is_its_owners_alone_whatever_the_umask(board: Board, mask: int) -> None:
    module = board.install()
    before = os.umask(mask)
    try:
        for _ in range(2):
            board.open().close()
    finally:
        os.umask(before)
    assert len(module.configs) == 1
    cache = engine_cache()
    assert {cache.stat().st_mode & 0o777, cache.parent.stat().st_mode & 0o777} == {0o700}
    kept = list(cache.iterdir())
    assert {path.suffix for path in kept} == {".engine", ".timings"}
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}


def test_a_cache_that_was_open_to_a_group_is_closed_and_built_again(
    board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    module = board.install()
    engine_cache().mkdir(parents=True)
    engine_cache().chmod(0o775)
    board.open().close()
    assert engine_cache().stat().st_mode & 0o777 == 0o700
    board.open().close()
    assert len(module.configs) == 1


def test_external_weights_of_any_name_are_part_of_the_key(board: Board, tmp_path: Path) -> None:
    module = board.install()
    recipe = recipe_to_build(BuildRecipe())
    model = tmp_path / "m[1].onnx"
    model.write_bytes(board.model.read_bytes())
    for digest in ("1" * 64, "2" * 64, "1" * 64):
        files = {"m[1].onnx": "0" * 64, "some other name": digest}
        open_session("tensorrt", {"main": model}, tiny_spec(), build=recipe, files=files).close()
    assert len(module.configs) == 2


def test_threads_run_steps_of_one_session_on_streams_of_their_own(board: Board) -> None:
    board.install()
    before = board.live

    def wrong() -> list[int]:
        with board.open() as session, ThreadPoolExecutor(4) as pool:
            calls = pool.map(lambda number: wrong_calls(session, number, calls=100), range(4))
            steps = pool.map(lambda number: wrong_steps(session, number), range(4))
            return [*calls, *steps]

    assert wrong() == [0] * 8
    assert board.live == before


def wrong_steps(session: Session, seed: int) -> int:
    rng, step, oracle = np.random.default_rng(seed), session.step(), NumpyStep.new()
    wrong = 0
    for _ in range(60):
        fill(rng, step, oracle)
        step.run()
        oracle.run()
        wrong += bool(np.abs(step.outputs["log_probs"] - oracle.outputs["log_probs"]).max() > 1e-4)
    return wrong


def test_timings_of_one_build_serve_the_next(board: Board) -> None:
    module = board.install()
    board.open().close()
    assert module.timed == 1
    board.open(BuildRecipe(optimization_level=5)).close()
    assert len(module.configs) == 2
    assert module.timed == 1
    assert len(list(engine_cache().glob("*.timings"))) == 1


@pytest.mark.parametrize("damage", [b"\0\1garbage", b'{"version": "10.3.1", "known": []}'])
def test_timings_that_do_not_fit_are_replaced(board: Board, damage: bytes) -> None:
    module = board.install()
    board.open().close()
    (timings,) = engine_cache().glob("*.timings")
    good = timings.read_bytes()
    timings.write_bytes(damage)
    board.open(BuildRecipe(optimization_level=5)).close()
    assert module.timed == 2
    assert timings.read_bytes() == good


def test_another_version_has_timings_of_its_own(board: Board) -> None:
    for version in VERSIONS:
        board.install(version)
        board.open().close()
    assert len(list(engine_cache().glob("*.timings"))) == 3
    assert len(list(engine_cache().glob("*.engine"))) == 3


def test_a_cache_that_cannot_be_written_is_a_warning(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    board.install()
    engine_cache().parent.mkdir(parents=True)
    engine_cache().write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING), board.open() as session:
        session.step().run()
    assert caplog.text.count("it will be made again next time") == 2


def test_the_recipe_reaches_the_builder_as_its_version_has_it(board: Board) -> None:
    recipe = BuildRecipe("fp16", workspace_bytes=2**26, optimization_level=4, sparsity=True)
    flags = {}
    for version in VERSIONS:
        module = board.install(version)
        board.open(recipe).close()
        ((creation, config),) = module.configs
        flags[version] = (creation, {flag.name for flag in config.flags})
        assert config.limits == {module.MemoryPoolType.WORKSPACE: 2**26}
        assert config.builder_optimization_level == 4
    assert flags["8.6.2"] == (1 << 0, {"FP16", "SPARSE_WEIGHTS"})
    assert flags["10.3.0"] == (1 << 1, {"SPARSE_WEIGHTS"})
    assert flags["11.0.0"] == (1 << 1, {"SPARSE_WEIGHTS"})


def test_a_dla_is_used_where_there_is_one_with_the_gpu_for_the_rest(board: Board) -> None:
    typed = {}
    for version in VERSIONS:
        module = board.install(version, dla_cores=2)
        board.open(BuildRecipe("fp16", dla=True)).close()
        ((creation, config),) = module.configs
        assert config.default_device_type is module.DeviceType.DLA
        assert config.DLA_core == 0
        assert module.BuilderFlag.GPU_FALLBACK in config.flags
        typed[version] = (creation, "FP16" in {flag.name for flag in config.flags})
    assert typed == {"8.6.2": (1 << 0, True), "10.3.0": (1 << 0, True), "11.0.0": (1 << 1, False)}


def test_a_dla_that_is_not_there_is_refused(board: Board) -> None:
    board.install(dla_cores=0)
    with pytest.raises(UnsupportedError, match=r"asks for a DLA and tensorrt 10\.3\.0 finds none here"):
        board.open(BuildRecipe("fp16", dla=True))


def test_an_older_tensorrt_is_refused(board: Board) -> None:
    before = board.live
    board.install("8.5.2")
    with pytest.raises(UnsupportedError, match=r"TensorRT 8\.5\.2 is here, at least 8\.6 is needed.*JetPack 6"):
        board.open()
    assert board.live == before


def test_a_file_that_is_refused_leaves_nothing_behind(board: Board, tmp_path: Path) -> None:
    board.install()
    before = board.live
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(ConversionError, match=r"TensorRT 10\.3\.0 cannot parse the ONNX file"):
        open_session("tensorrt", {"main": tmp_path / "broken.onnx"}, tiny_spec(), build=recipe_to_build(BuildRecipe()))
    assert board.live == before
    assert not engine_cache().exists()


@pytest.mark.parametrize("version", VERSIONS)
def test_memory_of_the_engine_is_scratch_and_weights(board: Board, version: str) -> None:
    board.install(version)
    with board.open() as session:
        (engine,) = engine_cache().glob("*.engine")
        weights = STREAMED if version.startswith("11") else engine.stat().st_size - HEAD_BYTES
        assert session.engine_bytes == 2 * SCRATCH + weights  # of either direction of the states


def test_layers_and_their_times_come_from_the_engine(board: Board) -> None:
    board.install()
    inputs = {t.name: np.zeros(t.shape, np.float32) for t in tiny_spec().graphs[0].all_inputs}
    with board.open() as session:
        census, before, live = session.executed(), board.launches, board.live
        rows = session.layers(inputs, runs=3)
        assert board.launches == before  # a profiler sees nothing of a captured graph
        assert board.live == live
    assert census["MatMul"] == {"float32": 6}
    assert rows is not None
    assert len(rows) == sum(count for kinds in census.values() for count in kinds.values())
    assert {row.microseconds for row in rows} == {250.0}
