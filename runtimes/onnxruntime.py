"""ONNX Runtime on the CPU: the reference executor of every ONNX file, and the substitute for TensorRT."""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from edgeattn.engines import ONNXRUNTIME
from edgeattn.guards.scratch import scratch_directory
from edgeattn.runtimes.faults import loading, run_failed
from edgeattn.runtimes.inputs import Arrays, Found, check_names
from edgeattn.runtimes.session import Census, LayerTime, Session, count_op
from edgeattn.runtimes.step import EngineStep, HostStep
from edgeattn.spec import GraphSpec, ModelSpec

DTYPES = {"float": "float32", "double": "float64"}  # the others are called as numpy calls them


BROKEN_FUSIONS = ("MatMulScaleFusion", "MatmulTransposeFusion")
"""Optimizers of ONNX Runtime 1.31 that break graphs of its own. The first folds a scale into a product although others
read the scaled tensor too, and the graph is invalid then: softmax(x / s @ x^T) @ x with x scaled before. The second
ends the process (SIGSEGV) on a float16 GRU decoder whose attention is an Einsum."""


FLOAT_FUSIONS = ("MatMulAddFusion", "CommonSubexpressionElimination")
"""Optimizers of ONNX Runtime 1.31 that keep Q/DQ from becoming integer products. The first makes a product and its bias
a Gemm, which has no integer kernel with a float bias, so that weights are widened in every call: measured, four times
as slow as float32. The second merges the pairs of layers that read one activation, and on x86 only a pair with one
reader is made unsigned, as the kernels want it: query, key and value then compute in float. Its kernels for two signed
tensors (``session.qdqisint8allowed``) are no way out: half as fast."""

NO_LOG = 4  # fatal errors alone: the others are raised, and a log repeats names of a file as they are


def open_onnxruntime(models: Mapping[str, Path], spec: ModelSpec, threads: int) -> Session:
    """One inference session per graph."""
    ort = ONNXRUNTIME.load()
    ort.disable_telemetry_events()  # for a process that had imported it before us, with its telemetry on
    ort.set_default_logger_severity(NO_LOG)
    started = time.perf_counter()
    sessions = {graph.name: _session(ort, models[graph.name], graph, threads, None) for graph in spec.graphs}
    session = OnnxRuntimeSession(ort, sessions, models, spec, threads)
    session.load_ms = (time.perf_counter() - started) * 1e3
    return session


def _session(ort: Any, path: Path, graph: GraphSpec, threads: int, profile: Path | None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = NO_LOG
    disabled = [*BROKEN_FUSIONS, *(FLOAT_FUSIONS if path.is_file() and _holds_integers(path) else ())]
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    with loading(ONNXRUNTIME.title, path):
        session = ort.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=disabled,
            enable_fallback=0,  # to the same provider again, and told on stdout
        )
        inputs, outputs = _tensors(session.get_inputs()), _tensors(session.get_outputs())
        check_names(path, graph, inputs, outputs, graph.stored_outputs)
    return session


def _holds_integers(path: Path) -> bool:
    """Whether a file holds Q/DQ. Its bytes tell: a device has no onnx to parse them with."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False  # mmap takes no empty file
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(b"DequantizeLinear") >= 0


def _tensors(arguments: Any) -> Found:
    found: Found = {}
    for argument in arguments:
        dtype = argument.type.removeprefix("tensor(").removesuffix(")")
        found[argument.name] = (_dtype(dtype), tuple(size if isinstance(size, int) else -1 for size in argument.shape))
    return found


def _dtype(name: str) -> str:
    return DTYPES.get(name, name)


def _profile(ort: Any, path: Path, graph: GraphSpec, threads: int, inputs: Arrays, runs: int) -> list[dict[str, Any]]:
    """Events of the kernels that ran, from ONNX Runtime's own profiler: the optimised graph, without needing onnx."""
    with scratch_directory() as folder:
        session = _session(ort, path, graph, threads, folder / "profile")
        for _ in range(runs):
            session.run(None, inputs)
        with loading(ONNXRUNTIME.title, path):  # a node's name may be no text
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8", errors="replace"))
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]


@final
class _OnnxRuntimeStep(HostStep):
    def __init__(self, session: Any, graph: GraphSpec) -> None:
        super().__init__(graph)
        self._session: Any = session
        self._bindings: tuple[Any, ...] = tuple(self._binding(session, parity) for parity in (0, 1))

    def _binding(self, session: Any, parity: int) -> Any:
        binding = session.io_binding()
        inputs, outputs = self.bindings(parity)
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(
                self.graph.stored_outputs[name], "cpu", 0, array.dtype.type, array.shape, array.ctypes.data
            )
        return binding

    def infer(self) -> None:
        try:
            self._session.run_with_iobinding(self._bindings[self.parity])
        except Exception as error:  # its exceptions share no base but Exception
            raise run_failed(ONNXRUNTIME.title, self.graph, error) from error

    def free(self) -> None:
        """See :class:`~edgeattn.runtimes.session.EngineStep`."""
        self._session, self._bindings = None, ()


@final
class OnnxRuntimeSession(Session):
    """See :class:`~edgeattn.runtimes.session.Session`."""

    backend = ONNXRUNTIME.name

    def __init__(
        self, ort: Any, sessions: Mapping[str, Any], models: Mapping[str, Path], spec: ModelSpec, threads: int
    ) -> None:
        super().__init__(spec, str(ort.__version__), threads)
        self.parallel_runs = len(os.sched_getaffinity(0))  # its runs are independent, and take their turns nowhere
        self._ort, self._sessions, self._models = ort, dict(sessions), models

    def new_step(self, graph: GraphSpec) -> EngineStep:
        """See :class:`~edgeattn.runtimes.session.Session`."""
        return _OnnxRuntimeStep(self._sessions[graph.name], graph)

    def census(self) -> Census:
        """Kernels of the optimised graphs with the narrowest dtype that each reads, from one profiled run on zeros."""
        census: Census = {}
        for graph in self.spec.graphs:
            zeros = {t.name: np.zeros(t.shape, t.dtype) for t in graph.inputs} | graph.initial_states()
            for event in _profile(self._ort, self._models[graph.name], graph, self.threads, zeros, 1):
                read = [_dtype(name) for tensor in event["args"].get("input_type_shape", ()) for name in tensor]
                count_op(census, event["args"]["op_name"], read)
        return census

    def layer_times(self, inputs: Arrays, runs: int, graph: GraphSpec) -> tuple[LayerTime, ...] | None:
        """Times of the kernels, from a second session with profiling on."""
        totals: dict[tuple[str, str], float] = {}
        for event in _profile(self._ort, self._models[graph.name], graph, self.threads, inputs, runs):
            key = (event["name"].removesuffix("_kernel_time"), event["args"]["op_name"])
            totals[key] = totals.get(key, 0.0) + float(event["dur"])
        return tuple(LayerTime(name, kind, total / runs) for (name, kind), total in totals.items())

    def release(self) -> None:
        """See :class:`~edgeattn.runtimes.session.Session`."""
        self._sessions.clear()
