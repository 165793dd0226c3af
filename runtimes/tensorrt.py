"""TensorRT on a Jetson (or any NVIDIA GPU with the ``tensorrt`` package).

The bundle holds ONNX and a recipe: an engine is tied to the GPU and to TensorRT's version, so it is built on the device
at first use and cached. Only calls that TensorRT 8.6 to 11 share are used; see :mod:`edgeattn.runtimes.tensorrt_build`.
What differs when running is asked for by name: ``device_memory_size_v2`` (10.1 and later; 11 has it alone) and
``get_engine_stat`` (10.13 and later).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

import numpy as np

from edgeattn.engines import TENSORRT
from edgeattn.errors import (
    BundleError,
    ConversionError,
    DeviceError,
    UnsupportedError,
)
from edgeattn.runtimes.cuda import Cuda, CudaGraph
from edgeattn.runtimes.engine_cache import engine_cache, fetch, store
from edgeattn.runtimes.faults import run_failed
from edgeattn.runtimes.inputs import Arrays, Found, check_names
from edgeattn.runtimes.jetson import l4t_release, power_mode
from edgeattn.runtimes.session import Census, LayerTime, Session, count_op
from edgeattn.runtimes.step import EngineStep
from edgeattn.runtimes.tensorrt_build import BuildRecipe, build_engine, recipe_from_build
from edgeattn.spec import GraphSpec, ModelSpec, to_json

LOG = logging.getLogger(__name__)

OLDEST = (8, 6)
DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32", "INT8": "int8",
    "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip
FORMATS = {
    "int8": "int8", "fp16": "float16", "half": "float16", "bf16": "bfloat16", "bfloat16": "bfloat16", "fp32": "float32",
    "float": "float32", "int32": "int32", "int64": "int64", "bool": "bool", "fp8": "float8", "int4": "int4",
}  # fmt: skip
"""Words in the inspector's "Format/Datatype" that name a dtype ("Row major linear FP32" on 8.6, "Float" on 10)."""


@dataclass(frozen=True)
class Board:
    """What an engine, and the timings that it was chosen by, are tied to.

    Attributes:
        tensorrt: its version, in full.
        capability: compute capability of the GPU.
        multiprocessors: of the GPU.
        l4t: first line of /etc/nv_tegra_release, empty elsewhere: the kernels' driver comes with it.
        power_mode: of nvpmodel, empty where there is none: tactics are chosen by their time, and so by the clocks.
    """

    tensorrt: str
    capability: str
    multiprocessors: int
    l4t: str = ""
    power_mode: str = ""


def open_tensorrt(
    models: Mapping[str, Path],
    spec: ModelSpec,
    threads: int,
    build: Mapping[str, Any] | None,
    files: Mapping[str, str] | None = None,
) -> Session:
    """Find or build one engine per graph.

    Args:
        files: name -> sha256 of every file of a verified bundle; None for files that are no bundle yet.

    Raises:
        DeviceError: if this machine has no TensorRT or no GPU.
        ConversionError: if TensorRT refuses the ONNX file.
        UnsupportedError: for a TensorRT older than 8.6, or if the recipe asks for a DLA that is not here.
        BundleError: if there is no recipe, or the engine does not fit the spec.
    """
    recipe = recipe_from_build(build)
    trt, cuda = _device()
    try:
        started = time.perf_counter()
        mode = power_mode()
        board = Board(
            str(trt.__version__), cuda.capability, cuda.multiprocessors, l4t_release(), mode.name if mode else ""
        )
        logger = trt.Logger(trt.Logger.ERROR)
        runtime = trt.Runtime(logger)
        engines, engine_bytes = {}, 0
        for graph in spec.graphs:
            path = models[graph.name]
            engines[graph.name], plan_bytes = _engine(
                trt, board, runtime, path, recipe, files_beside(path) if files is None else files
            )
            engine_bytes += device_bytes(trt, engines[graph.name], plan_bytes, contexts(graph))
            inputs, outputs = _tensors(trt, engines[graph.name])
            check_names(path, graph, inputs, outputs, graph.stored_outputs)
        session = TensorRtSession(trt, cuda, (logger, runtime), engines, spec, threads)
    except BaseException:
        cuda.close()
        raise
    session.engine_bytes = engine_bytes
    session.load_ms = (time.perf_counter() - started) * 1e3
    return session


