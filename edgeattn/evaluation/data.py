"""The user's data (``--data``): what every kind of sample has in common, and how samples are divided.

A kind of data is one class here or beside it (:mod:`~edgeattn.evaluation.speech`, :mod:`~edgeattn.evaluation.arrays`)
and one row in :data:`edgeattn.evaluation.kinds.KINDS`; nothing else asks which kind it is. What calibrates and what
measures is drawn in one way for every kind: see :func:`divide`.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.evaluation.accuracy import Score
from edgeattn.evaluation.replay import Record
from edgeattn.runtimes import Step, Stream
from edgeattn.spec import ModelSpec

if TYPE_CHECKING:
    from typing_extensions import Self

TARGET_PREFIX = "target_"
SPLIT = "split"  # array, key or column that says what a sample is for
MEASURED_SPLITS = ("test", "dev", "val", "valid", "validation", "eval")  # unless said, the first of these that is there
TRAIN = "train"
IGNORED = -100  # a label that is none: the ignored index of torch and transformers
CALIBRATION_SHARE = 5  # without splits a fifth of the samples calibrates and the others measure
SEED = 0
MAX_ROWS = 1_000_000
MAX_TABLE_BYTES = 2**28

PARITY_STEPS = 500  # with carried states: an error that grows shows by then
PARITY_CALLS = 200  # of a model without states; the metric is measured on all samples
CALIBRATION_STEPS = 256
TRAINING_RUNS = 4096

T = TypeVar("T")
Arrays = Mapping[str, np.ndarray]
Run = tuple[dict[str, np.ndarray], ...]
"""Inputs of one step after another, states left out."""


class Runner(Protocol):
    """What runs a model: a :class:`~edgeattn.runtimes.Session`, or the float32 source."""

    @property
    def spec(self) -> ModelSpec:
        """Names, shapes, states."""

    def run(self, inputs: Arrays) -> Arrays:
        """One call of the first graph, in the smallest of its sizes that fits; outputs by name."""

    def step(self, graph: str | None = None) -> Step:
        """A step of a graph, the first by default, with states of its own."""

    def stream(self) -> Stream:
        """Samples in, words out, of a model that streams."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """What the source does on some data.

    Attributes:
        steps: graph -> steps on what measures, to replay on every candidate; a graph that the data says nothing of is
            left out.
        carried: graphs whose steps are one run with carried states; those of the others are calls of their own.
        calibration: graph -> full input sets, states included.
    """

    steps: Mapping[str, tuple[Record, ...]]
    carried: frozenset[str] = frozenset()
    calibration: Mapping[str, tuple[dict[str, np.ndarray], ...]]


@dataclass(frozen=True)
class Packed:
    """A sample as it travels to a device: arrays by group and name, and what JSON can say."""

    arrays: Mapping[str, Arrays] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data(abc.ABC):
    """Samples to calibrate on and other ones to measure on.

    Attributes:
        kind: what its kind is called where samples travel to a device.
        measures: what its metric is called while it is measured.
        origin: what the samples are, in words for the report.
    """

    kind: ClassVar[str]
    measures: ClassVar[str] = "metric"

    origin: str
    calibration: tuple[Any, ...]
    evaluation: tuple[Any, ...]

    def limited(self, samples: int) -> Self:
        """The same data with at most this many samples to measure on, the first that were drawn; 0 for all."""
        return replace(self, evaluation=self.evaluation[: samples or None])

    # --- on a model ---------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def check(self, spec: ModelSpec) -> None:
        """Do nothing.

        Raises:
            DataError: if the model is not one that takes such samples.
        """

    @abc.abstractmethod
    def record(self, source: Runner) -> Records:
        """Run the source on what measures and on what calibrates; :meth:`check` has passed.

        Samples that measure are spread evenly: at most :data:`PARITY_STEPS` steps, or :data:`PARITY_CALLS` calls.
        """

    @abc.abstractmethod
    def training_runs(self, spec: ModelSpec, limit: int = TRAINING_RUNS) -> dict[str, tuple[Run, ...]]:
        """What a student of a model is trained on, from the calibration samples alone: runs of inputs by graph.

        A sample's targets stand beside its inputs, as ``target_NAME``.

        Args:
            limit: at most this many samples per graph.

        Raises:
            DataError: as :meth:`check`.
        """

    def with_targets(
        self,
        spec: ModelSpec,  # noqa: ARG002
        calibration: Mapping[str, tuple[dict[str, np.ndarray], ...]],
    ) -> dict[str, tuple[dict[str, np.ndarray], ...]]:
        """Calibration inputs of :meth:`record` with what their outputs should be, as ``target_NAME``, if that is known.

        Args:
            calibration: graph -> input sets.
        """
        return dict(calibration)

    def example(self) -> Arrays | None:
        """One set of inputs of the first graph; None where only a run of the model makes one."""
        return None

    # --- the metric ---------------------------------------------------------------------------------------------------

    def about(self) -> Mapping[str, Any]:
        """What :meth:`score` needs to know beside the samples, as JSON can say it; it travels to a device with them."""
        return {}

    @classmethod
    def scorer(cls, about: Mapping[str, Any]) -> Self:  # noqa: ARG003
        """Data without samples, to score those that come: :meth:`about` of what was sent."""
        return cls("", (), ())

    def agreeing(self, source: Runner, on_sample: Callable[[], None]) -> Self | None:  # noqa: ARG002
        """The same samples with the source's own answers as targets, where none has a target; None if there are some.

        What is measured on them is how far what replaces the source agrees with it.
        """
        return None

    @abc.abstractmethod
    def score(self, runner: Runner, samples: Iterable[Any], on_sample: Callable[[], None]) -> Score | None:
        """The task's metric of what runs the model, None without targets.

        Args:
            samples: read one at a time, so that a small device holds one in memory.
            on_sample: called after each.

        Raises:
            DataError: for samples that do not allow for a metric.
        """

    # --- one sample ---------------------------------------------------------------------------------------------------

    @classmethod
    @abc.abstractmethod
    def inputs_of(cls, sample: Any) -> Arrays:
        """What a sample gives to the model, by name."""

    @classmethod
    @abc.abstractmethod
    def expected_of(cls, sample: Any) -> bytes:
        """What should come out, as bytes: the same for the same labels alone."""

    @classmethod
    @abc.abstractmethod
    def pack(cls, sample: Any) -> Packed:
        """All of a sample that its metric needs."""

    @classmethod
    @abc.abstractmethod
    def unpack(cls, packed: Packed) -> Any:
        """The sample of :meth:`pack`."""


def digest_of(arrays: Arrays) -> bytes:
    """SHA-256 of arrays by name: of their numbers, dtypes and shapes, in whatever order they are given."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.digest()


