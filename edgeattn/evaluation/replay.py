"""Steps recorded on one engine and replayed on another, each carrying its own states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeattn.evaluation.parity import Parity, ParityMeter
from edgeattn.runtimes import Step, Stream
from edgeattn.spec import StreamSpec

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Record:
    """One step: what went in (states apart, as they were before the step) and what came out (states excluded)."""

    inputs: Arrays
    states: Arrays
    outputs: Arrays


class Recorder:
    """A :class:`~edgeattn.runtimes.Step` that remembers what passes through another one."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.inputs = step.inputs
        self.outputs = step.outputs
        self.records: list[Record] = []

    def run(self) -> None:
        """One step of the recorded engine."""
        inputs = {name: value.copy() for name, value in self._step.inputs.items()}
        states = self._step.states()
        self._step.run()
        self.records.append(Record(inputs, states, {name: v.copy() for name, v in self._step.outputs.items()}))

    def reset(self) -> None:
        """Back to the initial states; the records stay."""
        self._step.reset()

    def states(self) -> dict[str, np.ndarray]:
        """States of the recorded engine."""
        return self._step.states()


def record_stream(step: Step, spec: StreamSpec, recordings: Iterable[np.ndarray], steps: int) -> tuple[Record, ...]:
    """Stream recordings one after another as a single stream that never resets, until ``steps`` steps are recorded.

    Recordings that are too short together are repeated.

    Args:
        recordings: float32 arrays, shape (n,), at the front end's rate.

    Raises:
        ValueError: if there is no sample to stream.
    """
    pieces = [np.asarray(samples) for samples in recordings]
    if not sum(len(piece) for piece in pieces):
        raise ValueError("a stream cannot be recorded from nothing")
    recorder = Recorder(step)
    stream = Stream(recorder, spec)  # a new stream resets its step
    while len(recorder.records) < steps:
        for piece in pieces:
            stream.push(piece)
            if len(recorder.records) >= steps:
                break
    return tuple(recorder.records[:steps])


def record_utterances(step: Step, spec: StreamSpec, recordings: Iterable[np.ndarray], limit: int) -> tuple[Record, ...]:
    """Stream recordings each from its own fresh state, so that the first, empty caches are among the records."""
    recorder = Recorder(step)
    stream = Stream(recorder, spec)  # a new stream resets its step
    for samples in recordings:
        stream.push(samples)
        stream.flush()
        if len(recorder.records) >= limit:
            break
    return tuple(recorder.records[:limit])


def record_calls(step: Step, calls: Iterable[Arrays]) -> tuple[Record, ...]:
    """Record calls that are independent of each other: the states start again each time."""
    recorder = Recorder(step)
    for inputs in calls:
        step.reset()
        _copy_in(step, inputs)
        recorder.run()
    return tuple(recorder.records)


def record_steps(step: Step, inputs: Sequence[Arrays]) -> tuple[Record, ...]:
    """Record steps of one run that carries its states from their initial values through all of them."""
    recorder = Recorder(step)
    step.reset()
    for values in inputs:
        _copy_in(step, values)
        recorder.run()
    return tuple(recorder.records)


def replay(
    records: Sequence[Record], step: Step, reference: str, carried: bool, on_step: Callable[[], None] = lambda: None
) -> Parity:
    """Feed the recorded inputs to another engine and compare the outputs.

    Args:
        carried: keep the other engine's own states from step to step (a stream), or reset before every call.
    """
    meter = ParityMeter()
    step.reset()
    for record in records:
        if not carried:
            step.reset()
        run_record(step, record)
        meter.add(record.outputs, step.outputs)
        on_step()
    step.reset()
    return meter.result(reference)


def run_record(step: Step, record: Record) -> None:
    """One step on a record's inputs, with the step's own states."""
    _copy_in(step, record.inputs)
    step.run()


def _copy_in(step: Step, inputs: Arrays) -> None:
    for name, buffer in step.inputs.items():
        np.copyto(buffer, inputs[name])
