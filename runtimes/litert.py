"""LiteRT (TFLite) on the CPU, through XNNPACK: ``ai_edge_litert``, or ``tflite_runtime`` with the same Interpreter."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, final

import numpy as np

from edgeattn.engines import LITERT
from edgeattn.errors import BundleError, InputError, load_extra
from edgeattn.guards.silence import without_info
from edgeattn.runtimes.faults import loading, run_failed
from edgeattn.runtimes.inputs import Arrays, Found, check_names
from edgeattn.runtimes.session import Census, LayerTime, Session, count_op
from edgeattn.runtimes.step import EngineStep, HostStep
from edgeattn.spec import GraphSpec, ModelSpec, TensorSpec


@dataclass(frozen=True)
class _Loaded:
    """One signature of a file: its interpreter, its subgraph, and its tensors' indices there by name."""

    path: Path
    interpreter: Any
    turn: threading.Lock  # of the interpreter: all steps of a file share its tensors
    subgraph: int
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    narrow: frozenset[str]  # inputs that the file holds as int32 and the spec as int64


def open_litert(models: Mapping[str, Path], spec: ModelSpec, threads: int) -> Session:
    """One interpreter per file; a file may hold several graphs, each under a signature of its name."""
    module, version = _import()
    started = time.perf_counter()
    interpreters: dict[Path, Any] = {}
    turns: dict[Path, threading.Lock] = {}
    loaded = {}
    for graph in spec.graphs:
        path = models[graph.name]
        if path not in interpreters:
            with loading(LITERT.title, path), without_info():
                interpreters[path] = module.Interpreter(str(path), num_threads=threads)
                interpreters[path].allocate_tensors()
            turns[path] = threading.Lock()
        loaded[graph.name] = _load(interpreters[path], turns[path], path, graph)
    session = LiteRtSession(loaded, spec, version, threads)
    session.load_ms = (time.perf_counter() - started) * 1e3
    return session


def _import() -> tuple[ModuleType, str]:
    from importlib import metadata

    if importlib.util.find_spec("ai_edge_litert") is None and importlib.util.find_spec("tflite_runtime") is not None:
        return load_extra("tflite_runtime.interpreter", "tflite"), metadata.version("tflite-runtime")
    return LITERT.load(), metadata.version(LITERT.distribution)


def _load(interpreter: Any, turn: threading.Lock, path: Path, graph: GraphSpec) -> _Loaded:
    with loading(LITERT.title, path):
        signatures = list(interpreter.get_signature_list())
        if not signatures:
            raise BundleError(f"{path}: has no signature, so its tensors have no names to bind by. Convert it again")
        if graph.name not in signatures and len(signatures) > 1:
            raise BundleError(f"{path}: has no signature {graph.name!r}; it has {', '.join(signatures)}")
        chosen = graph.name if graph.name in signatures else signatures[0]
        runner = interpreter.get_signature_runner(chosen)
        # The signature's lists are alphabetical and the subgraph's are not: only its name -> index map binds right.
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        check_names(path, graph, _tensors(inputs, graph.all_inputs), _tensors(outputs, graph.all_outputs))
        subgraph = _engine(interpreter).GetSubgraphIndexFromSignature(chosen)
        if subgraph:
            _engine(interpreter).AllocateTensors(subgraph)  # allocate_tensors() does the first one
    return _Loaded(
        path,
        interpreter,
        turn,
        int(subgraph),
        {name: int(detail["index"]) for name, detail in inputs.items()},
        {name: int(detail["index"]) for name, detail in outputs.items()},
        frozenset(
            tensor.name
            for tensor in graph.all_inputs
            if tensor.dtype == "int64" and np.dtype(inputs[tensor.name]["dtype"]) == np.int32
        ),
    )


def _engine(interpreter: Any) -> Any:
    """What lies under an interpreter: its calls take a subgraph, where the public ones mean the first.

    A signature runner allocates new outputs with every call; these are the calls that it is made of. They are the same
    in tflite_runtime 2.14 and in ai_edge_litert 2.
    """
    return interpreter._interpreter  # noqa: SLF001  # see above


def _tensors(details: Mapping[str, Mapping[str, Any]], wanted: tuple[TensorSpec, ...]) -> Found:
    # Delegates refuse int64, so files hold int32 where the spec says int64; the step converts at the border.
    wide = {tensor.name for tensor in wanted if tensor.dtype == "int64"}
    found = {}
    for name, detail in details.items():
        dtype = np.dtype(detail["dtype"]).name
        narrow = name in wide and dtype == "int32"
        found[name] = ("int64" if narrow else dtype, tuple(int(size) for size in detail["shape"]))
    return found


def _narrow(name: str, wide: np.ndarray, narrow: np.ndarray) -> None:
    """Copy int64 into int32.

    Raises:
        InputError: for a value that int32 does not hold.
    """
    limits = np.iinfo(np.int32)
    if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
        raise InputError(f"input {name!r} holds {wide.min()}..{wide.max()}; this engine computes with int32")
    np.copyto(narrow, wide, casting="unsafe")


