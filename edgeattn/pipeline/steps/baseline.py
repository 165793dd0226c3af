"""The float32 source, measured once: what every candidate and every bundle is compared with."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgeattn.errors import DataError
from edgeattn.evaluation.accuracy import Score
from edgeattn.evaluation.data import PARITY_STEPS, Data, Records
from edgeattn.evaluation.parity import Parity, merged_parity
from edgeattn.evaluation.replay import Record, record_steps, record_stream, replay
from edgeattn.model import Arrays, EdgeModel, Reference, ReferenceStep, one_thread
from edgeattn.pipeline.steps.adversarial import Adversary
from edgeattn.pipeline.steps.written import calibrated_steps
from edgeattn.profiling.measure import white_noise
from edgeattn.progress import Progress
from edgeattn.runtimes import Session
from edgeattn.spec import GraphSpec, ModelSpec

EXAMPLE_CALLS = 5  # without data: an output of one number is 10 dB better or worse by chance
EXAMPLE_SECONDS, LEAST_CALLS = 5.0, 2
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
    if data is not None:
        data = agreeing(model, data, progress) or data
    base = recorded(model, data, progress)
    score = None if data is None else source_score(model, data, "baseline", progress)
    if score is not None and data is not None:
        refuse_broken(score, data)
    return replace(base, score=score)


def agreeing(model: EdgeModel, data: Data, progress: Progress) -> Data | None:
    """The data with the source's own answers as targets, where none is labelled; None where some are, or none can be.

    Raises:
        DataError: as :meth:`edgeattn.evaluation.data.Data.check`.
    """
    data.check(model.spec)
    progress.begin("baseline: answers of the source", len(data.evaluation))
    with _threads(model):
        return data.agreeing(Reference(model), progress.advance)


def source_score(model: EdgeModel, data: Data, label: str, progress: Progress) -> Score | None:
    """The task's metric of the float32 modules, None where the data has no targets."""
    progress.begin(f"{label}: {data.measures} of the source", len(data.evaluation))
    with _threads(model):
        return data.score(Reference(model), data.evaluation, progress.advance)


def recorded(model: EdgeModel, data: Data | None, progress: Progress) -> Baseline:
    """The baseline without the metric.

    Raises:
        DataError: for data of another kind of model.
    """
    base = _recorded(model, data, progress)
    return replace(base, adversary=Adversary(model, base.records))


def _recorded(model: EdgeModel, data: Data | None, progress: Progress) -> Baseline:
    if data is not None:
        data.check(model.spec)
    progress.begin("baseline: recording the source")
    with _threads(model):
        found = Records(steps={}, calibration={}) if data is None else data.record(Reference(model))
        records, carried = {}, set(found.carried)
        for graph in model.spec.graphs:
            if graph.name in found.steps:
                records[graph.name] = found.steps[graph.name]
                continue
            records[graph.name] = _made_up(model, graph)
            if graph.states:
                carried.add(graph.name)
        calibration = calibrated_steps(Reference(model), found.calibration)
    return Baseline(records, calibration, None, data, frozenset(carried))


def _made_up(model: EdgeModel, graph: GraphSpec) -> tuple[Record, ...]:
    """Steps of a graph that no data is given for; of one with states they are one run."""
    step, stream = ReferenceStep(model, graph.name), model.spec.stream
    if stream is not None and graph is model.spec.graphs[0]:
        # Parity needs no words: noise carries the states as far as speech does.
        return record_stream(step, stream, [white_noise(2 * stream.frontend.sample_rate)], PARITY_STEPS)
    if graph.states:  # an error in a state shows only in the steps after it
        return record_steps(step, [model.example[graph.name]] * CARRIED_STEPS)
    return example_records(model, graph.name)


def _threads(model: EdgeModel) -> contextlib.AbstractContextManager[None]:
    return one_thread() if model.spec.stream is not None else contextlib.nullcontext()


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


def example_records(model: EdgeModel, graph: str) -> tuple[Record, ...]:
    """The example of a graph and others like it, with what the source gives; for a model without data.

    The others are the example rolled along its last axes: ids stay in their range, masks keep what they show. Those
    that the source refuses, or on which it gives NaN, are left out; -inf is an answer like others. A source so slow
    that it has no answer to all of them within :data:`EXAMPLE_SECONDS` is asked for :data:`LEAST_CALLS` at least.
    """
    example, began = model.example[graph], time.monotonic()
    records = [Record(example, {}, _copied(model.run(example, graph)))]
    for places in range(1, EXAMPLE_CALLS):
        if len(records) >= LEAST_CALLS and time.monotonic() - began > EXAMPLE_SECONDS:
            break
        rolled = {name: np.roll(value, places, -1) if value.ndim else value for name, value in example.items()}
        with contextlib.suppress(Exception):  # forward may check its inputs in any way
            outputs = _copied(model.run(rolled, graph))
            if not any(np.isnan(value).any() for value in outputs.values() if value.dtype.kind == "f"):
                records.append(Record(rolled, {}, outputs))
    return tuple(records)


def _copied(outputs: Arrays) -> Arrays:
    """What the source gives may be a buffer that its next call writes."""
    return {name: array.copy() for name, array in outputs.items()}


def example_calls(model: EdgeModel, graph: str) -> list[Arrays]:
    """The inputs of :func:`example_records`."""
    return [dict(record.inputs) for record in example_records(model, graph)]


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
    return data.score(session, data.evaluation, progress.advance)
