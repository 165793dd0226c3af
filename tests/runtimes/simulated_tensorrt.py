"""What edgeattn uses of the ``tensorrt`` module, evaluated without TensorRT: for hosts that have none.

Work goes onto the CUDA stream that the caller gives, and reads and writes the addresses that the caller set, when the
stream gets there; so the calls, their order and what is bound to what are tested, on the simulated CUDA runtime or a
real one. What is kept of TensorRT: an engine of another version is refused, a context needs a plain run before a
capture, what was captured uses the addresses that its context was given last, an engine that waits inside cannot be
captured, and the surface differs by version (8.6, 10, 11) as the table in :mod:`edgeattn.runtimes.tensorrt_build` says.
Nothing here is optimized and no time means anything.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32", "int8": "INT8", "bool": "BOOL"}
SCRATCH, STREAMED = 4096, 1000  # bytes that every engine claims as scratch memory, and as weights
HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@dataclass(frozen=True)
class Network:
    """What a file computes.

    Attributes:
        inputs: name -> dtype, shape.
        outputs: likewise.
        enqueue: puts its work on a stream, reading and writing at these addresses, as they are when it gets there.
        layers: op type -> dtype, for the inspector.
    """

    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]
    enqueue: Callable[[int, Mapping[str, int]], None]
    layers: tuple[tuple[str, str], ...] = ()


def onnxruntime_network(library: ctypes.CDLL) -> Callable[[bytes], Network]:
    """Files are ONNX, evaluated by ONNX Runtime as host functions of the stream."""
    import onnx
    import onnxruntime

    kept: list[Any] = []  # callbacks must live as long as a graph may call them

    def compile_network(data: bytes) -> Network:
        try:
            session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ValueError(str(error)) from error
        inputs, outputs = (
            {v.name: ({"tensor(float)": "float32"}[v.type], tuple(v.shape)) for v in values}
            for values in (session.get_inputs(), session.get_outputs())
        )

        def at(address: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
            kind = np.dtype(dtype)
            memory = (ctypes.c_byte * (int(np.prod(shape)) * kind.itemsize)).from_address(address)
            array: np.ndarray = np.ndarray(shape, kind, buffer=memoryview(memory))
            return array

        def enqueue(stream: int, addresses: Mapping[str, int]) -> None:
            def work(_: int) -> None:
                given = {name: at(addresses[name], *kind).copy() for name, kind in inputs.items()}
                for name, value in zip(outputs, session.run(list(outputs), given), strict=True):
                    at(addresses[name], *outputs[name])[...] = value

            kept.append(HOST_FUNCTION(work))
            assert library.cudaLaunchHostFunc(ctypes.c_void_p(stream), kept[-1], None) == 0

        nodes = onnx.load_from_string(data).graph.node
        return Network(inputs, outputs, enqueue, tuple((node.op_type, "float32") for node in nodes))

    return compile_network


def simulated_tensorrt(  # noqa: C901 - a module, its classes one after the other
    version: str,
    library: ctypes.CDLL,
    compile_network: Callable[[bytes], Network],
    capturable: bool = True,
    dla_cores: int = 0,
) -> Any:
    """The module; ``timed`` on it counts networks whose tactics were timed, ``configs`` the configurations of builds.

    Args:
        version: for example "10.3.0".
        library: the CUDA runtime.
        compile_network: the parser: bytes of a file -> what it computes. A ValueError is a refusal.
        capturable: whether engines can be captured; those that cannot wait for the stream.
        dla_cores: that there are.
    """
    major = int(version.split(".", maxsplit=1)[0])

    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = Severity

        def __init__(self) -> None: ...

        def log(self, severity: Severity, message: str) -> None:
            raise NotImplementedError

    class Logger(ILogger):
        def __init__(self, severity: Severity) -> None:
            super().__init__()
            self.severity = severity

        def log(self, severity: Severity, message: str) -> None: ...

    make_enum: Any = enum.Enum  # names that are only known at run time
    names = "TF32 SPARSE_WEIGHTS GPU_FALLBACK" + ("" if major >= 11 else " FP16 INT8")
    creation = {8: {"EXPLICIT_BATCH": 0}, 10: {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, 11: {"STRONGLY_TYPED": 1}}
    module: Any = types.ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)
    module.__version__ = version
    module.timed, module.configs = 0, []
    module.DataType = make_enum("DataType", list(TYPES.values()))
    module.TensorIOMode = make_enum("TensorIOMode", "INPUT OUTPUT")
    module.DeviceType = make_enum("DeviceType", "GPU DLA")
    module.BuilderFlag = make_enum("BuilderFlag", names)
    module.NetworkDefinitionCreationFlag = make_enum("NetworkDefinitionCreationFlag", creation[major], type=int)
    module.MemoryPoolType = make_enum("MemoryPoolType", "WORKSPACE")
    module.ProfilingVerbosity = make_enum("ProfilingVerbosity", "DETAILED")
    module.LayerInformationFormat = make_enum("LayerInformationFormat", "JSON")
    if major >= 11:
        module.EngineStat = make_enum("EngineStat", "TOTAL_WEIGHTS_SIZE")

    class IProfiler:
        def __init__(self) -> None: ...

    class TimingCache:
        def __init__(self, data: bytes) -> None:
            self.version, self.known = version, set[str]()
            if data:
                try:
                    stored = json.loads(data)
                    self.version, self.known = stored["version"], set(stored["known"])
                except ValueError:
                    self.version = "damaged"

        def serialize(self) -> memoryview:
            return memoryview(json.dumps({"version": self.version, "known": sorted(self.known)}).encode())

    class BuilderConfig:
        def __init__(self) -> None:
            self.flags = {module.BuilderFlag["TF32"]}
            self.limits: dict[Any, int] = {}
            self.builder_optimization_level = 3
            self.profiling_verbosity: Any = None
            self.default_device_type = module.DeviceType["GPU"]
            self.DLA_core = -1
            self.cache: TimingCache | None = None

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            self.limits[pool] = size

        def set_flag(self, flag: Any) -> None:
            self.flags.add(flag)

        def clear_flag(self, flag: Any) -> None:
            self.flags.discard(flag)

        def create_timing_cache(self, data: bytes) -> TimingCache:
            return TimingCache(data)

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            if cache.version != version and not ignore_mismatch:
                return False
            self.cache = cache
            return True

    class NetworkDefinition:
        num_layers = 0
        data = b""

        def __init__(self, flags: int) -> None:
            self.flags = flags

    class Error:
        def __init__(self, text: str) -> None:
            self.text = text

        def node(self) -> int:
            return 0

        def desc(self) -> str:
            return self.text

        if major >= 10:

            def node_name(self) -> str:
                return ""

            def node_operator(self) -> str:
                return ""

    class OnnxParser:
        def __init__(self, network: NetworkDefinition, logger: ILogger) -> None:
            self.network, self.errors = network, list[Error]()

        @property
        def num_errors(self) -> int:
            return len(self.errors)

        def get_error(self, index: int) -> Error:
            return self.errors[index]

        def parse_from_file(self, path: str) -> bool:
            self.network.data = Path(path).read_bytes()
            try:
                compile_network(self.network.data)
            except ValueError as error:
                self.errors.append(Error(str(error)))
            return not self.errors

    class Builder:
        num_DLA_cores = dla_cores  # noqa: N815 - TensorRT's name

        def __init__(self, logger: ILogger) -> None: ...

        def create_network(self, flags: int) -> NetworkDefinition:
            return NetworkDefinition(flags)

        def create_builder_config(self) -> BuilderConfig:
            return BuilderConfig()

        def build_serialized_network(self, network: NetworkDefinition, config: BuilderConfig) -> memoryview:
            module.configs.append((network.flags, config))
            name = hashlib.sha256(network.data).hexdigest()
            if config.cache is None or name not in config.cache.known:
                module.timed += 1
                if config.cache is not None:
                    config.cache.known.add(name)
            return memoryview(f"{version}\n".encode() + network.data)

    class ExecutionContext:
        def __init__(self, network: Network) -> None:
            self.network = network
            self.profiler: Any = None
            self.addresses: dict[str, int] = {}
            self.used: dict[str, int] = {}  # one table, which captured work reads as well
            self.ready = False

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            self.used.update(self.addresses)
            if set(self.addresses) != {*self.network.inputs, *self.network.outputs}:
                return False
            if not self.ready or not capturable:  # what is set up late takes a wait, which a capture does not allow
                if library.cudaStreamSynchronize(ctypes.c_void_p(stream)) != 0:
                    return False
                self.ready = True
            self.network.enqueue(stream, self.used)
            if self.profiler is not None:
                for index, (kind, _) in enumerate(self.network.layers):
                    self.profiler.report_layer_time(f"{kind}_{index}", 0.25)
            return True

    class CudaEngine:
        def __init__(self, network: Network) -> None:
            self.network = network
            self.names = [*network.inputs, *network.outputs]
            if major < 11:
                self.device_memory_size = SCRATCH
            if major >= 10:
                self.device_memory_size_v2 = SCRATCH

        @property
        def num_io_tensors(self) -> int:
            return len(self.names)

        def get_tensor_name(self, index: int) -> str:
            return self.names[index]

        def get_tensor_mode(self, name: str) -> Any:
            return module.TensorIOMode["INPUT" if name in self.network.inputs else "OUTPUT"]

        def get_tensor_dtype(self, name: str) -> Any:
            return module.DataType[TYPES[{**self.network.inputs, **self.network.outputs}[name][0]]]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return {**self.network.inputs, **self.network.outputs}[name][1]

        def create_execution_context(self) -> ExecutionContext:
            return ExecutionContext(self.network)

        def create_engine_inspector(self) -> Any:
            layers = [
                {"Name": kind, "LayerType": kind, "Outputs": [{"Format/Datatype": f"Row major linear {dtype}"}]}
                for kind, dtype in ((kind, {"float32": "FP32"}[dtype]) for kind, dtype in self.network.layers)
            ]
            return types.SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": layers}))

        if major >= 11:

            def get_engine_stat(self, stat: Any) -> int:
                return STREAMED

    class Runtime:
        def __init__(self, logger: ILogger) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> CudaEngine | None:
            made_by, _, data = plan.partition(b"\n")
            return CudaEngine(compile_network(data)) if made_by == version.encode() else None

    for made in (ILogger, Logger, IProfiler, OnnxParser, Builder, Runtime):
        setattr(module, made.__name__, made)
    return module