@final
class _LiteRtStep(HostStep):
    """Shares the session's interpreter with other steps.

    Its tensors live in the interpreter's arena, so states are copied in and out: 14 us of 240 for the built-in model.
    An interpreter per step would save half of that and cost every stream 12 MiB of packed weights. From the first input
    set to the last output read the interpreter is one step's alone: threads take turns.
    """

    def __init__(self, loaded: _Loaded, graph: GraphSpec) -> None:
        super().__init__(graph)
        self._interpreter, self._subgraph, self._turn = loaded.interpreter, loaded.subgraph, loaded.turn
        self._engine: Any = _engine(loaded.interpreter)
        self._copies = []
        for parity in (0, 1):
            inputs, outputs = self.bindings(parity)
            narrowed = [name for name in inputs if name in loaded.narrow]
            self._copies.append(
                (
                    [(loaded.inputs[name], array) for name, array in inputs.items() if name not in loaded.narrow],
                    [
                        (name, loaded.inputs[name], inputs[name], np.zeros(inputs[name].shape, np.int32))
                        for name in narrowed
                    ],
                    [(array, loaded.outputs[name]) for name, array in outputs.items()],
                )
            )

    def infer(self) -> None:
        before, narrowed, after = self._copies[self.parity]
        for name, _, array, narrow in narrowed:
            _narrow(name, array, narrow)
        try:
            with self._turn:
                for index, array in before:
                    self._engine.SetTensor(index, array, self._subgraph)
                for _, index, _, narrow in narrowed:
                    self._engine.SetTensor(index, narrow, self._subgraph)
                self._engine.Invoke(self._subgraph)
                # The views die at once: memory that one looks at may move in the next run. GetTensor() would allocate.
                for array, index in after:
                    np.copyto(array, self._engine.tensor(self._interpreter, index, self._subgraph))
        except (RuntimeError, ValueError) as error:
            raise run_failed(LITERT.title, self.graph, error) from error

    def free(self) -> None:
        """See :class:`~edgeattn.runtimes.session.EngineStep`."""
        self._interpreter = self._engine = None


def _count_file(census: Census, path: Path, subgraphs: set[int]) -> None:
    """Count the ops of subgraphs as the file states them."""
    if not subgraphs or importlib.util.find_spec("ai_edge_litert") is None:
        return
    schema = load_extra("ai_edge_litert.schema_py_generated", "tflite")
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    types = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    for index in subgraphs:
        graph = model.Subgraphs(index)
        for number in range(graph.OperatorsLength()):
            op = graph.Operators(number)
            code = model.OperatorCodes(op.OpcodeIndex())
            kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            read = [types[graph.Tensors(op.Inputs(i)).Type()] for i in range(op.InputsLength()) if op.Inputs(i) >= 0]
            count_op(census, names.get(kind, str(kind)), read)


@final
class LiteRtSession(Session):
    """See :class:`~edgeattn.runtimes.session.Session`."""

    backend = LITERT.name

    def __init__(self, loaded: Mapping[str, _Loaded], spec: ModelSpec, version: str, threads: int) -> None:
        super().__init__(spec, version, threads)
        self._loaded = dict(loaded)

    def new_step(self, graph: GraphSpec) -> EngineStep:
        """See :class:`~edgeattn.runtimes.session.Session`."""
        return _LiteRtStep(self._loaded[graph.name], graph)

    def census(self) -> Census:
        """Ops of the graphs, each under the narrowest dtype that it reads, and ``DELEGATE``.

        The interpreter lists the ops that a delegate took beside the delegate's own nodes:
        ``{"DELEGATE": {"partitions": 1}}`` says that XNNPACK runs all that it runs in one go. Of a file with several
        signatures it lists the first alone; the ops of the others are read from the file, where its package can.
        """
        census: Census = {}
        for path, (interpreter, turn) in {
            one.path: (one.interpreter, one.turn) for one in self._loaded.values()
        }.items():
            with turn, loading(LITERT.title, path):  # a custom operation's name may be no text
                tensors = interpreter.get_tensor_details()
                ops = interpreter._get_ops_details()  # noqa: SLF001  # no public call tells the ops
            dtypes = {tensor["index"]: np.dtype(tensor["dtype"]).name for tensor in tensors}
            for op in ops:
                if op["op_name"] == "DELEGATE":
                    kinds = census.setdefault("DELEGATE", {})
                    kinds["partitions"] = kinds.get("partitions", 0) + 1
                else:
                    count_op(census, op["op_name"], [dtypes[index] for index in op["inputs"] if index in dtypes])
            others = {loaded.subgraph for loaded in self._loaded.values() if loaded.path == path} - {0}
            with loading(LITERT.title, path):
                _count_file(census, path, others)
        return census

    def layer_times(
        self,
        inputs: Arrays,  # noqa: ARG002
        runs: int,  # noqa: ARG002
        graph: GraphSpec,  # noqa: ARG002
    ) -> tuple[LayerTime, ...] | None:
        """None: the Python interpreter has no profiler (the C++ ``benchmark_model`` has one)."""
        return None

    def release(self) -> None:
        """See :class:`~edgeattn.runtimes.session.Session`."""
        self._loaded.clear()
