"""Arrays named like a model's inputs, with what its outputs should be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from edgeattn.evaluation.accuracy import Score
from edgeattn.evaluation.array_score import score_arrays
from edgeattn.evaluation.data import (
    CALIBRATION_STEPS,
    PARITY_CALLS,
    TARGET_PREFIX,
    TRAINING_RUNS,
    Arrays,
    Data,
    Packed,
    Records,
    Run,
    Runner,
    digest_of,
    spread,
)
from edgeattn.evaluation.replay import record_calls, record_steps
from edgeattn.runtimes.buckets import cut_inputs, pad_inputs, route
from edgeattn.spec import GraphSpec, ModelSpec


@dataclass(frozen=True)
class ArraySample:
    """One set of inputs by name (batch axis included), and the targets by output name.

    Attributes:
        given: names of the inputs that the data holds; states among the others start empty.
    """

    inputs: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]
    given: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ArrayData(Data):
    """Sets of inputs (:class:`ArraySample`); the metric is what the targets call for.

    Attributes:
        others: graph -> samples to calibrate it on, of a model that has several; the first graph's are ``calibration``.
    """

    kind: ClassVar[str] = "arrays"

    calibration: tuple[ArraySample, ...]
    evaluation: tuple[ArraySample, ...]
    others: Mapping[str, tuple[ArraySample, ...]] = field(default_factory=dict)

    def check(self, spec: ModelSpec) -> None:
        """Whoever made the samples held them to the model already."""

    def record(self, source: Runner) -> Records:
        """Calls that are independent of each other, each in the size that it is routed to."""
        calls = _calls(source.spec, spread(self.evaluation, PARITY_CALLS))
        steps = {graph: record_calls(source.step(graph), own) for graph, own in calls.items()}
        return Records(steps=steps, calibration=self._calibration(source))

    def training_runs(self, spec: ModelSpec, limit: int = TRAINING_RUNS) -> dict[str, tuple[Run, ...]]:
        """A sample is a run of one step, and those of a graph with states are the steps of one run.

        Samples that a bucket pads keep their own length.
        """
        units = spec.units()
        runs: dict[str, tuple[Run, ...]] = {}
        for unit, every in self._by_unit(spec).items():
            bucket = spec.bucket(unit)
            carried = bool(units[unit][0].states)
            by_graph: dict[str, list[dict[str, np.ndarray]]] = {}
            for sample in every[:limit] if carried else spread(every, limit):  # steps of one run stay neighbours
                graph = units[unit][0] if bucket is None else route(spec, bucket, sample.inputs)
                inputs = {tensor.name: sample.inputs[tensor.name] for tensor in graph.inputs}
                by_graph.setdefault(graph.name, []).append({**inputs, **_named_targets(sample)})
            for name, steps in by_graph.items():
                runs[name] = (tuple(steps),) if carried else tuple((step,) for step in steps)
        return runs

    def with_targets(
        self, spec: ModelSpec, calibration: Mapping[str, tuple[dict[str, np.ndarray], ...]]
    ) -> dict[str, tuple[dict[str, np.ndarray], ...]]:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        labelled = dict(calibration)
        units = spec.units()
        for unit, every in self._by_unit(spec).items():
            taken = _taken(every, units[unit])
            for graph in units[unit]:
                if own := calibration.get(graph.name):
                    labelled[graph.name] = tuple(
                        {**inputs, **_named_targets(sample)} for inputs, sample in zip(own, taken, strict=True)
                    )
        return labelled

    def example(self) -> Arrays | None:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        return self.calibration[0].inputs if self.calibration else None

    def score(self, runner: Runner, samples: Iterable[ArraySample], on_sample: Callable[[], None]) -> Score | None:
        """As :func:`~edgeattn.evaluation.array_score.score_arrays`."""
        return score_arrays(runner.run, samples, on_sample)

    @classmethod
    def inputs_of(cls, sample: ArraySample) -> Arrays:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        return sample.inputs

    @classmethod
    def expected_of(cls, sample: ArraySample) -> bytes:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        return digest_of(sample.targets)

    @classmethod
    def pack(cls, sample: ArraySample) -> Packed:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        return Packed({"inputs": sample.inputs, "targets": sample.targets})

    @classmethod
    def unpack(cls, packed: Packed) -> ArraySample:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        return ArraySample(packed.arrays["inputs"], packed.arrays["targets"])

    def _by_unit(self, spec: ModelSpec) -> dict[str, tuple[ArraySample, ...]]:
        """What calibrates each graph, one that stands in several sizes counting once."""
        return {next(iter(spec.units())): self.calibration, **self.others}

    def _calibration(self, source: Runner) -> dict[str, tuple[dict[str, np.ndarray], ...]]:
        """Every sample for every size, so that a size that no sample is routed to has ranges too.

        Samples of a graph with states that do not hold them are the steps of one run, in their order: the source
        carries its states from each to the next, from the empty ones on.
        """
        spec = source.spec
        units = spec.units()
        calibration = {}
        for unit, every in self._by_unit(spec).items():
            samples = _taken(every, units[unit])
            bucket = spec.bucket(unit)
            for graph in units[unit]:
                sets = tuple(
                    dict(sample.inputs) if bucket is None else cut_inputs(bucket, graph, sample.inputs)
                    for sample in samples
                )
                given = any(state.input in sample.given for sample in samples for state in graph.states)
                calibration[graph.name] = _carried(source, graph, sets) if graph.states and not given else sets
        return calibration


def _calls(spec: ModelSpec, samples: Sequence[ArraySample]) -> dict[str, list[Arrays]]:
    """Samples by the graph that they are for, each padded to the size that it is routed to."""
    main = spec.bucket()
    if main is None:
        return {spec.graphs[0].name: [dict(sample.inputs) for sample in samples]}
    calls: dict[str, list[Arrays]] = {}
    for sample in samples:
        graph = route(spec, main, sample.inputs)
        calls.setdefault(graph.name, []).append(pad_inputs(main, graph, sample.inputs))
    return calls


def _taken(every: Sequence[ArraySample], graphs: Sequence[GraphSpec]) -> Sequence[ArraySample]:
    """Samples that calibrate: steps of one run stay neighbours, independent ones are spread over all."""
    run = any(graph.states for graph in graphs)
    return every[:CALIBRATION_STEPS] if run else spread(every, CALIBRATION_STEPS)


def _carried(source: Runner, graph: GraphSpec, samples: Sequence[Arrays]) -> tuple[dict[str, np.ndarray], ...]:
    records = record_steps(source.step(graph.name), samples)
    return tuple({**record.inputs, **record.states} for record in records)


def _named_targets(sample: ArraySample) -> dict[str, np.ndarray]:
    return {TARGET_PREFIX + name: value for name, value in sample.targets.items()}
