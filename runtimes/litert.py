"""LiteRT (TFLite) on the CPU, through XNNPACK: ``ai_edge_litert``, or ``tflite_runtime`` with the same Interpreter."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, final

import numpy as np

from edgeattn.errors import BundleError, InputError, load_extra
from edgeattn.runtimes.session import (
    Census,
    EngineStep,
    Found,
    HostStep,
    LayerTime,
    Session,
    check_names,
    count_op,
    loading,
    run_failed,
)
from edgeattn.spec import GraphSpec, ModelSpec, TensorSpec


@dataclass(frozen=True)
class _Loaded:
    """One interpreter with its tensors' indices by name."""

    interpreter: Any
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    narrow: frozenset[str]  # inputs that the file holds as int32 and the spec as int64


def open_litert(models: Mapping[str, Path], spec: ModelSpec, threads: int) -> Session:
    """One interpreter per graph."""
    module, version = _import()
    started = time.perf_counter()
    loaded = {graph.name: _load(module, models[graph.name], graph, threads) for graph in spec.graphs}
    session = LiteRtSession(loaded, spec, version, threads)
    session.load_ms = (time.perf_counter() - started) * 1e3
    return session


def _import() -> tuple[ModuleType, str]:
    from importlib import metadata

    if importlib.util.find_spec("ai_edge_litert") is None and importlib.util.find_spec("tflite_runtime") is not None:
        return load_extra("tflite_runtime.interpreter", "tflite"), metadata.version("tflite-runtime")
    module = load_extra("ai_edge_litert.interpreter", "tflite")
    return module, metadata.version("ai-edge-litert")


def _load(module: ModuleType, path: Path, graph: GraphSpec, threads: int) -> _Loaded:
    with loading("LiteRT", path):
        interpreter = module.Interpreter(str(path), num_threads=threads)
        interpreter.allocate_tensors()
        signatures = list(interpreter.get_signature_list())
        if not signatures:
            raise BundleError(f"{path}: has no signature, so its tensors have no names to bind by. Convert it again")
        chosen = graph.name if graph.name in signatures else signatures[0]
        runner = interpreter.get_signature_runner(chosen)
        # The signature's lists are alphabetical and the subgraph's are not: only its name -> index map binds right.
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        primary = {detail["index"] for detail in interpreter.get_input_details()}
        if len(signatures) > 1 and not primary.issuperset(detail["index"] for detail in inputs.values()):
            raise BundleError(f"{path}: signature {chosen!r} is not its first subgraph; write one file per graph")
        check_names(path, graph, _tensors(inputs, graph.all_inputs), _tensors(outputs, graph.all_outputs))
    return _Loaded(
        interpreter,
        {name: int(detail["index"]) for name, detail in inputs.items()},
        {name: int(detail["index"]) for name, detail in outputs.items()},
        frozenset(
            tensor.name
            for tensor in graph.all_inputs
            if tensor.dtype == "int64" and np.dtype(inputs[tensor.name]["dtype"]) == np.int32
        ),
    )


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
    An interpreter per step would save half of that and cost every stream 12 MiB of packed weights.
    """

    def __init__(self, loaded: _Loaded, graph: GraphSpec) -> None:
        super().__init__(graph)
        self._interpreter = loaded.interpreter
        view = loaded.interpreter.tensor
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
                    [(array, view(loaded.outputs[name])) for name, array in outputs.items()],
                )
            )

    def infer(self) -> None:
        before, narrowed, after = self._copies[self.parity]
        for name, _, array, narrow in narrowed:
            _narrow(name, array, narrow)
        try:
            for index, array in before:
                self._interpreter.set_tensor(index, array)
            for _, index, _, narrow in narrowed:
                self._interpreter.set_tensor(index, narrow)
            self._interpreter.invoke()
            # The views die at once: invoke() refuses to run while one is alive. get_tensor() would allocate.
            for array, view in after:
                np.copyto(array, view())
        except (RuntimeError, ValueError) as error:
            raise run_failed("LiteRT", self.graph, error) from error


@final
class LiteRtSession(Session):
    """See :class:`~edgeattn.runtimes.session.Session`."""

    backend = "litert"

    def __init__(self, loaded: Mapping[str, _Loaded], spec: ModelSpec, version: str, threads: int) -> None:
        super().__init__(spec, version, threads)
        self._loaded = dict(loaded)

    def new_step(self, graph: GraphSpec) -> EngineStep:
        """See :class:`~edgeattn.runtimes.session.Session`."""
        return _LiteRtStep(self._loaded[graph.name], graph)

    def executed(self) -> Census:
        """Ops of the graphs, each under the narrowest dtype that it reads, and ``DELEGATE``.

        The interpreter lists the ops that a delegate took beside the delegate's own nodes:
        ``{"DELEGATE": {"partitions": 1}}`` says that XNNPACK runs all that it runs in one go.
        """
        census: Census = {}
        for loaded in self._loaded.values():
            dtypes = {
                tensor["index"]: np.dtype(tensor["dtype"]).name for tensor in loaded.interpreter.get_tensor_details()
            }
            for op in loaded.interpreter._get_ops_details():  # noqa: SLF001  # no public call tells the ops
                if op["op_name"] == "DELEGATE":
                    kinds = census.setdefault("DELEGATE", {})
                    kinds["partitions"] = kinds.get("partitions", 0) + 1
                else:
                    count_op(census, op["op_name"], [dtypes[index] for index in op["inputs"] if index in dtypes])
        return census

    def layers(
        self,
        inputs: Mapping[str, np.ndarray],  # noqa: ARG002
        runs: int,  # noqa: ARG002
        graph: str | None = None,  # noqa: ARG002
    ) -> tuple[LayerTime, ...] | None:
        """None: the Python interpreter has no profiler (the C++ ``benchmark_model`` has one)."""
        return None

    def release(self) -> None:
        """See :class:`~edgeattn.runtimes.session.Session`."""
        self._loaded.clear()
