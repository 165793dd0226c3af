"""The user's data (``--data``): recordings with transcripts, or arrays named like the model's inputs.

A file of the wrong form is refused with its line and what was expected. What calibrates and what measures is drawn in
one way for every form: see :func:`divide`.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgeattn.audio import Floats, read_audio
from edgeattn.errors import DataError, InputError
from edgeattn.guards.confined import confined, confined_file, regular_file
from edgeattn.guards.npz import read_npz
from edgeattn.spec import BucketSpec, GraphSpec, ModelSpec

TRANSCRIPTS = "transcripts.tsv"
TARGET_PREFIX = "target_"
SPLIT = "split"  # array, key or column that says what a sample is for
MEASURED_SPLITS = ("test", "dev", "val", "valid", "validation", "eval")  # unless said, the first of these that is there
TRAIN = "train"
IGNORED = -100  # a label that is none: the ignored index of torch and transformers
CALIBRATION_SHARE = 5  # without splits a fifth of the samples calibrates and the others measure
SEED = 0
MAX_ROWS = 1_000_000
MAX_TABLE_BYTES = 2**28

T = TypeVar("T")


@dataclass(frozen=True)
class Utterance:
    """A recording and what is said in it.

    Attributes:
        samples: float32 in [-1, 1], shape (n,), at the model's rate.
        words: the words in order.
        speaker: who says them, "" if unknown.
    """

    samples: Floats
    words: tuple[str, ...]
    speaker: str = ""


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
class SpeechData:
    """Recordings to calibrate on and other ones to measure on.

    Attributes:
        origin: what they are, in words for the report.
    """

    origin: str
    calibration: tuple[Utterance, ...]
    evaluation: tuple[Utterance, ...]


@dataclass(frozen=True)
class ArrayData:
    """Arrays to calibrate on and other ones to measure on.

    Attributes:
        others: graph -> samples to calibrate it on, of a model that has several; the first graph's are ``calibration``.
    """

    origin: str
    calibration: tuple[ArraySample, ...]
    evaluation: tuple[ArraySample, ...]
    others: Mapping[str, tuple[ArraySample, ...]] = field(default_factory=dict)


Data = SpeechData | ArrayData


@dataclass(frozen=True)
class Row:
    """A line of transcripts.tsv."""

    path: Path
    text: str
    speaker: str
    split: str


def read_transcripts(directory: Path) -> tuple[Row, ...]:
    """The lines of DIRECTORY/transcripts.tsv, each naming a recording inside the directory.

    Raises:
        DataError: naming the line and what was expected there.
    """
    table = directory / TRANSCRIPTS
    confined_file(table, directory, DataError)
    try:
        if table.stat().st_size > MAX_TABLE_BYTES:
            raise DataError(f"{table}: larger than {MAX_TABLE_BYTES} bytes; split it")
        with table.open(encoding="utf-8", newline="") as file:
            return tuple(_rows(directory, table, file))
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a UTF-8 table with tabs ({error})") from error


def _rows(directory: Path, table: Path, lines: Iterator[str]) -> Iterator[Row]:
    reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    header = reader.fieldnames or []
    if not {"path", "text"} <= set(header):
        got = " ".join(header) or "none"
        raise DataError(f"{table}:1: expected a header with the columns path and text, got {got}")
    for number, row in enumerate(reader, 2):
        if number > MAX_ROWS:
            raise DataError(f"{table}: more than {MAX_ROWS} lines; split it")
        if None in row or any(row[name] is None for name in header):
            raise DataError(f"{table}:{number}: expected {len(header)} columns separated by tabs")
        path = directory / row["path"]
        try:
            confined(path, directory, DataError)
        except DataError as error:
            raise DataError(f"{table}:{number}: {error}") from error
        yield Row(path, row["text"], row.get("speaker") or "", row.get("split") or "")


def load_speech(directory: Path, sample_rate: int, split: str | None = None, limit: int = 0) -> SpeechData:
    """Recordings of a directory with transcripts.tsv, read at ``sample_rate`` Hz.

    Divided as :func:`divide` says; the two never share a recording. One without a text counts as unlabelled, where
    others have one.

    Args:
        limit: at most so many recordings to measure on and as many to calibrate on; 0 for all.

    Raises:
        DataError: if there is nothing to measure on, a split is unknown, or a recording is missing.
    """
    rows = read_transcripts(directory)
    listed = Listed([row.path for row in rows], [row.split for row in rows], [bool(row.text.strip()) for row in rows])
    divided = divide(listed, split, str(directory), limit)
    if not any(rows[i].text.strip() for i in divided.evaluation):
        raise DataError(f"{directory}: no recording with a text to measure on")
    origin = f"{directory.name}/{divided.split}" if divided.split else directory.name
    evaluation = tuple(_utterance(rows[i], sample_rate) for i in divided.evaluation)
    calibration = tuple(_utterance(rows[i], sample_rate) for i in divided.calibration)
    heard = {utterance.samples.tobytes() for utterance in evaluation}  # one recording may stand in two files
    return SpeechData(origin, tuple(u for u in calibration if u.samples.tobytes() not in heard), evaluation)


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
        limit: at most so many samples to measure on and as many to calibrate on; 0 for all.

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


def _utterance(row: Row, sample_rate: int) -> Utterance:
    return Utterance(read_audio(row.path, sample_rate), tuple(row.text.lower().split()), row.speaker)


def spread(items: Sequence[T], limit: int) -> list[T]:
    """At most so many items, evenly spread over all of them: neighbours in a stream are alike. 0 for all."""
    if not limit or len(items) <= limit:
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def limited(data: Data, samples: int) -> Data:
    """The same data with at most so many samples to measure on, the first that were drawn; 0 for all."""
    if isinstance(data, SpeechData):
        return replace(data, evaluation=data.evaluation[: samples or None])
    return replace(data, evaluation=data.evaluation[: samples or None])


def load_arrays(path: Path, spec: ModelSpec, split: str | None = None, limit: int = 0) -> ArrayData:
    """Samples from an npz whose arrays are named like the inputs of the model's first graph, first axis = samples.

    Raises:
        DataError: if it is no plain npz, or as :func:`array_data`.
    """
    regular_file(path, DataError)
    try:
        arrays = read_npz(path, texts=frozenset({SPLIT}))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except InputError as error:
        raise DataError(str(error)) from error
    return array_data(arrays, path.name, spec, split, limit)


def array_data(
    arrays: Mapping[str, np.ndarray], origin: str, spec: ModelSpec, split: str | None = None, limit: int = 0
) -> ArrayData:
    """Arrays, first axis = samples, as samples; those of another graph than the first are called ``GRAPH.NAME``.

    An array ``split`` of texts says what each sample is for, see :func:`divide`.

    Raises:
        DataError: for arrays of different lengths, fewer than two samples, or as :func:`sample_data`.
    """
    named = _by_graph(arrays, spec)
    first = next(iter(named))
    for unit, own in named.items():
        _check_names(origin, own, _largest(spec, unit)[0])
        counts = {len(array) if array.ndim else 0 for array in own.values()}
        if len(counts) != 1 or counts == {0} or (counts == {1} and unit == first):
            raise DataError(
                f"{origin}: all arrays need the same first axis, of at least 2 samples; got {sorted(counts)}"
            )
    rows = {u: [{n: a[i] for n, a in own.items()} for i in range(_count(own))] for u, own in named.items()}
    others = {unit: _samples(rows[unit], origin, spec, unit) for unit in rows if unit != first}
    return replace(_divided(rows[first], origin, spec, split, limit), others=others)


def _count(arrays: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(arrays.values())))


def sample_data(
    samples: Sequence[Mapping[str, np.ndarray]],
    origin: str,
    spec: ModelSpec,
    split: str | None = None,
    limit: int = 0,
) -> ArrayData:
    """Check samples for the first graph of a model, which may stand in several sizes.

    An array becomes the input itself if the shapes agree, else with a leading batch axis of 1; on an axis that is
    padded it may have any size up to the largest. ``target_NAME`` holds what output NAME should be, as long as it is
    unpadded; ``split`` what the sample is for, see :func:`divide`. A sample may hold inputs of other graphs too, called
    ``GRAPH.NAME``: they calibrate those.

    Raises:
        DataError: for missing, unknown or misshapen arrays, NaN, a split that is not there, or fewer than two samples.
    """
    if len(samples) < 2:
        raise DataError(f"{origin}: at least 2 samples are needed, to calibrate and to measure; got {len(samples)}")
    named = [_by_graph(sample, spec) for sample in samples]
    first = next(iter(spec.units()))
    rows = {unit: [own[unit] for own in named if unit in own] for unit in spec.units()}
    others = {unit: _samples(own, origin, spec, unit) for unit, own in rows.items() if own and unit != first}
    return replace(_divided(rows[first], origin, spec, split, limit), others=others)


def chosen_data(
    evaluation: Sequence[Mapping[str, np.ndarray]],
    calibration: Sequence[Mapping[str, np.ndarray]],
    origin: str,
    spec: ModelSpec,
) -> ArrayData:
    """As :func:`sample_data`, for samples that were divided already."""
    first = next(iter(spec.units()))
    made = _samples(calibration, f"{origin} (calibration)", spec, first), _samples(evaluation, origin, spec, first)
    return ArrayData(origin, *made)


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


def _divided(
    rows: Sequence[Mapping[str, np.ndarray]], origin: str, spec: ModelSpec, split: str | None, limit: int
) -> ArrayData:
    """Samples of the first graph; of a graph with states they are the steps of one run, which stays one."""
    unit = next(iter(spec.units()))
    made = _samples(rows, origin, spec, unit)
    inputs = {tensor.name for tensor in _largest(spec, unit)[0].all_inputs}
    splits = ["" if SPLIT in inputs else str(np.asarray(row.get(SPLIT, "")).item()) for row in rows]
    listed = Listed([_digest(s) for s in made], splits, [_label(s) for s in made], bool(spec.graphs[0].states))
    divided = divide(listed, split, origin, limit)
    if not divided.evaluation:
        raise DataError(f"{origin}: no sample to measure on; at least 2 different ones are needed, or a split")
    origin = f"{origin}/{divided.split}" if divided.split else origin
    calibration, evaluation = divided.calibration, divided.evaluation
    return ArrayData(origin, tuple(made[i] for i in calibration), tuple(made[i] for i in evaluation))


def _digest(sample: ArraySample) -> bytes:
    """Of the inputs alone: the same inputs with another target are the same sample."""
    digest = hashlib.sha256()
    for name in sorted(sample.inputs):
        array = sample.inputs[name]
        digest.update(f"{name} {array.shape} {array.dtype};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _label(sample: ArraySample) -> Hashable:
    """The class of a sample that has one, or all that its targets say; None without targets."""
    targets = sample.targets
    if len(targets) == 1 and (only := next(iter(targets.values()))).size == 1 and only.dtype.kind in "iub":
        return None if only.item() == IGNORED else int(only.item())
    return tuple((name, targets[name].tobytes()) for name in sorted(targets)) or None


def _samples(
    rows: Sequence[Mapping[str, np.ndarray]], origin: str, spec: ModelSpec, unit: str
) -> tuple[ArraySample, ...]:
    graph, bucket = _largest(spec, unit)
    for row in rows:
        _check_names(origin, row, graph)
    return tuple(_array_sample(origin, row, graph, bucket, index) for index, row in enumerate(rows))


def _by_graph(arrays: Mapping[str, np.ndarray], spec: ModelSpec) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by the graph that they are for, the first graph first; ``GRAPH.NAME`` becomes ``NAME``."""
    units = list(spec.units())
    own = {t.name for t in _largest(spec, units[0])[0].all_inputs}
    named: dict[str, dict[str, np.ndarray]] = {units[0]: {}}
    for name, array in arrays.items():
        unit, _, short = name.partition(".")
        if name in own or unit not in units:
            named[units[0]][name] = array
        else:
            named.setdefault(unit, {})[short] = array
    return named


