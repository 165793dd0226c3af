"""Session and Step: what every engine's adapter gives, in names and numpy.

An adapter supplies a :class:`Step` per graph and the facts about what it executes; everything that can be said once
(checking inputs, one-off runs, carrying states from buffer to buffer) stands here.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import difflib
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from edgeattn.errors import BundleError, EdgeattnError, InputError, UnsupportedError, unknown_name
from edgeattn.runtimes.buckets import cut_outputs, pad_inputs, route
from edgeattn.runtimes.sharing import CLOSED, FORKED, Gate, Turn
from edgeattn.spec import GraphSpec, ModelSpec, TensorSpec

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


def read_input(tensor: TensorSpec, value: object) -> np.ndarray:
    """What a caller gave for an input, as an array of its dtype; the shape is not looked at.

    Arrays of any layout and byte order are taken, and what numpy makes an array of (lists of numbers, scalars). A dtype
    is widened inside its kind (float16 -> float32, int32 -> int64) and never narrowed or turned into another kind.

    Raises:
        InputError: for another dtype, a masked array (what is hidden would come back), or what is no array.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(
            f"input {tensor.name!r} is a masked array, and engines know no masks: fill it (array.filled(0)) and tell "
            "the model in the input that it has for that"
        )
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged lists, and whatever the __array__ of another library raises
        raise InputError(
            f"input {tensor.name!r} must be an array of {tensor.dtype}{list(tensor.shape)}; numpy cannot make one of "
            f"the {type(value).__name__} given ({first_line(error):.200})"
        ) from error
    wanted = np.dtype(tensor.dtype)
    if array.dtype.kind != wanted.kind or not np.can_cast(array.dtype, wanted, "safe"):
        given = (
            array.dtype if isinstance(value, (np.ndarray, np.generic)) else f"{type(value).__name__} ({array.dtype})"
        )
        raise InputError(f"input {tensor.name!r} must be {tensor.dtype}, got {given}")
    return np.asarray(array, dtype=wanted, order="C")


def read_inputs(graph: GraphSpec, inputs: Mapping[str, object]) -> Arrays:
    """Every input and state of ``graph`` by name, in the graph's order, as :func:`read_input` gives them.

    Raises:
        InputError: for a missing or unknown name, and as :func:`read_input`.
    """
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"graph {graph.name!r} takes a mapping of names to arrays, got {type(inputs).__name__}; it needs "
            f"{', '.join(graph.input_names)}"
        )
    for name in inputs:
        if name not in graph.input_names:
            near = difflib.get_close_matches(str(name), graph.input_names, n=1)
            hint = f", did you mean {near[0]!r}?" if near else "."
            raise InputError(
                f"graph {graph.name!r} has no input {name!r:.80}{hint} It takes {', '.join(graph.input_names)}"
            )
    for name in graph.input_names:
        if name not in inputs:
            given = ", ".join(map(str, inputs)) or "nothing"
            raise InputError(f"graph {graph.name!r} needs input {name!r}; given: {given}")
    return {tensor.name: read_input(tensor, inputs[tensor.name]) for tensor in graph.all_inputs}


def check_inputs(graph: GraphSpec, inputs: Mapping[str, object]) -> Arrays:
    """Every input and state of ``graph`` as contiguous arrays of the right dtype and shape, in the graph's order.

    Raises:
        InputError: for a wrong shape, and as :func:`read_inputs`.
    """
    arrays = read_inputs(graph, inputs)
    return {tensor.name: tensor.check(arrays[tensor.name]) for tensor in graph.all_inputs}


