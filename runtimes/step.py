"""One graph of an engine, run step by step with its states."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import numpy as np

from edgeattn.errors import InputError
from edgeattn.runtimes.inputs import Arrays, check_finite
from edgeattn.runtimes.sharing import Gate, Turn
from edgeattn.spec import GraphSpec


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
        """Copy in states, keyed by the graph's input names; what else is there is not looked at.

        Raises:
            InputError: for a state that is missing or has another shape, and as the class says.
        """
        with self.turn:
            check_states(self.graph, values)
            self.write_states(values)
            self._runs = 0

    def _advance_checked(self) -> None:
        where = f"graph {self.graph.name!r}, step {self._runs}"
        check_finite("input", {**self.inputs, **self.read_states()}, where)
        self.advance()
        states, names = self.read_states(), {state.input: state.output for state in self.graph.states}
        check_finite("output", {**self.outputs, **{names[name]: array for name, array in states.items()}}, where)
        self._runs += 1


def check_states(graph: GraphSpec, values: Mapping[str, np.ndarray]) -> None:
    """Whether states are a graph's.

    Raises:
        InputError: for one that is missing or has another shape.
    """
    where = f"graph {graph.name!r}"
    for state in graph.states:
        if state.input not in values:
            raise InputError(f"{where} needs state {state.input!r}; given: {', '.join(values) or 'nothing'}")
        shape = np.shape(values[state.input])
        if shape != state.shape:
            raise InputError(f"state {state.input!r} of {where} must have shape {state.shape}, got {shape}")


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
