"""The float32 source, measured once: what every candidate and every bundle is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgeattn.errors import DataError
from edgeattn.evaluation.accuracy import Score, score_arrays, score_speech
from edgeattn.evaluation.data import ArrayData, Data, SpeechData
from edgeattn.evaluation.parity import Parity
from edgeattn.evaluation.replay import Record, record_calls, record_stream, record_utterances, replay
from edgeattn.model import Arrays, EdgeModel, ReferenceStep, one_thread
from edgeattn.profiling.measure import white_noise
from edgeattn.runtimes import Session, Stream
from edgeattn.spec import StreamSpec

PARITY_STEPS = 500  # with carried states: an error that grows shows by then
CALIBRATION_STEPS = 256
REFERENCE = "float32 source in torch"


class Progress(Protocol):
    """Where convert tells what it is doing."""

    def begin(self, what: str, total: int | None = None) -> None:
        """A new phase of ``total`` units, or of unknown length."""

    def advance(self) -> None:
        """One unit of the phase is done."""


@dataclass(frozen=True)
class Baseline:
    """What the float32 source does, measured once for all targets.

    Attributes:
        records: steps to replay on every candidate.
        calibration: full input sets per graph, states included; empty without data.
        score: the task's metric of the source, None without one.
        data: what the metric is measured on, None without.
    """

    records: Mapping[str, tuple[Record, ...]]
    calibration: Mapping[str, tuple[Arrays, ...]]
    score: Score | None
    data: Data | None


def baseline(model: EdgeModel, data: Data | None, progress: Progress) -> Baseline:
    """Run the float32 source: steps to replay, samples to calibrate with, and the task's metric."""
    if model.spec.stream is not None and not isinstance(data, ArrayData):
        with one_thread():
            return _stream_baseline(model, model.spec.stream, data, progress)
    if data is not None and not isinstance(data, ArrayData):
        raise DataError(f"{model.spec.name} does not take speech; its data is an npz with arrays named like its inputs")
    progress.begin("baseline: recording the source")
    graph = model.spec.graphs[0].name
    calls: dict[str, Sequence[Arrays]] = {name: [model.example[name]] for name in model.example}
    if data is not None:
        calls[graph] = [dict(sample.inputs) for sample in data.evaluation]
    recorded = {name: record_calls(ReferenceStep(model, name), given) for name, given in calls.items()}
    if data is None:
        return Baseline(recorded, {}, None, None)
    score_or_none = score_arrays(lambda inputs: model.run(inputs, graph), data.evaluation, progress.advance)
    return Baseline(recorded, {graph: tuple(dict(s.inputs) for s in data.calibration)}, score_or_none, data)


def _stream_baseline(model: EdgeModel, stream: StreamSpec, data: SpeechData | None, progress: Progress) -> Baseline:
    graph = model.spec.graphs[0].name
    step = ReferenceStep(model)
    progress.begin("baseline: recording the source")
    if data is None:  # parity needs no words: noise carries the states as far as speech does
        noise = white_noise(2 * stream.frontend.sample_rate)
        return Baseline({graph: record_stream(step, stream, [noise], PARITY_STEPS)}, {}, None, None)
    records = record_stream(step, stream, (u.samples for u in data.evaluation), PARITY_STEPS)
    calibration = record_utterances(step, stream, (u.samples for u in data.calibration), CALIBRATION_STEPS)
    progress.begin("baseline: word error of the source", len(data.evaluation))
    score = score_speech(Stream(step, stream), data.evaluation, progress.advance)
    inputs = tuple({**record.inputs, **record.states} for record in calibration)
    return Baseline({graph: records}, {graph: inputs}, score, data)


def replay_baseline(base: Baseline, session: Session, progress: Progress) -> Parity:
    """The recorded steps on a session: a stream carries its own states, calls that were recorded apart do not."""
    carried = session.spec.stream is not None and not isinstance(base.data, ArrayData)
    parities = [
        replay(records, session.step(graph), REFERENCE, carried, progress.advance)
        for graph, records in base.records.items()
    ]
    outputs = {name: output for parity in parities for name, output in parity.outputs.items()}
    return Parity(REFERENCE, sum(p.steps for p in parities), outputs)


def score_of(session: Session, data: Data, label: str, progress: Progress) -> Score | None:
    """The task's metric of a session, None where the data has no targets."""
    progress.begin(f"{label}: metric", len(data.evaluation))
    if isinstance(data, SpeechData):
        return score_speech(session.stream(), data.evaluation, progress.advance)
    return score_arrays(session.run, data.evaluation, progress.advance)