@dataclass(frozen=True)
class Listed:
    """All samples of some data, as far as it takes to divide them.

    Attributes:
        keys: per sample what it is a sample of, such as its inputs: those of one key never stand on both sides.
        splits: per sample its split, "" for none.
        labels: per sample its class, or None: each class gets its share of whatever is drawn.
        ordered: whether they are the steps of one run, which stay neighbours and in order.
    """

    keys: Sequence[Hashable]
    splits: Sequence[str]
    labels: Sequence[Hashable]
    ordered: bool = False


@dataclass(frozen=True)
class Divided:
    """Rows by what they are for, as their indices, in the order in which they are drawn.

    Attributes:
        split: what is measured, None without splits.
    """

    split: str | None
    calibration: tuple[int, ...]
    evaluation: tuple[int, ...]


def divide(listed: Listed, split: str | None, where: str, limit: int = 0) -> Divided:
    """Which samples calibrate and which measure: drawn by a seeded permutation in which each class has its share.

    With splits, ``split`` (unless said the first of :data:`MEASURED_SPLITS` that is there) measures; ``train``
    calibrates, or where there is none whatever is not measured. Without splits a fifth calibrates and the others
    measure. Of several samples with the same key and label one is taken: a repeated one tells nothing new.

    Args:
        split: what to measure on.
        where: the data, for the message.
        limit: at most this many samples to measure on and as many to calibrate on; 0 for all.

    Raises:
        DataError: if a split is asked for that is not there.
    """
    splits = listed.splits
    split = _measured_split(set(splits) - {""}, split, where)
    keys: Sequence[Hashable] = range(len(splits)) if listed.ordered else listed.keys  # steps of a run may be alike
    order = range(len(splits)) if listed.ordered else drawn(listed.labels)
    if split is None:
        distinct = list(dict.fromkeys(keys[i] for i in order))
        fifth = set(distinct[: -(-len(distinct) // CALIBRATION_SHARE)])
        calibration = [i for i in order if keys[i] in fifth]
        evaluation = [i for i in order if keys[i] not in fifth]
    else:
        evaluation = [i for i in order if splits[i] == split]
        measured = {keys[i] for i in evaluation}  # a sample may stand in two lines
        others = {TRAIN} if TRAIN in splits else set(splits) - {split}
        calibration = [i for i in order if splits[i] in others and keys[i] not in measured]
    if not listed.ordered:
        calibration, evaluation = (_once(listed, part) for part in (calibration, evaluation))
    end = limit or None
    return Divided(split, tuple(calibration[:end]), tuple(evaluation[:end]))


def _measured_split(there: Collection[str], asked: str | None, where: str) -> str | None:
    """The split to measure on; None where the data has none but what it is trained on."""
    names = ", ".join(sorted(there))
    if asked is not None:
        if asked not in there:
            raise DataError(f"{where}: no split {asked!r}; it has {names or 'no splits'}")
        return asked
    found = next((name for name in MEASURED_SPLITS if name in there), None)
    if found is None and set(there) - {TRAIN}:
        raise DataError(
            f"{where}: its splits are {names}, and none is called {', '.join(MEASURED_SPLITS)}: name one with --split"
        )
    return found


def drawn(labels: Sequence[Hashable]) -> list[int]:
    """All indices in a random order, the same each time, of which any beginning holds each label in its share.

    The k-th of n samples with a label goes to (k - 1/2) / n of the way: proportional stratified sampling, which varies
    no more than simple random sampling does, so that bounds for the one hold for the other.

    Source: Cochran, "Sampling Techniques", 1977, section 5.6.
    """
    order = np.random.default_rng(SEED).permutation(len(labels)).tolist()
    strata: dict[Hashable, list[int]] = {}
    for index in order:
        strata.setdefault(labels[index], []).append(index)
    places = {i: (rank + 0.5) / len(own) for own in strata.values() for rank, i in enumerate(own)}
    return sorted(order, key=places.__getitem__)  # stable: of equal places the permutation decides


def _once(listed: Listed, chosen: Sequence[int]) -> list[int]:
    seen: dict[tuple[Hashable, Hashable], int] = {}
    for index in chosen:
        seen.setdefault((listed.keys[index], listed.labels[index]), index)
    return list(seen.values())


def spread(items: Sequence[T], limit: int) -> list[T]:
    """At most that many items, evenly spread over all of them: neighbours in a stream are alike. 0 for all."""
    if not limit or len(items) <= limit:
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def enough_to_calibrate(data: Data | None, asked: int) -> None:
    """Hold the data to a number of calibration samples that was asked for.

    Raises:
        DataError: telling how many there are.
    """
    count = 0 if data is None else len(data.calibration)
    if count < asked:
        where = "no data" if data is None else data.origin
        raise DataError(
            f"{where}: {asked} calibration samples were asked for and {count} are there (without a split one in "
            f"{CALIBRATION_SHARE} calibrates); give more data, or ask for fewer"
        )
