"""The float32 source, measured once: what every candidate and every bundle is compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeattn.errors import DataError
from edgeattn.evaluation.accuracy import Score, score_arrays, score_speech
from edgeattn.evaluation.data import TARGET_PREFIX, ArrayData, ArraySample, Data, SpeechData, spread
from edgeattn.evaluation.parity import Parity, merged_parity
from edgeattn.evaluation.replay import Record, record_calls, record_steps, record_stream, record_utterances, replay
from edgeattn.model import Arrays, EdgeModel, ReferenceStep, one_thread
from edgeattn.pipeline.steps.adversarial import Adversary
from edgeattn.profiling.measure import white_noise
from edgeattn.progress import Progress
from edgeattn.runtimes import Session, Stream
from edgeattn.runtimes.buckets import cut_inputs, pad_inputs, route
from edgeattn.spec import BucketSpec, GraphSpec, ModelSpec, StreamSpec

PARITY_STEPS = 500  # with carried states: an error that grows shows by then
PARITY_CALLS = 200  # of a model without states; the metric is measured on all samples
CALIBRATION_STEPS = 256
TRAINING_RUNS = 4096
EXAMPLE_CALLS = 5  # without data: an output of one number is 10 dB better or worse by chance
CARRIED_STEPS = 16  # of a graph with states that is no audio stream, such as one step of a decoder
REFERENCE = "float32 source in torch"
PRUNED = "pruned float32 model in torch"


@dataclass(frozen=True)
class Baseline:
    """What the float32 source does, measured once for all targets.

    Attributes:
        records: steps to replay on every candidate, by graph.
        carried: graphs whose records are one run with carried states; those of the others are calls of their own.
        reference: what was recorded, in words.
        adversary: inputs that the records do not hold, for every graph; None where nothing is recorded.
        calibration: full input sets per graph, states included; empty without data.
        score: the task's metric of the source, None without one.
        data: what the metric is measured on, None without.
    """

    records: Mapping[str, tuple[Record, ...]]
    calibration: Mapping[str, tuple[Arrays, ...]]
    score: Score | None
    data: Data | None
    carried: frozenset[str] = frozenset()
    reference: str = REFERENCE
    adversary: Adversary | None = None


def baseline(model: EdgeModel, data: Data | None, progress: Progress) -> Baseline:
    """Run the float32 source: steps to replay, samples to calibrate with, and the task's metric.

    Raises:
        DataError: for data of another kind of model, or on which the source itself fails.
    """
    base = recorded(model, data, progress)
    score = None if data is None else source_score(model, data, "baseline", progress)
    if score is not None and data is not None:
        refuse_broken(score, data)
    return replace(base, score=score)


def source_score(model: EdgeModel, data: Data, label: str, progress: Progress) -> Score | None:
    """The task's metric of the float32 modules, None where the data has no targets."""
    stream = model.spec.stream
    if isinstance(data, SpeechData):
        assert stream is not None, "checked by recorded()"
        progress.begin(f"{label}: word error of the source", len(data.evaluation))
        with one_thread():
            return score_speech(Stream(ReferenceStep(model), stream), data.evaluation, progress.advance)
    progress.begin(f"{label}: metric of the source", len(data.evaluation))
    main = model.spec.bucket()
    name = main.name if main is not None else model.spec.graphs[0].name
    return score_arrays(lambda inputs: model.run(inputs, name), data.evaluation, progress.advance)


def recorded(model: EdgeModel, data: Data | None, progress: Progress) -> Baseline:
    """The baseline without the metric.

    Raises:
        DataError: for data of another kind of model.
    """
    base = _recorded(model, data, progress)
    return replace(base, adversary=Adversary(model, base.records))


def _recorded(model: EdgeModel, data: Data | None, progress: Progress) -> Baseline:
    if model.spec.stream is not None and not isinstance(data, ArrayData):
        with one_thread():
            return _stream_baseline(model, model.spec.stream, data, progress)
    if data is not None and not isinstance(data, ArrayData):
        raise DataError(f"{model.spec.name} does not take speech; its data is an npz with arrays named like its inputs")
    progress.begin("baseline: recording the source")
    main = model.spec.bucket()
    calls = {} if data is None else _calls(model.spec, main, spread(data.evaluation, PARITY_CALLS))
    records: dict[str, tuple[Record, ...]] = {}
    carried = set()
    for graph in model.spec.graphs:
        step = ReferenceStep(model, graph.name)
        if graph.name in calls:
            records[graph.name] = record_calls(step, calls[graph.name])
        elif graph.states:  # an error in a state shows only in the steps after it
            records[graph.name] = record_steps(step, [model.example[graph.name]] * CARRIED_STEPS)
            carried.add(graph.name)
        else:
            records[graph.name] = record_calls(step, example_calls(model, graph.name))
    if data is None:
        return Baseline(records, {}, None, None, frozenset(carried))
    return Baseline(records, _calibration(model, data), None, data, frozenset(carried))


