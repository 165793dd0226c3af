"""Recordings with what is said in them (transcripts.tsv), and how well a stream recognises it.

A file of the wrong form is refused with its line and what was expected.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from edgeattn.audio import Floats, read_audio
from edgeattn.errors import DataError
from edgeattn.evaluation.accuracy import WER, Score
from edgeattn.evaluation.data import (
    CALIBRATION_STEPS,
    MAX_ROWS,
    MAX_TABLE_BYTES,
    PARITY_STEPS,
    TRAINING_RUNS,
    Arrays,
    Data,
    Listed,
    Packed,
    Records,
    Run,
    Runner,
    divide,
    spread,
)
from edgeattn.evaluation.replay import record_stream, record_utterances
from edgeattn.evaluation.word_error import bootstrap_ci95, total, word_errors
from edgeattn.guards.confined import confined, confined_file
from edgeattn.runtimes import Stream
from edgeattn.spec import ModelSpec, StreamSpec

TRANSCRIPTS = "transcripts.tsv"


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
class SpeechData(Data):
    """Recordings (:class:`Utterance`), for a model that streams; the metric is word error."""

    kind: ClassVar[str] = "speech"
    measures: ClassVar[str] = "word error"

    calibration: tuple[Utterance, ...]
    evaluation: tuple[Utterance, ...]

    def check(self, spec: ModelSpec) -> None:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        _stream_of(spec)

    def record(self, source: Runner) -> Records:
        """One stream over all that measures; what calibrates, each recording from its own fresh state."""
        stream, step = _stream_of(source.spec), source.step()
        graph = source.spec.graphs[0].name
        steps = record_stream(step, stream, (u.samples for u in self.evaluation), PARITY_STEPS)
        calibration = record_utterances(step, stream, (u.samples for u in self.calibration), CALIBRATION_STEPS)
        inputs = tuple({**record.inputs, **record.states} for record in calibration)
        return Records(steps={graph: steps}, carried=frozenset({graph}), calibration={graph: inputs})

    def training_runs(self, spec: ModelSpec, limit: int = TRAINING_RUNS) -> dict[str, tuple[Run, ...]]:
        """An utterance is a run: its feature chunks as a stream feeds them, the flush included."""
        feeds = _Feeds(spec)
        stream = Stream(feeds, _stream_of(spec))
        for utterance in spread(self.calibration, limit):
            stream.push(utterance.samples)
            stream.flush()
        return {spec.graphs[0].name: tuple(tuple(run) for run in feeds.runs if run)}

    def score(self, runner: Runner, samples: Iterable[Utterance], on_sample: Callable[[], None]) -> Score:
        """As :func:`score_speech`."""
        return score_speech(runner.stream(), samples, on_sample)

    @classmethod
    def inputs_of(cls, sample: Utterance) -> Arrays:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        return {"samples": sample.samples}

    @classmethod
    def expected_of(cls, sample: Utterance) -> bytes:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        return "\0".join(sample.words).encode()

    @classmethod
    def pack(cls, sample: Utterance) -> Packed:
        """Samples and words; who says them is nobody's business on a device."""
        return Packed({"inputs": cls.inputs_of(sample)}, {"words": list(sample.words)})

    @classmethod
    def unpack(cls, packed: Packed) -> Utterance:
        """See :class:`~edgeattn.evaluation.data.Data`."""
        return Utterance(packed.arrays["inputs"]["samples"], tuple(packed.facts["words"]))


def _stream_of(spec: ModelSpec) -> StreamSpec:
    if spec.stream is None:
        raise DataError(f"{spec.name} does not take speech; its data is an npz with arrays named like its inputs")
    return spec.stream


class _Feeds:
    """A step of a stream that computes nothing and keeps what it is fed, one run per utterance."""

    def __init__(self, spec: ModelSpec) -> None:
        graph = spec.graphs[0]
        self.inputs = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in graph.inputs}
        self.outputs = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in graph.outputs}
        self.runs: list[list[dict[str, np.ndarray]]] = [[]]

    def run(self) -> None:
        """Keep the inputs."""
        self.runs[-1].append({name: array.copy() for name, array in self.inputs.items()})

    def reset(self) -> None:
        """The next run begins."""
        self.runs.append([])

    def states(self) -> dict[str, np.ndarray]:
        """There are none."""
        return {}


# --- the metric -------------------------------------------------------------------------------------------------------


def transcribe(stream: Stream, samples: np.ndarray) -> tuple[str, ...]:
    """All words of a recording, streamed; the stream is fresh again afterwards."""
    events = [*stream.push(samples), *stream.flush()]
    return tuple(word.text for event in events if event.kind == "final" for word in event.words)


def score_speech(stream: Stream, utterances: Iterable[Utterance], on_sample: Callable[[], None]) -> Score:
    """Word error rate of a stream; of recordings without words, what is heard is kept for comparison.

    Raises:
        DataError: if the utterances hold no words.
    """
    parts, unlabelled = [], []
    for utterance in utterances:
        heard = transcribe(stream, utterance.samples)
        if utterance.words:
            parts.append(word_errors(utterance.words, heard))
        else:
            unlabelled.append(" ".join(heard))
        on_sample()
    if not parts:
        raise DataError("word error needs transcripts; all texts of the data are empty")
    errors, weights = [float(p.errors) for p in parts], [float(p.words) for p in parts]
    rate = total(parts).rate
    broken = f"word error is {100 * rate:.0f} %: nothing of what is said is recognised" if rate >= 1.0 else ""
    interval = bootstrap_ci95(errors, weights)
    return Score(WER, rate, interval, tuple(errors), tuple(weights), broken, tuple(unlabelled), higher_is_better=False)


# --- transcripts.tsv --------------------------------------------------------------------------------------------------


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
        limit: at most this many recordings to measure on and as many to calibrate on; 0 for all.

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


def _utterance(row: Row, sample_rate: int) -> Utterance:
    return Utterance(read_audio(row.path, sample_rate), tuple(row.text.lower().split()), row.speaker)