def check_finite(kind: Literal["input", "output"], arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse NaN and infinity.

    Args:
        arrays: by tensor name.
        where: graph and step, for the message.

    Raises:
        InputError: if an input holds one.
        UnsupportedError: if an output does.
    """
    for name, array in arrays.items():
        if array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
        found = f"{where}: {kind} {name!r} holds {array[place]} at {list(place)}"
        if kind == "input":
            raise InputError(f"{found}; every input must be finite here (check_finite)")
        raise UnsupportedError(
            f"{found} although its inputs are finite: it overflows in this precision, or divides by zero; compare with "
            "the source, or convert it with a wider precision (fp32)"
        )


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

    For one thread at a time: a call while another thread is inside one is an InputError, and so is every call once the
    session is closed, or in a process forked from the one that loaded it.

    Attributes:
        graph: what it runs.
        inputs: see :class:`Step`.
        outputs: see :class:`Step`.
        device_ms: time of the last run by the clock of the device that computes, copies to and from it included and
            the host's share left out; None where it has no clock of its own, and before the first run.
        turn: what every call passes; of the session.
        check_finite: look for NaN and infinity in what every run reads and gives.
    """

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    device_ms: float | None = None
    check_finite: bool = False

    def __init__(self, graph: GraphSpec) -> None:
        self.graph = graph
        self.turn = Turn(Gate())
        self._runs = 0  # since the states were initial

    @abc.abstractmethod
    def advance(self) -> None:
        """Run once; the next states become the states."""

    @abc.abstractmethod
    def clear_states(self) -> None:
        """Give the states their initial values."""

    @abc.abstractmethod
    def read_states(self) -> Arrays:
        """Copies of the states, keyed by the graph's input names."""

    @abc.abstractmethod
    def write_states(self, values: Mapping[str, np.ndarray]) -> None:
        """Copy in states, keyed by the graph's input names."""

    @abc.abstractmethod
    def free(self) -> None:
        """Drop the engine's objects and memory; nothing is called afterwards."""

    def run(self) -> None:
        """See :class:`Step`.

        Raises:
            UnsupportedError: if the engine fails, or its outputs are not finite and that is to be checked.
            InputError: if its inputs are not finite and that is to be checked, and as the class says.
        """
        with self.turn:
            if self.check_finite:
                self._advance_checked()
            else:
                self.advance()

    def reset(self) -> None:
        """See :class:`Step`."""
        with self.turn:
            self.clear_states()
            self._runs = 0

    def states(self) -> Arrays:
        """See :class:`Step`."""
        with self.turn:
            return self.read_states()

    def set_states(self, values: Mapping[str, np.ndarray]) -> None:
        """Copy in states, keyed by the graph's input names."""
        with self.turn:
            self.write_states(values)

    def _advance_checked(self) -> None:
        where = f"graph {self.graph.name!r}, step {self._runs}"
        check_finite("input", {**self.inputs, **self.read_states()}, where)
        self.advance()
        states, names = self.read_states(), {state.input: state.output for state in self.graph.states}
        check_finite("output", {**self.outputs, **{names[name]: array for name, array in states.items()}}, where)
        self._runs += 1


class HostStep(EngineStep):
    """States in two sets of host arrays: a run reads one and writes the other, so nothing is copied or allocated."""

    def __init__(self, graph: GraphSpec) -> None:
        super().__init__(graph)
        # Engines hold the addresses of these arrays: putting another one in their place must not be possible.
        self.inputs = MappingProxyType({t.name: np.zeros(t.shape, t.dtype) for t in graph.inputs})
        self.outputs = MappingProxyType({t.name: np.zeros(t.shape, t.dtype) for t in graph.outputs})
        self.state_sets = (graph.initial_states(), graph.initial_states())
        self.parity = 0  # the set that the next run reads

    @abc.abstractmethod
    def infer(self) -> None:
        """Run with ``state_sets[parity]`` as states and ``state_sets[1 - parity]`` for the next ones."""

    def advance(self) -> None:
        """See :class:`EngineStep`.

        Raises:
            UnsupportedError: if the engine fails.
        """
        self.infer()
        self.parity ^= 1

    def clear_states(self) -> None:
        """See :class:`EngineStep`."""
        current = self.state_sets[self.parity]
        for state in self.graph.states:
            current[state.input].fill(state.initial)

    def read_states(self) -> Arrays:
        """See :class:`EngineStep`."""
        return {name: array.copy() for name, array in self.state_sets[self.parity].items()}

    def write_states(self, values: Mapping[str, np.ndarray]) -> None:
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

    Threads may share it: :meth:`run` can be called by any number at once and answers each with its own outputs; steps
    and streams are made for a thread each. It ends with :meth:`close` for all of them, and does not go through a fork:
    a process loads its own.

    Attributes:
        spec: names, shapes and states of its graphs.
        backend: "openvino", "litert", "onnxruntime" or "tensorrt".
        engine_version: of the engine's package.
        threads: compute threads of one run.
        load_ms: from the first touch of the model files to ready, the engine's import left out.
        engine_bytes: memory that the loaded engine takes by its own account, weights included; None where it is silent.
        assets: name -> file that came with the model, such as its tokenizer; there until the session is closed.
        check_finite: refuse NaN and infinity in inputs, outputs and states of every run from now on, by name.
    """

    backend: str
    parallel_runs = 2
    """Runs at once in :meth:`run`, and so the buffers that it keeps per graph; more threads wait. Two where the engine
    computes one after the other: one is filled and emptied while the other computes."""

    def __init__(self, spec: ModelSpec, engine_version: str, threads: int) -> None:
        self.spec = spec
        self.engine_version = engine_version
        self.threads = threads
        self.load_ms = 0.0
        self.engine_bytes: int | None = None
        self.assets: Mapping[str, Path] = {}
        self.check_finite = False
        self._gate = Gate()
        self._lock = threading.RLock()  # what creates, releases and lists the engine's objects
        self._returned = threading.Condition(self._lock)
        self._runners: dict[str, list[EngineStep]] = {}  # of run(), by graph, those that are not in use
        self._made: dict[str, int] = {}  # how many there are, those in use included
        self._steps: weakref.WeakSet[EngineStep] = weakref.WeakSet()
        self._resources = contextlib.ExitStack()
        LOADED.add(self)

    @abc.abstractmethod
    def new_step(self, graph: GraphSpec) -> EngineStep:
        """A step of ``graph`` in its initial state."""

    @abc.abstractmethod
    def census(self) -> Census:
        """See :meth:`executed`."""

    @abc.abstractmethod
    def layer_times(self, inputs: Arrays, runs: int, graph: GraphSpec) -> tuple[LayerTime, ...] | None:
        """See :meth:`layers`; inputs are checked."""

    @abc.abstractmethod
    def release(self) -> None:
        """Drop the engine's objects; the steps are freed already."""

    def executed(self) -> Census:
        """Op type -> {dtype: count} of what the engine really executes (fused, converted, delegated), all graphs."""
        self.check_usable()
        with self._lock:
            self.check_usable()
            return self.census()

    def layers(
        self, inputs: Mapping[str, np.ndarray], runs: int, graph: str | None = None
    ) -> tuple[LayerTime, ...] | None:
        """Mean time per layer over ``runs`` runs on ``inputs`` (states included); None where the engine tells none.

        Raises:
            InputError: as :meth:`run`.
        """
        self.check_usable()
        chosen = self.spec.graph(graph)
        arrays = check_inputs(chosen, inputs)
        with self._lock:
            self.check_usable()
            return self.layer_times(arrays, runs, chosen)

    def run(self, inputs: Mapping[str, np.ndarray], graph: str | None = None) -> Arrays:
        """Run a graph once; any number of threads may call this at once.

        Where a graph was converted in several sizes, its name stands for all of them: the smallest that the inputs fit
        into runs, inputs are padded and outputs cut to what they would be without.

        Args:
            inputs: every input and state of the graph, by name: arrays of any layout and byte order, or what numpy
                makes an array of. Widened inside a kind (float16 -> float32), never narrowed.
            graph: its name; None for the first.

        Returns:
            every output and next state by name, in arrays of their own.

        Raises:
            InputError: for an unknown graph, a missing or unknown name, a wrong shape or dtype, a masked or ragged
                array, an input that is longer than the largest size, one that is not finite where ``check_finite`` asks
                for it, and for a session that is closed or was loaded before a fork.
            UnsupportedError: if the engine fails, or its outputs are not finite and ``check_finite`` asks for it.
        """
        self.check_usable()
        bucket = self.spec.bucket(graph)
        if bucket is None:
            chosen = self.spec.graph(graph)
            return self._run(chosen, check_inputs(chosen, inputs))
        given = read_inputs(self.spec.graph(bucket.graphs[-1]), inputs)
        chosen = route(self.spec, bucket, given)
        arrays = check_inputs(chosen, pad_inputs(bucket, chosen, given))
        return cut_outputs(bucket, given, self._run(chosen, arrays))

    def _run(self, chosen: GraphSpec, arrays: Arrays) -> Arrays:
        if self.check_finite:
            check_finite("input", arrays, f"graph {chosen.name!r}")
        with self._runner(chosen) as step:
            for tensor in chosen.inputs:
                np.copyto(step.inputs[tensor.name], arrays[tensor.name])
            step.set_states(arrays)
            step.run()
            states = step.states()
            results = {tensor.name: step.outputs[tensor.name].copy() for tensor in chosen.outputs}
        results |= {state.output: states[state.input] for state in chosen.states}
        if self.check_finite:
            check_finite("output", results, f"graph {chosen.name!r}")
        return results

    @contextlib.contextmanager
    def _runner(self, graph: GraphSpec) -> Iterator[EngineStep]:
        """A step that no other thread uses; waits for one where :attr:`parallel_runs` are in use."""
        with self._returned:
            self.check_usable()
            while not self._runners.get(graph.name) and self._made.get(graph.name, 0) >= self.parallel_runs:
                self._returned.wait()
                self.check_usable()
            idle = self._runners.setdefault(graph.name, [])
            if idle:
                step = idle.pop()
            else:
                step = self._new_step(graph)
                self._made[graph.name] = self._made.get(graph.name, 0) + 1
        whole = False
        try:
            yield step
            whole = True
        finally:
            with self._returned:
                if whole:
                    idle.append(step)
                else:  # what broke off in the middle is not used again
                    self._made[graph.name] -= 1
                self._returned.notify_all()

    def step(self, graph: str | None = None) -> EngineStep:
        """Buffers and states of their own for a graph, for one thread; several steps of one session are independent.

        Raises:
            InputError: if there is no such graph, or the session is closed or was loaded before a fork.
        """
        self.check_usable()
        chosen = self.spec.graph(graph)
        with self._lock:
            step = self._new_step(chosen)
        step.check_finite = self.check_finite
        return step

    def _new_step(self, graph: GraphSpec) -> EngineStep:
        self.check_usable()
        step = self.new_step(graph)
        step.turn.gate = self._gate
        self._steps.add(step)
        return step

    def stream(self) -> Stream:
        """Samples in, words out; several streams of one session are independent, each for a thread of its own.

        Raises:
            InputError: if the model does not stream, or as :meth:`step`.
        """
        from edgeattn.runtimes.stream import Stream

        self.check_usable()
        if self.spec.stream is None:
            raise InputError(f"model {self.spec.name!r} ({self.spec.task}) does not stream; use run()")
        return Stream(self.step(), self.spec.stream, self.check_usable)

    def asset(self, name: str) -> Path:
        """A file that came with the model, such as its tokenizer; there until the session is closed.

        Raises:
            InputError: if there is none of that name.
        """
        if name not in self.assets:
            raise InputError(f"model {self.spec.name!r}: {unknown_name('asset', name, self.assets)}")
        return self.assets[name]

    def check_usable(self) -> None:
        """Do nothing.

        Raises:
            InputError: if the session is closed, or was loaded before this process was forked.
        """
        self._gate.check()

    def keep(self, resource: contextlib.AbstractContextManager[Any]) -> None:
        """Tie something already entered to this session: :meth:`close` leaves it."""
        self._resources.push(resource.__exit__)

    def close(self) -> None:
        """Wait for what is running, then release the engine; steps and streams of this session say so from then on.

        Closing twice is fine. In a process forked from the one that loaded it nothing is released: it is not its own.
        """
        if self._gate.shut():
            return
        with self._returned:
            if self._gate.shut():  # another thread was first
                return
            self._gate.refusal = CLOSED
            self._returned.notify_all()
            for step in list(self._steps):
                step.turn.last()
                step.free()
            self._runners.clear()
            self.release()
            self._resources.close()

    def leave_behind(self) -> None:
        """In a forked process: refuse every use, and never release what belongs to the parent's threads and files."""
        self._gate.refusal = FORKED
        for held in (self, *self._steps):
            # Destructors of engines wait for threads that are not here, and hang the exit of the process.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


LOADED: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(LOADED):
        session.leave_behind()


os.register_at_fork(after_in_child=_after_fork)