def refuse_broken(score: Score, data: Data) -> None:
    """Refuse to compare with a source that the metric says nothing about: an artifact as broken would pass.

    Raises:
        DataError: saying what is wrong with the metric of the source.
    """
    if score.broken:
        raise DataError(
            f"{data.origin}: the float32 source itself fails on this data ({score.broken}), so a loss cannot be told; "
            "check labels, their order and the preprocessing, or leave --data's targets out"
        )


def example_calls(model: EdgeModel, graph: str) -> list[Arrays]:
    """The example of a graph and others like it, for a model without data.

    The others are the example rolled along its last axes: ids stay in their range, masks keep what they show. Those
    that the source refuses, or on which it gives NaN, are left out; -inf is an answer like others.
    """
    example = model.example[graph]
    calls = [example]
    for places in range(1, EXAMPLE_CALLS):
        rolled = {name: np.roll(value, places, -1) if value.ndim else value for name, value in example.items()}
        with contextlib.suppress(Exception):  # forward may check its inputs in any way
            outputs = model.run(rolled, graph)
            if not any(np.isnan(value).any() for value in outputs.values() if value.dtype.kind == "f"):
                calls.append(rolled)
    return calls


def _calls(spec: ModelSpec, main: BucketSpec | None, samples: Sequence[ArraySample]) -> dict[str, list[Arrays]]:
    """Samples by the graph that they are for, each padded to the size that it is routed to."""
    if main is None:
        return {spec.graphs[0].name: [dict(sample.inputs) for sample in samples]}
    calls: dict[str, list[Arrays]] = {}
    for sample in samples:
        graph = route(spec, main, sample.inputs)
        calls.setdefault(graph.name, []).append(pad_inputs(main, graph, sample.inputs))
    return calls


def _calibration(model: EdgeModel, data: ArrayData) -> dict[str, tuple[Arrays, ...]]:
    """Every sample for every size, so that a size that no sample is routed to has ranges too.

    Samples of a graph with states that do not hold them are the steps of one run, in their order: the source carries
    its states from each to the next, from the empty ones on.
    """
    spec = model.spec
    units = spec.units()
    given = {next(iter(units)): data.calibration, **data.others}
    calibration = {}
    for unit, every in given.items():
        samples = _taken(every, units[unit])
        bucket = next((bucket for bucket in spec.buckets if bucket.name == unit), None)
        for graph in units[unit]:
            calibration[graph.name] = tuple(
                dict(sample.inputs) if bucket is None else cut_inputs(bucket, graph, sample.inputs)
                for sample in samples
            )
            if graph.states and not any(state.input in sample.given for sample in samples for state in graph.states):
                calibration[graph.name] = _carried(model, graph.name, calibration[graph.name])
    return calibration


def _taken(every: Sequence[ArraySample], graphs: Sequence[GraphSpec]) -> Sequence[ArraySample]:
    """Samples that calibrate: steps of one run stay neighbours, independent ones are spread over all."""
    run = any(graph.states for graph in graphs)
    return every[:CALIBRATION_STEPS] if run else spread(every, CALIBRATION_STEPS)


def with_targets(
    model: EdgeModel, calibration: Mapping[str, tuple[Arrays, ...]], data: Data | None
) -> dict[str, tuple[Arrays, ...]]:
    """Calibration samples with what their outputs should be, as ``target_NAME``, for a loss of the user's."""
    labelled = dict(calibration)
    if isinstance(data, ArrayData):
        units = model.spec.units()
        for unit, every in {next(iter(units)): data.calibration, **data.others}.items():
            for graph in units[unit]:
                own = calibration.get(graph.name)
                if not own:
                    continue
                taken = _taken(every, units[unit])
                labelled[graph.name] = tuple(
                    {**inputs, **{TARGET_PREFIX + name: value for name, value in sample.targets.items()}}
                    for inputs, sample in zip(own, taken, strict=True)
                )
    return labelled


def _carried(model: EdgeModel, graph: str, samples: Sequence[Arrays]) -> tuple[Arrays, ...]:
    records = record_steps(ReferenceStep(model, graph), samples)
    return tuple({**record.inputs, **record.states} for record in records)


Run = tuple[Arrays, ...]
"""Inputs of one step after another, states left out."""