def _device() -> tuple[Any, Cuda]:
    missing = []
    if importlib.util.find_spec(TENSORRT.module) is None:
        missing.append("the Python package tensorrt is not installed (it comes with JetPack)")
    cuda = None
    try:
        cuda = Cuda()
    except DeviceError as error:
        missing.append(str(error))
    if missing or cuda is None:
        raise DeviceError(
            f"TensorRT cannot run here: {'; '.join(missing)}. Run this on the device, or replay the bundle's ONNX with "
            f'backend="{TENSORRT.substitute}"'
        )
    trt = TENSORRT.load()
    version = str(trt.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        cuda.close()
        raise UnsupportedError(
            f"TensorRT {version} is here, at least {OLDEST[0]}.{OLDEST[1]} is needed, as in JetPack 6; or replay the "
            f'bundle\'s ONNX with backend="{TENSORRT.substitute}"'
        )
    return trt, cuda


def _engine(
    trt: Any, board: Board, runtime: Any, onnx: Path, recipe: BuildRecipe, files: Mapping[str, str]
) -> tuple[Any, int]:
    """The engine, and the bytes of its plan."""
    cached = f"{engine_key(onnx, files, recipe, board)}.engine"
    plan = fetch(cached)
    if plan is not None:
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is not None:
            return engine, len(plan)
        LOG.warning("%s: not readable by TensorRT %s, building it again", engine_cache() / cached, trt.__version__)
    LOG.info("building a TensorRT engine for %s, once for this device; this takes a while", onnx.name)
    timings = f"{timing_key(board)}.timings"
    outcome = build_engine(trt, onnx, recipe, timings=fetch(timings) or b"")
    if outcome.engine is None:
        raise ConversionError(f"{onnx}: {outcome.failure}")
    store(cached, outcome.engine)
    if outcome.timings:
        store(timings, outcome.timings)
    engine = runtime.deserialize_cuda_engine(outcome.engine)
    if engine is None:
        raise BundleError(f"{onnx}: TensorRT {trt.__version__} cannot load the engine that it just built")
    return engine, len(outcome.engine)


def contexts(graph: GraphSpec) -> int:
    """Execution contexts of one step: one for each direction in which its states go.

    A captured run keeps what its context was given, so a context serves one graph of CUDA alone (Developer Guide, CUDA
    Graphs). They take turns, and each has scratch memory of its own.
    """
    return 2 if graph.states else 1


def device_bytes(trt: Any, engine: Any, plan_bytes: int, contexts: int) -> int:
    """Memory that an engine takes: its weights, and the scratch memory of that many execution contexts.

    Args:
        plan_bytes: of the serialized engine, which stand for the weights where TensorRT does not tell those.
    """
    scratch = getattr(engine, "device_memory_size_v2", None)
    if scratch is None:
        scratch = engine.device_memory_size
    stats = getattr(trt, "EngineStat", None)
    weights = plan_bytes if stats is None else engine.get_engine_stat(stats.TOTAL_WEIGHTS_SIZE)
    return contexts * int(scratch) + int(weights)


def engine_key(onnx: Path, files: Mapping[str, str], recipe: BuildRecipe, board: Board) -> str:
    """Name of an engine in the cache: a sha256 over all that decides whether it can run and is the right one.

    Args:
        onnx: the file that the engine is built from.
        files: name -> sha256 of all that it may read, itself and external weights of whatever name included: every
            file of the bundle, or :func:`files_beside`.
        recipe: that it is built by.
        board: that it is built on.
    """
    facts = {"onnx": onnx.name, "files": dict(files), "recipe": to_json(recipe), "board": asdict(board)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def files_beside(onnx: Path) -> dict[str, str]:
    """Name -> sha256 of an ONNX file and of the files below its directory whose names it holds.

    External weights can lie in a file of any name, and ONNX stores that name as it is; so what is not named in its
    bytes is not read by it, and nothing else of a large directory is hashed.
    """
    from edgeattn.guards.blocks import sha256_of

    content = onnx.read_bytes()
    named = (p for p in onnx.parent.rglob("*") if p.name.encode("utf-8", "surrogateescape") in content and p.is_file())
    hashes = {}
    for path in {onnx, *named}:
        with path.open("rb") as file:
            hashes[path.relative_to(onnx.parent).as_posix()] = sha256_of(file)
    return hashes


def timing_key(board: Board) -> str:
    """Name of the cache of tactics' times, which all engines of a board share."""
    return hashlib.sha256(json.dumps(asdict(board), sort_keys=True).encode()).hexdigest()


def _tensors(trt: Any, engine: Any) -> tuple[Found, Found]:
    inputs: Found = {}
    outputs: Found = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype = engine.get_tensor_dtype(name).name
        found = (DTYPES.get(dtype, dtype), tuple(engine.get_tensor_shape(name)))
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs)[name] = found
    return inputs, outputs


@final
class _TensorRtStep(EngineStep):
    """States ping-pong between two sets of device memory; only the other inputs and outputs cross the bus.

    An execution context reads one set and writes the other, and a second one the other way round.

    Copies and kernels of a run are captured as a CUDA graph, one for each direction, and launched as one from then on.
    TensorRT wants a plain run before a capture (Developer Guide, CUDA Graphs); an engine that cannot be captured (a
    loop, a DLA) goes on with plain runs.

    Each step has a stream of its own, so that several threads may each run one: a capture would else swallow what
    another thread starts meanwhile. Contexts of one engine may run at once on streams of their own (Developer Guide,
    Threading).
    """

    def __init__(self, engine: Any, graph: GraphSpec, capture: bool = True) -> None:
        super().__init__(graph)
        self._cuda = cuda = Cuda()
        self._contexts = [engine.create_execution_context() for _ in range(contexts(graph))]
        if None in self._contexts:
            cuda.close()
            raise DeviceError("TensorRT cannot create an execution context: most likely the GPU's memory is full")
        self.inputs = MappingProxyType({t.name: cuda.pinned_array(t.shape, t.dtype) for t in graph.inputs})
        self.outputs = MappingProxyType({t.name: cuda.pinned_array(t.shape, t.dtype) for t in graph.outputs})
        self._stored = graph.stored_outputs
        self._addresses = {t.name: cuda.device_memory(t.nbytes) for t in graph.inputs}
        self._addresses |= {self._stored[t.name]: cuda.device_memory(t.nbytes) for t in graph.outputs}
        self._states = [{s.input: cuda.device_memory(s.nbytes) for s in graph.states} for _ in self._contexts]
        self._staging = {s.input: cuda.pinned_array(s.shape, s.dtype) for s in graph.states}
        self._parity = 0  # of the context that runs next, and of the states that it reads
        self._began, self._ended = cuda.event(), cuda.event()
        self._capture = capture
        self._captured: list[CudaGraph | None] = [None for _ in self._contexts]
        for context, read, write in zip(self._contexts, self._states, reversed(self._states), strict=True):
            for name, address in self._addresses.items():
                context.set_tensor_address(name, address)
            for state in graph.states:
                context.set_tensor_address(state.input, read[state.input])
                context.set_tensor_address(self._stored[state.output], write[state.input])
        self.reset()

    def advance(self) -> None:
        """See :class:`~edgeattn.runtimes.session.EngineStep`."""
        captured = self._captured[self._parity]
        self._cuda.record(self._began)
        if captured is None:
            self._start()
        else:
            self._cuda.launch(captured)
        self._cuda.record(self._ended)
        self._cuda.synchronize()
        self.device_ms = self._cuda.elapsed_ms(self._began, self._ended)
        if captured is None and self._capture:
            self._capture_graph()
        self._parity = (self._parity + 1) % len(self._contexts)

    def _start(self) -> None:
        for name, array in self.inputs.items():
            self._cuda.upload(self._addresses[name], array)
        if not self._contexts[self._parity].execute_async_v3(self._cuda.stream):
            raise run_failed(TENSORRT.title, self.graph, RuntimeError("execute_async_v3 returned false"))
        for name, array in self.outputs.items():
            self._cuda.download(array, self._addresses[self._stored[name]])

    def _capture_graph(self) -> None:
        try:
            with self._cuda.capturing() as captured:
                self._start()
        except (DeviceError, UnsupportedError) as error:
            self._capture = False
            LOG.info("graph %r runs without a CUDA graph: %s", self.graph.name, error)
        else:
            self._captured[self._parity] = captured

    def clear_states(self) -> None:
        """See :class:`~edgeattn.runtimes.session.EngineStep`."""
        self.write_states(self.graph.initial_states())

    def read_states(self) -> Arrays:
        """See :class:`~edgeattn.runtimes.session.EngineStep`."""
        for name, array in self._staging.items():
            self._cuda.download(array, self._states[self._parity][name])
        self._cuda.synchronize()
        return {name: array.copy() for name, array in self._staging.items()}

    def write_states(self, values: Mapping[str, np.ndarray]) -> None:
        """See :class:`~edgeattn.runtimes.session.EngineStep`."""
        for name, array in self._staging.items():
            np.copyto(array, values[name])
            self._cuda.upload(self._states[self._parity][name], array)
        self._cuda.synchronize()

    def run_profiled(self, profiler: Any) -> None:
        """Run once with a TensorRT profiler attached; it sees plain runs alone, not those of a CUDA graph."""
        self._contexts[self._parity].profiler = profiler
        self.run()

    def free(self) -> None:
        """See :class:`~edgeattn.runtimes.session.EngineStep`."""
        for captured in self._captured:
            if captured is not None:
                self._cuda.drop(captured)
        for event in (self._began, self._ended):
            self._cuda.forget(event)
        self._contexts.clear()
        self._cuda.free([*self._addresses.values(), *(a for states in self._states for a in states.values())])
        self._cuda.close()


@final
class TensorRtSession(Session):
    """See :class:`~edgeattn.runtimes.session.Session`; ``threads`` means nothing on a GPU."""

    backend = TENSORRT.name

    def __init__(
        self, trt: Any, cuda: Cuda, alive: tuple[Any, ...], engines: Mapping[str, Any], spec: ModelSpec, threads: int
    ) -> None:
        super().__init__(spec, str(trt.__version__), threads)
        self._trt, self._cuda, self._alive = trt, cuda, alive
        self._engines = dict(engines)
        self._kept: list[EngineStep] = []  # until the end: nothing else gives the device's memory back

    def new_step(self, graph: GraphSpec) -> EngineStep:
        """See :class:`~edgeattn.runtimes.session.Session`."""
        step = _TensorRtStep(self._engines[graph.name], graph)
        self._kept.append(step)
        return step

    def census(self) -> Census:
        """Layers of the built engines with the dtype that each gives, from TensorRT's inspector."""
        census: Census = {}
        for engine in self._engines.values():
            text = engine.create_engine_inspector().get_engine_information(self._trt.LayerInformationFormat.JSON)
            for kind, dtypes in inspected_layers(text):
                count_op(census, kind, dtypes)
        return census

    def layer_times(self, inputs: Arrays, runs: int, graph: GraphSpec) -> tuple[LayerTime, ...] | None:
        """Times of the engine's layers, from TensorRT's profiler."""
        totals: dict[str, float] = {}
        profiler = _profiler(self._trt, totals)
        step = _TensorRtStep(self._engines[graph.name], graph, capture=False)
        try:
            for _ in range(runs):
                for tensor in graph.inputs:
                    np.copyto(step.inputs[tensor.name], inputs[tensor.name])
                step.set_states(inputs)
                step.run_profiled(profiler)
        finally:
            step.free()
        return tuple(LayerTime(name, "layer", total * 1e3 / runs) for name, total in totals.items())

    def release(self) -> None:
        """See :class:`~edgeattn.runtimes.session.Session`."""
        self._kept.clear()
        self._engines.clear()
        self._cuda.close()


def _profiler(trt: Any, totals: dict[str, float]) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]  # the base class is only known at run time
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # pybind11 refuses super() here

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            totals[layer_name] = totals.get(layer_name, 0.0) + ms

    return Profiler()


def inspected_layers(text: str) -> list[tuple[str, list[str]]]:
    """Layer type and dtypes of its outputs, from the JSON that TensorRT's engine inspector gives.

    A layer is a plain name where the engine was built without detailed verbosity; it then has type "layer".
    """
    found: list[tuple[str, list[str]]] = []
    for layer in json.loads(text).get("Layers", ()):
        if isinstance(layer, str):
            found.append(("layer", []))
            continue
        words = [word for out in layer.get("Outputs", ()) for word in _words(str(out.get("Format/Datatype", "")))]
        found.append((str(layer.get("LayerType", "layer")), [FORMATS[word] for word in words if word in FORMATS]))
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+[0-9]*", text.lower())
