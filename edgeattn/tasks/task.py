"""What every task has: a form of data, pre- and post-processing, metrics, and answers that people can read.

A task that is fitted to a model is a frozen dataclass whose fields are plain values: they are the manifest's ``task``,
so that a device has them too. What it needs of files (a tokenizer) are the model's assets. Nothing in it is code.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from edgeattn.errors import DataError
from edgeattn.spec import GraphSpec, ModelSpec
from edgeattn.tasks.metric import Metric

if TYPE_CHECKING:
    from typing_extensions import Self

Arrays = Mapping[str, np.ndarray]
Assets = Mapping[str, Path]
"""Name -> file that travels with the model."""


class Runs(Protocol):
    """What runs a model: a session, or the float32 source."""

    @property
    def spec(self) -> ModelSpec:
        """Names, shapes, states."""

    def run(self, inputs: Arrays) -> Arrays:
        """One call of the first graph; outputs by name."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """A model, as far as a task needs to know it.

    Attributes:
        config: its config.json, empty without.
        processor: its preprocessor_config.json, empty without.
        labels: names of its classes in their order; empty where nothing names them.
    """

    spec: ModelSpec
    assets: Assets = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    @property
    def graph(self) -> GraphSpec:
        """The first graph, at its largest size."""
        return next(iter(self.spec.units().values()))[-1]

    @property
    def told(self) -> str:
        """Its inputs and outputs, for messages."""
        graph = self.graph
        taken = ", ".join(f"{tensor.name}{list(tensor.shape)}" for tensor in graph.all_inputs)
        given = ", ".join(f"{tensor.name}{list(tensor.shape)}" for tensor in graph.outputs)
        return f"takes {taken} and gives {given}"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample of the data, as its files say it.

    Attributes:
        given: what the task's model is asked, raw: a text, a path, an array.
        target: what should come out, as JSON can say it; None without a label.
        split: what it is for, "" for nothing in particular.
        place: FILE:LINE, for messages.
        key: samples with the same key never stand on both sides of a split.
        stratum: each stratum gets its share of whatever is drawn.
    """

    given: Any
    target: Any = None
    split: str = ""
    place: str = ""
    key: Hashable = None
    stratum: Hashable = None


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A raw input as the model takes it.

    Attributes:
        calls: inputs of one call after another, by name.
        facts: plain values that the answer needs, such as where in the text each token lies.
        cut: where what is beyond the model's largest size was left out, "at 128 tokens"; empty if nothing was.
    """

    calls: tuple[Arrays, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    cut: str = ""


@dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """A kind of task, fitted to a model.

    Attributes:
        name: as the field calls it.
        summary: one line for ``edgeattn tasks``.
        forms: the forms of ``--data``, in words.
        measured: names of the metrics, the one that gates first.
        plain: whether an answer needs nothing but the outputs: then arrays can be its samples.
        model_tasks: what a model may say that it is for (``ModelSpec.task``) for this task to be its own.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    forms: ClassVar[str]
    measured: ClassVar[tuple[str, ...]]
    plain: ClassVar[bool] = False
    model_tasks: ClassVar[tuple[str, ...]] = ()

    # --- on the workstation -------------------------------------------------------------------------------------------

    @classmethod
    @abc.abstractmethod
    def fitted(cls, model: Described) -> Self:
        """The task for a model.

        Raises:
            DataError: saying what such a model takes and gives, if this one does not.
        """

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a path looks like this task's form of data; which file it is, not whether it is right."""
        return path.exists()

    @classmethod
    def recognises_arrays(cls, path: Path) -> bool:
        """Whether an .npz is this task's own form of data, and not arrays named like the model's inputs."""
        return False

    @abc.abstractmethod
    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """All samples of ``--data``.

        Raises:
            DataError: naming the line or file, and what was expected there.
        """

    def remark(self, path: Path) -> str:
        """What a reader of the figures must know of how the data was read; empty for nothing."""
        return ""

    def array_targets(self, target: Any, encoded: Encoded) -> tuple[Arrays, ...]:
        """What the outputs of each call should be, by output, for training; empty where that is not known."""
        return ({},) * len(encoded.calls)

    # --- on a device, too ---------------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """The first one gates, the others are told."""

    @abc.abstractmethod
    def parsed(self, text: str) -> Any:
        """The raw input of a command line's argument: the text itself, or what the file of that name holds.

        Raises:
            DataError: if it is not what the task takes.
        """

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """What makes inputs of raw ones; made once, since it may read a tokenizer.

        The callable raises DataError for what cannot be encoded.
        """
        raise NotImplementedError  # of a task whose samples are arrays already

    @abc.abstractmethod
    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> Any:
        """The answer that the outputs of all calls are, as JSON can say it; what metrics compare."""

    def respond(self, runner: Runs, encoded: Encoded) -> Any:
        """The answer to a raw input: the calls, one after another."""
        return self.answer([runner.run(call) for call in encoded.calls], encoded.facts)

    def described(self, answer: Any) -> Any:
        """The answer for people and programs: names in place of numbers."""
        return answer

    def line(self, answer: Any) -> str:
        """The answer in one line."""
        return str(self.described(answer))

    def as_target(self, answer: Any) -> Any:
        """An answer of the source as the target of those that replace it, where nothing is labelled."""
        return answer

    @property
    def agreement(self) -> Metric:
        """What is measured against the source's own answers, where nothing is labelled."""
        return self.metrics[0]

    def broken(self, value: float, answers: Sequence[Any], targets: Sequence[Any]) -> str:
        """Why the gating metric tells nothing of a model that answers so, such as always the same; empty if it does."""
        return ""


def the_output(model: Described, rank: int, preferred: Sequence[str], what: str) -> tuple[str, tuple[int, ...]]:
    """The output of a model that a task reads: one of the preferred names, or the only one of that rank.

    Args:
        what: the model takes and gives, for the message.

    Raises:
        DataError: if there is none, or no way to choose.
    """
    outputs = {tensor.name: tensor.shape for tensor in model.graph.outputs}
    fitting = [name for name, shape in outputs.items() if len(shape) == rank]
    name = next((name for name in preferred if name in fitting), fitting[0] if len(fitting) == 1 else None)
    if name is None:
        raise DataError(f"expected {what}; this model {model.told}")
    return name, outputs[name]