def training_runs(model: EdgeModel, data: Data, limit: int = TRAINING_RUNS) -> dict[str, tuple[Run, ...]]:
    """What a student of the model is trained on: runs of inputs without states, from the calibration samples alone.

    An utterance is a run, its feature chunks as a :class:`~edgeattn.runtimes.Stream` feeds them, the flush included; of
    other data a sample is a run of one step, and those of a graph with states are the steps of one run. Samples that a
    bucket pads keep their own length. A sample's targets stand beside its inputs, as ``target_NAME``.

    Args:
        limit: at most so many utterances or samples per graph.

    Returns:
        graph -> runs.

    Raises:
        DataError: if the data is of another kind than the model's.
    """
    spec = model.spec
    if isinstance(data, SpeechData):
        if spec.stream is None:
            raise DataError(f"{spec.name} does not take speech; its data is an npz with arrays named like its inputs")
        feeds = _Feeds(spec)
        stream = Stream(feeds, spec.stream)
        for utterance in spread(data.calibration, limit):
            stream.push(utterance.samples)
            stream.flush()
        return {spec.graphs[0].name: tuple(tuple(run) for run in feeds.runs if run)}
    units = spec.units()
    runs: dict[str, tuple[Run, ...]] = {}
    for unit, every in {next(iter(units)): data.calibration, **data.others}.items():
        bucket = next((bucket for bucket in spec.buckets if bucket.name == unit), None)
        carried = bool(units[unit][0].states)
        by_graph: dict[str, list[Arrays]] = {}
        for sample in every[:limit] if carried else spread(every, limit):  # steps of one run stay neighbours
            graph = units[unit][0] if bucket is None else route(spec, bucket, sample.inputs)
            inputs = {tensor.name: sample.inputs[tensor.name] for tensor in graph.inputs}
            targets = {TARGET_PREFIX + name: array for name, array in sample.targets.items()}
            by_graph.setdefault(graph.name, []).append({**inputs, **targets})
        for name, steps in by_graph.items():
            runs[name] = (tuple(steps),) if carried else tuple((step,) for step in steps)
    return runs


class _Feeds:
    """A step of a stream that computes nothing and keeps what it is fed, one run per utterance."""

    def __init__(self, spec: ModelSpec) -> None:
        graph = spec.graphs[0]
        self.inputs: Arrays = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in graph.inputs}
        self.outputs: Arrays = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in graph.outputs}
        self.runs: list[list[Arrays]] = [[]]

    def run(self) -> None:
        """Keep the inputs."""
        self.runs[-1].append({name: array.copy() for name, array in self.inputs.items()})

    def reset(self) -> None:
        """The next run begins."""
        self.runs.append([])

    def states(self) -> Arrays:
        """There are none."""
        return {}


def _stream_baseline(model: EdgeModel, stream: StreamSpec, data: SpeechData | None, progress: Progress) -> Baseline:
    graph = model.spec.graphs[0].name
    step = ReferenceStep(model)
    progress.begin("baseline: recording the source")
    if data is None:  # parity needs no words: noise carries the states as far as speech does
        noise = white_noise(2 * stream.frontend.sample_rate)
        noisy = {graph: record_stream(step, stream, [noise], PARITY_STEPS)}
        return Baseline(noisy, {}, None, None, frozenset({graph}))
    records = record_stream(step, stream, (u.samples for u in data.evaluation), PARITY_STEPS)
    calibration = record_utterances(step, stream, (u.samples for u in data.calibration), CALIBRATION_STEPS)
    inputs = tuple({**record.inputs, **record.states} for record in calibration)
    return Baseline({graph: records}, {graph: inputs}, None, data, frozenset({graph}))


def replay_baseline(base: Baseline, session: Session, progress: Progress) -> dict[str, Parity]:
    """The recorded steps on a session, by graph: a run carries its own states, calls recorded apart do not."""
    return {
        graph: replay(records, session.step(graph), base.reference, graph in base.carried, progress.advance)
        for graph, records in base.records.items()
    }


def whole_parity(spec: ModelSpec, parities: Mapping[str, Parity]) -> Parity:
    """The parities of all graphs as one; the sizes of a graph count as that graph."""
    units = {
        name: [parities[graph.name] for graph in graphs if graph.name in parities]
        for name, graphs in spec.units().items()
    }
    return merged_parity({name: found for name, found in units.items() if found})


def score_of(session: Session, data: Data, label: str, progress: Progress) -> Score | None:
    """The task's metric of a session, None where the data has no targets."""
    progress.begin(f"{label}: metric", len(data.evaluation))
    if isinstance(data, SpeechData):
        return score_speech(session.stream(), data.evaluation, progress.advance)
    return score_arrays(session.run, data.evaluation, progress.advance)