def _largest(spec: ModelSpec, unit: str) -> tuple[GraphSpec, BucketSpec | None]:
    """A graph at its largest size, with the bucket that it is in."""
    graphs = spec.units()[unit]
    return graphs[-1], next((bucket for bucket in spec.buckets if bucket.name == unit), None)


def _check_names(origin: str, arrays: Mapping[str, np.ndarray], graph: GraphSpec) -> None:
    wanted = {t.name: t for t in graph.all_inputs}
    outputs = {t.name for t in graph.outputs}
    for name, array in arrays.items():
        target = name.removeprefix(TARGET_PREFIX) if name.startswith(TARGET_PREFIX) else None
        if name == SPLIT and name not in wanted:
            _check_split(origin, array)
        elif name not in wanted and target not in outputs:
            raise DataError(
                f"{origin}: array {name!r} is neither an input ({', '.join(wanted)}) nor a target "
                f"({', '.join(TARGET_PREFIX + o for o in sorted(outputs))})"
            )
    missing = [t.name for t in graph.inputs if t.name not in arrays]
    if missing:
        raise DataError(f"{origin}: input {missing[0]!r} is missing; it holds {', '.join(arrays) or 'nothing'}")


def _check_split(origin: str, array: np.ndarray) -> None:
    if np.asarray(array).dtype.kind != "U":
        raise DataError(
            f"{origin}: {SPLIT} names what each sample is for: expected texts, got {np.asarray(array).dtype}"
        )


