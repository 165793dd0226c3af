"""Session and Step: what every engine's adapter gives, in names and numpy.

An adapter supplies a :class:`Step` per graph and the facts about what it executes; everything that can be said once
(checking inputs, one-off runs, carrying states from buffer to buffer) stands here.
"""

from __future__ import annotations

import abc
import contextlib
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgeattn.errors import BundleError, EdgeattnError, InputError, UnsupportedError, unknown_name
from edgeattn.runtimes.buckets import cut_outputs, pad_inputs, route
from edgeattn.spec import GraphSpec, ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

    from edgeattn.runtimes.stream import Stream

Arrays = dict[str, np.ndarray]
Found = dict[str, tuple[str, tuple[int, ...]]]
"""What a model file holds: tensor name -> dtype, shape; -1 stands for a size that is not fixed."""
Census = dict[str, dict[str, int]]
"""Op type -> {dtype: how many}."""

NARROW_FIRST = ("int4", "float8", "int8", "uint8", "int16", "bfloat16", "float16", "float32", "float64")
"""Dtypes that an op computes in; an op is counted under the first of these that it reads."""


def check_inputs(graph: GraphSpec, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """Every input and state of ``graph`` as contiguous arrays of the right dtype, in the graph's order.

    Raises:
        InputError: for a missing or unknown name, a wrong shape or dtype.
    """
    for name in inputs:
        if name not in graph.input_names:
            near = difflib.get_close_matches(name, graph.input_names, n=1)
            hint = f", did you mean {near[0]!r}?" if near else "."
            raise InputError(
                f"graph {graph.name!r} has no input {name!r}{hint} It takes {', '.join(graph.input_names)}"
            )
    for name in graph.input_names:
        if name not in inputs:
            raise InputError(f"graph {graph.name!r} needs input {name!r}; given: {', '.join(inputs) or 'nothing'}")
    return {tensor.name: tensor.check(inputs[tensor.name]) for tensor in graph.all_inputs}


def check_names(path: Path, graph: GraphSpec, inputs: Found, outputs: Found) -> None:
    """Hold a loaded model file to the spec that it came with.

    Args:
        path: the file, for the message.
        inputs: what the engine found, by name.
        outputs: likewise.

    Raises:
        BundleError: if a name of the spec is missing in the file, or has another shape or dtype there.
    """
    for kind, wanted, found in (("input", graph.all_inputs, inputs), ("output", graph.all_outputs, outputs)):
        for tensor in wanted:
            if tensor.name not in found:
                names = ", ".join(found) or "none"
                raise BundleError(
                    f"{path}: has no {kind} {tensor.name!r}; its {kind}s: {names}. Convert the model again"
                )
            dtype, shape = found[tensor.name]
            if (dtype, shape) != (tensor.dtype, tensor.shape):
                raise BundleError(
                    f"{path}: {kind} {tensor.name!r} is {dtype}{list(shape)}, the spec says "
                    f"{tensor.dtype}{list(tensor.shape)}. Convert the model again"
                )
        extra = sorted(set(found) - {tensor.name for tensor in wanted})
        if extra and kind == "input":
            raise BundleError(
                f"{path}: takes an input {extra[0]!r} that the spec does not have. Convert the model again"
            )


def first_line(error: BaseException) -> str:
    """The part of a vendor's message that fits one line: C++ stack traces and file positions come after it."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith(("Exception from", "Check '"))), repr(error))


@contextlib.contextmanager
def loading(engine: str, path: Path) -> Iterator[None]:
    """Turn whatever an engine raises over a model file into one :class:`BundleError`."""
    if not path.is_file():
        raise BundleError(f"{path}: no such model file")
    try:
        yield
    except (EdgeattnError, ImportError, MemoryError):
        raise
    except Exception as error:
        reason = first_line(error)
        raise BundleError(
            f"{path}: {engine} cannot load it, it is damaged or not its format ({reason:.300})"
        ) from error


def run_failed(engine: str, graph: GraphSpec, error: BaseException) -> UnsupportedError:
    """The error of a graph that loaded and then would not run."""
    return UnsupportedError(f"{engine} failed while running graph {graph.name!r}: {first_line(error):.300}")


def count_op(census: Census, op: str, dtypes: list[str]) -> None:
    """Count one executed op under the narrowest dtype that it reads: int8 weights make an int8 op."""
    known = [dtype for dtype in NARROW_FIRST if dtype in dtypes]
    dtype = known[0] if known else (dtypes[0] if dtypes else "none")
    kinds = census.setdefault(op, {})
    kinds[dtype] = kinds.get(dtype, 0) + 1


class Step(Protocol):
    """One graph with buffers and states of its own."""

    @property
    def inputs(self) -> Mapping[str, np.ndarray]:
        """Writable buffers by name, states left out; they keep what was written until it is overwritten."""

    @property
    def outputs(self) -> Mapping[str, np.ndarray]:
        """Results by name, states left out; valid until the next run."""

    def run(self) -> None:
        """Run once; the next states become the states."""

    def reset(self) -> None:
        """Give the states their initial values."""

    def states(self) -> Arrays:
        """Copies of the states, keyed by the graph's input names."""


class EngineStep(abc.ABC):
    """A :class:`Step` whose states can also be set; what :meth:`Session.run` runs on.

    Attributes:
        device_ms: time of the last run by the clock of the device that computes, copies to and from it included and
            the host's share left out; None where it has no clock of its own, and before the first run.
    """

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    device_ms: float | None = None

    @abc.abstractmethod
    def run(self) -> None:
        """See :class:`Step`."""

    @abc.abstractmethod
    def reset(self) -> None:
        """See :class:`Step`."""

    @abc.abstractmethod
    def states(self) -> Arrays:
        """See :class:`Step`."""

    @abc.abstractmethod
    def set_states(self, values: Mapping[str, np.ndarray]) -> None:
        """Copy in states, keyed by the graph's input names."""


class HostStep(EngineStep):
    """States in two sets of host arrays: a run reads one and writes the other, so nothing is copied or allocated."""

    def __init__(self, graph: GraphSpec) -> None:
        self.graph = graph
        self.inputs = {t.name: np.zeros(t.shape, t.dtype) for t in graph.inputs}
        self.outputs = {t.name: np.zeros(t.shape, t.dtype) for t in graph.outputs}
        self.state_sets = (graph.initial_states(), graph.initial_states())
        self.parity = 0  # the set that the next run reads

    @abc.abstractmethod
    def infer(self) -> None:
        """Run with ``state_sets[parity]`` as states and ``state_sets[1 - parity]`` for the next ones."""

    def run(self) -> None:
        """See :class:`Step`.

        Raises:
            UnsupportedError: if the engine fails.
        """
        self.infer()
        self.parity ^= 1

    def reset(self) -> None:
        """See :class:`Step`."""
        current = self.state_sets[self.parity]
        for state in self.graph.states:
            current[state.input].fill(state.initial)

    def states(self) -> Arrays:
        """See :class:`Step`."""
        return {name: array.copy() for name, array in self.state_sets[self.parity].items()}

    def set_states(self, values: Mapping[str, np.ndarray]) -> None:
        """See :class:`EngineStep`."""
        current = self.state_sets[self.parity]
        for state in self.graph.states:
            np.copyto(current[state.input], values[state.input])

    def bindings(self, parity: int) -> tuple[Arrays, Arrays]:
        """All input and all output arrays by the engine's names, for runs that read state set ``parity``."""
        read, write = self.state_sets[parity], self.state_sets[1 - parity]
        nexts = {state.output: write[state.input] for state in self.graph.states}
        return {**self.inputs, **read}, {**self.outputs, **nexts}


@dataclass(frozen=True)
class LayerTime:
    """Where the time of one run goes, as the engine tells it."""

    name: str
    type: str
    microseconds: float  # mean per run


class Session(abc.ABC):
    """A loaded model. Close it, or use it as a context manager.

    Attributes:
        spec: names, shapes and states of its graphs.
        backend: "openvino", "litert", "onnxruntime" or "tensorrt".
        engine_version: of the engine's package.
        threads: compute threads of one run.
        load_ms: from the first touch of the model files to ready, the engine's import left out.
        engine_bytes: memory that the loaded engine takes by its own account, weights included; None where it is silent.
        assets: name -> file that came with the model, such as its tokenizer; there until the session is closed.
    """

    backend: str

    def __init__(self, spec: ModelSpec, engine_version: str, threads: int) -> None:
        self.spec = spec
        self.engine_version = engine_version
        self.threads = threads
        self.load_ms = 0.0
        self.engine_bytes: int | None = None
        self.assets: Mapping[str, Path] = {}
        self._runners: dict[str, EngineStep] = {}
        self._resources = contextlib.ExitStack()

    @abc.abstractmethod
    def new_step(self, graph: GraphSpec) -> EngineStep:
        """A step of ``graph`` in its initial state."""

    @abc.abstractmethod
    def executed(self) -> Census:
        """Op type -> {dtype: count} of what the engine really executes (fused, converted, delegated), all graphs."""

    @abc.abstractmethod
    def layers(
        self, inputs: Mapping[str, np.ndarray], runs: int, graph: str | None = None
    ) -> tuple[LayerTime, ...] | None:
        """Mean time per layer over ``runs`` runs on ``inputs`` (states included); None where the engine tells none.

        Raises:
            InputError: as :meth:`run`.
        """

    @abc.abstractmethod
    def release(self) -> None:
        """Drop the engine's objects."""

    def run(self, inputs: Mapping[str, np.ndarray], graph: str | None = None) -> Arrays:
        """Run a graph once.

        Where a graph was converted in several sizes, its name stands for all of them: the smallest that the inputs fit
        into runs, inputs are padded and outputs cut to what they would be without.

        Args:
            inputs: every input and state of the graph, by name.
            graph: its name; None for the first.

        Returns:
            every output and next state by name, in arrays of their own.

        Raises:
            InputError: for an unknown graph, a missing or unknown name, a wrong shape or dtype, or an input that is
                longer than the largest size.
            UnsupportedError: if the engine fails.
        """
        bucket = self.spec.bucket(graph)
        if bucket is None:
            return self._run(self.spec.graph(graph), inputs)
        chosen = route(self.spec, bucket, inputs)
        return cut_outputs(bucket, inputs, self._run(chosen, pad_inputs(bucket, chosen, inputs)))

    def _run(self, chosen: GraphSpec, inputs: Mapping[str, np.ndarray]) -> Arrays:
        arrays = check_inputs(chosen, inputs)
        if chosen.name not in self._runners:
            self._runners[chosen.name] = self.new_step(chosen)
        step = self._runners[chosen.name]
        for tensor in chosen.inputs:
            np.copyto(step.inputs[tensor.name], arrays[tensor.name])
        step.set_states(arrays)
        step.run()
        states = step.states()
        results = {tensor.name: step.outputs[tensor.name].copy() for tensor in chosen.outputs}
        return results | {state.output: states[state.input] for state in chosen.states}

    def step(self, graph: str | None = None) -> EngineStep:
        """Buffers and states of their own for a graph; several steps of one session are independent.

        Raises:
            InputError: if there is no such graph.
        """
        return self.new_step(self.spec.graph(graph))

    def stream(self) -> Stream:
        """Samples in, words out; several streams of one session are independent.

        Raises:
            InputError: if the model does not stream.
        """
        from edgeattn.runtimes.stream import Stream

        if self.spec.stream is None:
            raise InputError(f"model {self.spec.name!r} ({self.spec.task}) does not stream; use run()")
        return Stream(self.step(), self.spec.stream)

    def asset(self, name: str) -> Path:
        """A file that came with the model, such as its tokenizer; there until the session is closed.

        Raises:
            InputError: if there is none of that name.
        """
        if name not in self.assets:
            raise InputError(f"model {self.spec.name!r}: {unknown_name('asset', name, self.assets)}")
        return self.assets[name]

    def keep(self, resource: contextlib.AbstractContextManager[Any]) -> None:
        """Tie something already entered to this session: :meth:`close` leaves it."""
        self._resources.push(resource.__exit__)

    def close(self) -> None:
        """Release the engine. Steps and streams of this session must not be used afterwards; closing twice is fine."""
        self._runners.clear()
        self.release()
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
