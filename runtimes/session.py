"""Session and Step: what every engine's adapter gives, in names and numpy.

An adapter supplies a :class:`Step` per graph and the facts about what it executes; everything that can be said once
(checking inputs, one-off runs, carrying states from buffer to buffer) stands here.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import InputError, unknown_name
from edgeattn.runtimes.buckets import route, run_padded
from edgeattn.runtimes.inputs import Arrays, check_finite, check_inputs, read_inputs
from edgeattn.runtimes.sharing import CLOSED, FORKED, Gate
from edgeattn.runtimes.step import EngineStep
from edgeattn.spec import GraphSpec, ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

    from edgeattn.runtimes.generation import GenerateOptions
    from edgeattn.runtimes.stream import Stream
    from edgeattn.tasks import Pipeline

Census = dict[str, dict[str, int]]
"""Op type -> {dtype: how many}."""


def count_op(census: Census, op: str, dtypes: list[str]) -> None:
    """Count one executed op under the narrowest dtype that it reads: int8 weights make an int8 op."""
    known = [dtype for dtype in NARROW_FIRST if dtype in dtypes]
    dtype = known[0] if known else (dtypes[0] if dtypes else "none")
    kinds = census.setdefault(op, {})
    kinds[dtype] = kinds.get(dtype, 0) + 1


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
        backend: its engine, a name of :data:`edgeattn.engines.ENGINES`.
        engine_version: of the engine's package.
        threads: compute threads of one run.
        load_ms: from the first touch of the model files to ready, the engine's import left out.
        engine_bytes: memory that the loaded engine takes by its own account, weights included; None where it is silent.
        assets: name -> file that came with the model, such as its tokenizer; there until the session is closed.
        task: what the model is for, as the bundle's manifest has it; None where it does not say.
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
        self.task: Mapping[str, Any] | None = None
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

    def pipeline(self) -> Pipeline:
        """The model asked in its task's own terms: ``session.pipeline()("a text")`` gives labels with scores.

        Raises:
            InputError: for a bundle that does not say what its model is for.
            MissingExtraError: without a library that the task's inputs need, such as tokenizers.
        """
        from edgeattn.tasks import Pipeline  # what streams alone needs none of it

        self.check_usable()
        return Pipeline(self, self.task, self.assets)

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
        return run_padded(bucket, chosen, given, lambda padded: self._run(chosen, check_inputs(chosen, padded)))

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

    def generate(
        self, prompt: Mapping[str, np.ndarray] | Sequence[int] | np.ndarray, options: GenerateOptions | None = None
    ) -> Iterator[int]:
        """Write a text, token by token; a session writes any number at once, each with caches of its own.

        Args:
            prompt: token ids, or the inputs by name: of a causal model ``input_ids``, of an encoder-decoder what its
                encoder takes.
            options: how; None is all as the model's ``generation_config.json`` says.

        Returns:
            the new tokens as they come, without the one that ends the text.

        Raises:
            InputError: for a model that writes no text, a prompt that is not one of its, or a text longer than its
                caches and positions; see :class:`~edgeattn.runtimes.GenerateOptions`.
            UnsupportedError: while writing, if the engine fails or its logits hold NaN.
        """
        from edgeattn.runtimes.generation import generate  # device code that never writes need not pay for it

        self.check_usable()
        return generate(self, prompt, options)

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

NARROW_FIRST = ("int4", "float8", "int8", "uint8", "int16", "bfloat16", "float16", "float32", "float64")
"""Dtypes that an op computes in; an op is counted under the first of these that it reads."""
