"""Samples of a task: raw inputs encoded once, answers scored by the task's own metrics."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.evaluation.accuracy import Score, scaled
from edgeattn.evaluation.arrays import ArrayData, ArraySample
from edgeattn.evaluation.data import TRAINING_RUNS, Arrays, Data, Packed, Records, Run, Runner, digest_of
from edgeattn.evaluation.influence import score_of_statistics
from edgeattn.spec import ModelSpec
from edgeattn.tasks import Metric, Task, restored, stored
from edgeattn.tasks.task import Encoded

if TYPE_CHECKING:
    from typing_extensions import Self

FEWEST_TO_JUDGE = 20  # samples; of fewer a sound model may get all wrong, or say the same of all
AGREEMENT = "agreement"


@dataclass(frozen=True, kw_only=True)
class TaskSample:
    """A sample as the model takes it.

    Attributes:
        target: what should come out: what JSON can say, or arrays by name; None without a label.
        targets: per call what the outputs should be, for training.
    """

    encoded: Encoded
    target: Any = None
    targets: tuple[Arrays, ...] = ()

    def calls(self) -> list[ArraySample]:
        """Its calls as sets of inputs with targets."""
        targets = self.targets or ({},) * len(self.encoded.calls)
        return [ArraySample(c, t, frozenset(c)) for c, t in zip(self.encoded.calls, targets, strict=True)]

    @property
    def inputs(self) -> Arrays:
        """Of the first call."""
        return self.encoded.calls[0]


@dataclass(frozen=True)
class TaskData(Data):
    """Samples (:class:`TaskSample`) of a task.

    Attributes:
        task: fitted to the model.
        agrees: the targets are the source's own answers, since the data has none.
        metrics: the first gates; None for the task's own.
        cut: what of the evaluation samples is beyond the model's largest size, in words; empty if nothing is.
    """

    kind: ClassVar[str] = "task"

    calibration: tuple[TaskSample, ...]
    evaluation: tuple[TaskSample, ...]
    task: Task = field(kw_only=True)
    agrees: bool = field(default=False, kw_only=True)
    metrics: tuple[Metric, ...] | None = field(default=None, kw_only=True)
    cut: str = field(default="", kw_only=True)

    @cached_property
    def _arrays(self) -> ArrayData:
        """All calls of all samples, each a sample of its own: what is recorded, calibrated with and trained on."""
        return ArrayData(self.origin, _calls(self.calibration), _calls(self.evaluation))

    def check(self, spec: ModelSpec) -> None:
        """Whoever encoded the samples held them to the model already."""

    def record(self, source: Runner) -> Records:
        """See :class:`~edgeattn.evaluation.arrays.ArrayData`."""
        return self._arrays.record(source)

    def training_runs(self, spec: ModelSpec, limit: int = TRAINING_RUNS) -> dict[str, tuple[Run, ...]]:
        """See :class:`~edgeattn.evaluation.arrays.ArrayData`."""
        return self._arrays.training_runs(spec, limit)

    def with_targets(
        self, spec: ModelSpec, calibration: Mapping[str, tuple[dict[str, np.ndarray], ...]]
    ) -> dict[str, tuple[dict[str, np.ndarray], ...]]:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        return self._arrays.with_targets(spec, calibration)

    def example(self) -> Arrays | None:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        return self._arrays.example()

    # --- the metric ---------------------------------------------------------------------------------------------------

    def about(self) -> Mapping[str, Any]:
        """The task as a manifest has it. A metric of the user's is code, and does not travel.

        Raises:
            DataError: for a metric of the user's.
        """
        names = [metric.name for metric in self._metrics()]
        known = {metric.name for metric in (*self.task.metrics, self.task.agreement)}
        if strange := [name for name in names if name not in known]:
            raise DataError(f"{strange[0]} is a function of yours, which no device is sent: measure it here")
        return {"task": stored(self.task), "agrees": self.agrees, "metrics": names}

    @classmethod
    def scorer(cls, about: Mapping[str, Any]) -> Self:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        task = restored(about["task"])
        known = {metric.name: metric for metric in (*task.metrics, task.agreement)}
        metrics = tuple(known[name] for name in about["metrics"])
        return cls("", (), (), task=task, agrees=bool(about["agrees"]), metrics=metrics)

    def agreeing(self, source: Runner, on_sample: Callable[[], None]) -> Self | None:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        if any(sample.target is not None for sample in self.evaluation):
            return None
        told = []
        for sample in self.evaluation:
            answer = self.task.respond(source, sample.encoded)
            told.append(replace(sample, target=self.task.as_target(answer)))
            on_sample()
        return replace(self, evaluation=tuple(told), agrees=True)

    def score(self, runner: Runner, samples: Iterable[TaskSample], on_sample: Callable[[], None]) -> Score | None:
        """The task's metrics of what runs the model, None without targets; the first of them gates.

        Raises:
            DataError: for a metric that such samples do not allow for.
        """
        metrics = self._metrics()
        statistics: list[list[np.ndarray]] = [[] for _ in metrics]
        answers, targets, unlabelled = [], [], []
        for sample in samples:
            answer = self.task.respond(runner, sample.encoded)
            if sample.target is None:
                unlabelled.append(_digest(self.task.as_target(answer)))
            else:
                for metric, own in zip(metrics, statistics, strict=True):
                    own.append(np.asarray(metric.statistics(answer, sample.target), np.float64))
                answers.append(answer)
                targets.append(sample.target)
            on_sample()
        if not targets:
            return None
        broken = ""
        if len(targets) >= FEWEST_TO_JUDGE and not self.agrees:
            broken = self.task.broken(float(metrics[0].value(statistics[0])), answers, targets)
        if (
            metrics[0].name != "accuracy"
        ):  # a changed answer costs it one sample at most; what it costs others is not known
            unlabelled = []
        others = {}
        for metric, own in zip(metrics[1:], statistics[1:], strict=True):
            with contextlib.suppress(DataError):  # undefined on such samples, as a correlation of one class
                others[metric.name] = scaled(float(metric.value(own)), metric.unit)
        return score_of_statistics(metrics[0], statistics[0], self._name(metrics[0]), broken, unlabelled, others)

    def _metrics(self) -> tuple[Metric, ...]:
        if self.metrics is not None:
            return self.metrics
        return (self.task.agreement,) if self.agrees else self.task.metrics

    def _name(self, metric: Metric) -> str:
        if not self.agrees or metric.name == AGREEMENT:
            return metric.name
        return AGREEMENT if metric.name == "accuracy" else f"{AGREEMENT}-{metric.name}"

    # --- one sample ---------------------------------------------------------------------------------------------------

    @classmethod
    def inputs_of(cls, sample: TaskSample) -> Arrays:
        """Inputs of all calls, those of the second and later ones with their number."""
        calls = enumerate(sample.encoded.calls)
        return {(f"{number}.{name}" if number else name): a for number, call in calls for name, a in call.items()}

    @classmethod
    def expected_of(cls, sample: TaskSample) -> bytes:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        return _digest(sample.target).encode()

    @classmethod
    def pack(cls, sample: TaskSample) -> Packed:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        groups: dict[str, Arrays] = {str(number): call for number, call in enumerate(sample.encoded.calls)}
        facts: dict[str, Any] = {"calls": len(groups), "facts": dict(sample.encoded.facts)}
        if _is_arrays(sample.target):
            groups["target"] = sample.target
        else:
            facts["target"] = sample.target
        return Packed(groups, facts)

    @classmethod
    def unpack(cls, packed: Packed) -> TaskSample:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        calls = tuple(packed.arrays[str(number)] for number in range(packed.facts["calls"]))
        target = packed.arrays["target"] if "target" in packed.arrays else packed.facts["target"]
        return TaskSample(encoded=Encoded(calls=calls, facts=packed.facts["facts"]), target=target)


def _calls(samples: Sequence[TaskSample]) -> tuple[ArraySample, ...]:
    return tuple(call for sample in samples for call in sample.calls())


def _is_arrays(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(a, np.ndarray) for a in value.values())


def _digest(answer: Any) -> str:
    """An answer as a text: equal for equal ones alone."""
    if _is_arrays(answer):
        return digest_of(answer).hex()
    return json.dumps(answer, sort_keys=True)