def _array_sample(
    origin: str, arrays: Mapping[str, np.ndarray], graph: GraphSpec, bucket: BucketSpec | None, index: int
) -> ArraySample:
    inputs = dict(graph.initial_states())
    padded = {(pad.tensor, pad.axis) for pad in bucket.pad} if bucket is not None else set()
    for spec in graph.all_inputs:
        if spec.name not in arrays:
            continue
        value = np.asarray(arrays[spec.name])
        if value.dtype.kind == "f" and bool((np.isnan(value) | np.isposinf(value)).any()):  # -inf hides, as in a mask
            raise DataError(f"{origin}: {spec.name}[{index}] holds NaN or +infinity")
        varying = [axis for axis in range(len(spec.shape)) if (spec.name, axis) in padded]
        shape = next((s for s in (value.shape, (1, *value.shape)) if _fits(s, spec.shape, varying)), None)
        if shape is None:
            longest = " or less" if varying else ""
            raise DataError(
                f"{origin}: {spec.name}[{index}] has shape {value.shape}, the model takes {spec.shape}{longest}"
            )
        if value.dtype.kind != np.dtype(spec.dtype).kind:
            raise DataError(f"{origin}: {spec.name} is {value.dtype}, the model takes {spec.dtype}")
        inputs[spec.name] = _as_dtype(f"{origin}: {spec.name}[{index}]", value.reshape(shape), spec.dtype)
    if bucket is not None:
        _check_lengths(origin, bucket, inputs, index)
    for name, array in arrays.items():
        if name != SPLIT and np.asarray(array).dtype.kind not in "biuf":
            raise DataError(f"{origin}: {name}[{index}] holds {np.asarray(array).dtype}, not numbers")
    targets = {
        name.removeprefix(TARGET_PREFIX): np.asarray(array)
        for name, array in arrays.items()
        if name.startswith(TARGET_PREFIX)
    }
    return ArraySample(inputs, targets, frozenset(arrays) & inputs.keys())


