"""The task's own metric of whatever runs the model: the float32 source and the deployed artifact alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeattn.errors import DataError
from edgeattn.evaluation.data import ArraySample, Utterance
from edgeattn.evaluation.word_error import bootstrap_ci95, total, word_errors
from edgeattn.runtimes import Stream

LOWER_IS_BETTER = frozenset({"wer"})


@dataclass(frozen=True)
class Score:
    """A metric over samples, as a fraction (0.05 is 5 points).

    Attributes:
        errors, weights: per sample, for intervals and pairing: edits and reference words, or misses and 1.
    """

    metric: str
    value: float
    ci95: tuple[float, float]
    errors: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def samples(self) -> int:
        """How many samples were scored."""
        return len(self.errors)


@dataclass(frozen=True)
class Accuracy:
    """The metric of the source and of the deployed artifact on the same samples, in percent.

    Attributes:
        ci95: bootstrap interval of ``deployed``.
        data: what it was measured on.
    """

    metric: str
    source: float | None
    deployed: float
    ci95: tuple[float, float]
    samples: int
    data: str

    @property
    def drop(self) -> float | None:
        """Points lost against the source (negative: gained); None without a source."""
        if self.source is None:
            return None
        worse = self.deployed - self.source
        return worse if self.metric in LOWER_IS_BETTER else -worse


def transcribe(stream: Stream, samples: np.ndarray) -> tuple[str, ...]:
    """All words of a recording, streamed; the stream is fresh again afterwards."""
    events = [*stream.push(samples), *stream.flush()]
    return tuple(word.text for event in events if event.kind == "final" for word in event.words)


def score_speech(stream: Stream, utterances: Sequence[Utterance], on_sample: Callable[[], None]) -> Score:
    """Word error rate of a stream.

    Raises:
        DataError: if the utterances hold no words.
    """
    parts = []
    for utterance in utterances:
        parts.append(word_errors(utterance.words, transcribe(stream, utterance.samples)))
        on_sample()
    if not sum(p.words for p in parts):
        raise DataError("word error needs transcripts; all texts of the data are empty")
    errors, weights = [float(p.errors) for p in parts], [float(p.words) for p in parts]
    return Score("wer", total(parts).rate, bootstrap_ci95(errors, weights), tuple(errors), tuple(weights))


def score_arrays(
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    samples: Sequence[ArraySample],
    on_sample: Callable[[], None],
) -> Score | None:
    """Top-1 accuracy of integer targets against the argmax over an output's last axis; None without such targets.

    Raises:
        DataError: if a target does not have the output's leading shape.
    """
    misses: list[float] = []
    for sample in samples:
        labels = {n: t for n, t in sample.targets.items() if t.dtype.kind in "iu"}
        if not labels:
            return None
        outputs = run(sample.inputs)
        wrong = []
        for name, target in labels.items():
            best = outputs[name].argmax(axis=-1)
            if best.size != target.size:
                raise DataError(f"target_{name} has shape {target.shape}, the output's classes {best.shape}")
            wrong.append(float(np.mean(best.ravel() != target.ravel())))
        misses.append(float(np.mean(wrong)))
        on_sample()
    if not misses:
        return None
    low, high = bootstrap_ci95(misses, [1.0] * len(misses))
    value = 1.0 - float(np.mean(misses))
    return Score("accuracy", value, (1.0 - high, 1.0 - low), tuple(misses), (1.0,) * len(misses))


def accuracy(source: Score | None, deployed: Score, data: str) -> Accuracy:
    """Both in percent, side by side."""
    return Accuracy(
        deployed.metric,
        None if source is None else 100.0 * source.value,
        100.0 * deployed.value,
        (100.0 * deployed.ci95[0], 100.0 * deployed.ci95[1]),
        deployed.samples,
        data,
    )
