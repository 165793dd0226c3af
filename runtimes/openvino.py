"""OpenVINO on the CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from edgeattn.engines import OPENVINO
from edgeattn.runtimes.faults import loading, run_failed
from edgeattn.runtimes.inputs import Arrays, Found, check_names
from edgeattn.runtimes.session import Census, LayerTime, Session
from edgeattn.runtimes.step import EngineStep, HostStep
from edgeattn.spec import GraphSpec, ModelSpec

DTYPES = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i64": "int64", "i32": "int32",
    "i16": "int16", "i8": "int8", "u8": "uint8", "i4": "int4", "u4": "uint4", "boolean": "bool", "u32": "uint32",
}  # fmt: skip
SHARED_WEIGHTS = "weights.bin"  # of several IR files that store equal weights once
NOT_WORK = frozenset({"Input", "Output", "Const"})  # layer types of the runtime model that compute nothing


def open_openvino(models: Mapping[str, Path], spec: ModelSpec, threads: int) -> Session:
    """Compile one IR (or ONNX) file per graph for the CPU."""
    openvino = OPENVINO.load()
    started = time.perf_counter()
    core = openvino.Core()
    compiled = {graph.name: _compile(core, models[graph.name], graph, threads, False) for graph in spec.graphs}
    session = OpenVinoSession(openvino, core, compiled, models, spec, threads)
    session.load_ms = (time.perf_counter() - started) * 1e3
    return session


def _compile(core: Any, path: Path, graph: GraphSpec, threads: int, profiled: bool) -> Any:
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        # CPUs with bf16 instructions compute in bf16 unless told, and parity with the source is gone
        "INFERENCE_PRECISION_HINT": "f32",
        "PERF_COUNT": "YES" if profiled else "NO",
    }
    with loading(OPENVINO.title, path):
        model = _read(core, path)
        compiled = core.compile_model(model, "CPU", properties | safe_properties(model))
        check_names(path, graph, _ports(compiled.inputs), _ports(compiled.outputs), graph.stored_outputs)
    return compiled


def safe_properties(model: Any) -> dict[str, str]:
    """What a model must be compiled with on the CPU so that it is compiled right.

    OpenVINO 2026.4 fuses attention that has no axis of heads, (batch, tokens, width), into a kernel of its own that
    writes beyond its buffers: int8 comes out wrong, and the process dies, in compiling, running or releasing. With an
    axis of heads all is well.
    """
    scores = (op for op in model.get_ops() if op.get_type_name() == "Softmax")
    ranks = [op.get_output_partial_shape(0).rank for op in scores]
    return {"SNIPPETS_MODE": "DISABLE"} if any(rank.is_static and rank.get_length() == 3 for rank in ranks) else {}


def _read(core: Any, path: Path) -> Any:
    """The model of a file; an IR without a ``.bin`` of its own takes the one that its neighbours share."""
    shared = path.with_name(SHARED_WEIGHTS)
    if path.suffix == ".xml" and not path.with_suffix(".bin").is_file() and shared.is_file():
        return core.read_model(str(path), str(shared))
    return core.read_model(str(path))


def _ports(ports: Any) -> Found:
    found: Found = {}
    for port in ports:
        dtype = port.get_element_type().get_type_name()
        shape = tuple(size.get_length() if size.is_static else -1 for size in port.get_partial_shape())
        found |= {name: (DTYPES.get(dtype, dtype), shape) for name in port.get_names()}
    return found


@final
class _OpenVinoStep(HostStep):
    def __init__(self, openvino: Any, compiled: Any, graph: GraphSpec) -> None:
        super().__init__(graph)
        self._requests: tuple[Any, ...] = tuple(self._request(openvino, compiled, parity) for parity in (0, 1))

    def _request(self, openvino: Any, compiled: Any, parity: int) -> Any:
        """A request bound for good to the buffers of one parity: a run then sets nothing."""
        request = compiled.create_infer_request()
        inputs, outputs = self.bindings(parity)
        for name, array in inputs.items():
            request.set_tensor(compiled.input(name), openvino.Tensor(array, shared_memory=True))
        for name, array in outputs.items():
            request.set_tensor(
                compiled.output(self.graph.stored_outputs[name]), openvino.Tensor(array, shared_memory=True)
            )
        return request

    def infer(self) -> None:
        request = self._requests[self.parity]
        try:
            request.start_async()  # infer() would build a dict of results that nobody reads
            request.wait()
        except RuntimeError as error:
            raise run_failed(OPENVINO.title, self.graph, error) from error

    def free(self) -> None:
        """See :class:`~edgeattn.runtimes.session.EngineStep`."""
        self._requests = ()


@final
class OpenVinoSession(Session):
    """See :class:`~edgeattn.runtimes.session.Session`."""

    backend = OPENVINO.name

    def __init__(
        self,
        openvino: Any,
        core: Any,
        compiled: Mapping[str, Any],
        models: Mapping[str, Path],
        spec: ModelSpec,
        threads: int,
    ) -> None:
        super().__init__(spec, str(openvino.__version__).split("-")[0], threads)
        self._openvino, self._core = openvino, core
        self._compiled, self._models = dict(compiled), models

    def new_step(self, graph: GraphSpec) -> EngineStep:
        """See :class:`~edgeattn.runtimes.session.Session`."""
        return _OpenVinoStep(self._openvino, self._compiled[graph.name], graph)

    def census(self) -> Census:
        """Layer types and ``runtimePrecision`` of the compiled graphs."""
        census: Census = {}
        for compiled in self._compiled.values():
            for node in compiled.get_runtime_model().get_ordered_ops():
                info = node.get_rt_info()
                kind, dtype = str(info["layerType"].value), str(info["runtimePrecision"].value)
                if kind not in NOT_WORK:
                    kinds = census.setdefault(kind, {})
                    dtype = DTYPES.get(dtype, dtype)
                    kinds[dtype] = kinds.get(dtype, 0) + 1
        return census

    def layer_times(self, inputs: Arrays, runs: int, graph: GraphSpec) -> tuple[LayerTime, ...] | None:
        """Times of the executed layers, from a second compilation with counters on."""
        compiled = _compile(self._core, self._models[graph.name], graph, self.threads, True)
        request = compiled.create_infer_request()
        totals: dict[tuple[str, str], float] = {}
        for _ in range(runs):
            request.infer(inputs)
            for info in request.get_profiling_info():
                if info.status == info.Status.EXECUTED:
                    key = (info.node_name, info.node_type)
                    totals[key] = totals.get(key, 0.0) + info.real_time.total_seconds() * 1e6
        return tuple(LayerTime(name, kind, total / runs) for (name, kind), total in totals.items())

    def release(self) -> None:
        """See :class:`~edgeattn.runtimes.session.Session`."""
        self._compiled.clear()