def _as_dtype(where: str, value: np.ndarray, dtype: str) -> np.ndarray:
    """The same numbers in another width.

    Raises:
        DataError: for numbers that the width does not hold.
    """
    with np.errstate(over="ignore"):
        made = np.ascontiguousarray(value, dtype=dtype)
    if made.dtype.kind == "f" and bool((np.isfinite(value) & ~np.isfinite(made)).any()):
        raise DataError(f"{where} holds numbers that {dtype} does not")
    if made.dtype.kind in "iu" and not np.array_equal(made, value):
        raise DataError(f"{where} holds {value.min()} to {value.max()}, which {dtype} does not")
    return made


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...], varying: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(
        1 <= size <= limit if axis in varying else size == limit
        for axis, (size, limit) in enumerate(zip(shape, wanted, strict=True))
    )


def _check_lengths(origin: str, bucket: BucketSpec, inputs: Mapping[str, np.ndarray], index: int) -> None:
    for pad in bucket.pad:
        first = next(other for other in bucket.pad if other.dim == pad.dim)
        sizes = inputs[first.tensor].shape[first.axis], inputs[pad.tensor].shape[pad.axis]
        if sizes[0] != sizes[1]:
            raise DataError(
                f"{origin}: {pad.dim} of sample {index} is {sizes[0]} in {first.tensor} and {sizes[1]} in {pad.tensor}"
            )
