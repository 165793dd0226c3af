"""The task's own metric of whatever runs the model: the float32 source and the deployed artifact alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edgeattn.errors import DataError
from edgeattn.evaluation.data import ArraySample, Utterance
from edgeattn.evaluation.word_error import RESAMPLES, bootstrap_ci95, total, word_errors
from edgeattn.runtimes import Stream

LOWER_IS_BETTER = frozenset({"wer"})
FEWEST_TO_JUDGE = 20  # samples; of fewer a sound model may get all wrong, or say the same of all


@dataclass(frozen=True)
class Score:
    """A metric over samples, as a fraction (0.05 is 5 points).

    Attributes:
        errors, weights: per sample, for intervals and pairing: edits and reference words, or misses and 1.
        broken: why the metric tells nothing of a model that scores so; empty if it does.
    """

    metric: str
    value: float
    ci95: tuple[float, float]
    errors: tuple[float, ...]
    weights: tuple[float, ...]
    broken: str = ""

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
        inputs_sha256, labelled_sha256: of those samples, see :mod:`edgeattn.evaluation.identity`; None where not told.
    """

    metric: str
    source: float | None
    deployed: float
    ci95: tuple[float, float]
    samples: int
    data: str
    inputs_sha256: str | None = None
    labelled_sha256: str | None = None

    @property
    def drop(self) -> float | None:
        """Points lost against the source (negative: gained); None without a source."""
        if self.source is None:
            return None
        worse = self.deployed - self.source
        return worse if self.metric in LOWER_IS_BETTER else -worse


@dataclass(frozen=True)
class Drop:
    """Points of the metric lost against the source on the same samples, and the most that chance allows.

    Attributes:
        upper: one-sided 95 % bound by a paired bootstrap: what is lost is less with that confidence.
    """

    points: float
    upper: float


def paired_drop(source: Score, deployed: Score) -> Drop:
    """What was lost, from the samples on which both differ: far surer than two intervals side by side.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, percentile interval of a paired statistic;
    Bisani and Ney, ICASSP 2004, for word error.

    Raises:
        ValueError: if the two were not measured on the same samples.
    """
    if source.weights != deployed.weights or source.metric != deployed.metric:
        raise ValueError(
            f"paired comparison needs the same samples and metric, got {source.samples} of {source.metric} and "
            f"{deployed.samples} of {deployed.metric}"
        )
    worse = np.asarray(deployed.errors, np.float64) - np.asarray(source.errors, np.float64)
    weights = np.asarray(source.weights, np.float64)
    points = 100.0 * float(worse.sum() / weights.sum())
    if not worse.any():
        return Drop(0.0, 0.0)
    picks = np.random.default_rng(0).integers(0, len(worse), (RESAMPLES, len(worse)))
    rates = worse[picks].sum(axis=1) / np.maximum(weights[picks].sum(axis=1), 1e-12)
    return Drop(points, max(points, 100.0 * float(np.percentile(rates, 95.0))))


def transcribe(stream: Stream, samples: np.ndarray) -> tuple[str, ...]:
    """All words of a recording, streamed; the stream is fresh again afterwards."""
    events = [*stream.push(samples), *stream.flush()]
    return tuple(word.text for event in events if event.kind == "final" for word in event.words)


def score_speech(stream: Stream, utterances: Iterable[Utterance], on_sample: Callable[[], None]) -> Score:
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
    rate = total(parts).rate
    broken = f"word error is {100 * rate:.0f} %: nothing of what is said is recognised" if rate >= 1.0 else ""
    return Score("wer", rate, bootstrap_ci95(errors, weights), tuple(errors), tuple(weights), broken)


def score_arrays(
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    samples: Iterable[ArraySample],
    on_sample: Callable[[], None],
) -> Score | None:
    """Top-1 accuracy of integer targets against the argmax over an output's last axis; None without such targets.

    Raises:
        DataError: if a target does not have the output's leading shape.
    """
    misses: list[float] = []
    said: set[int] = set()
    true: set[int] = set()
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
            said.update(best.ravel().tolist())
            true.update(target.ravel().tolist())
        misses.append(float(np.mean(wrong)))
        on_sample()
    if not misses:
        return None
    low, high = bootstrap_ci95(misses, [1.0] * len(misses))
    value = 1.0 - float(np.mean(misses))
    return Score(
        "accuracy",
        value,
        (1.0 - high, 1.0 - low),
        tuple(misses),
        (1.0,) * len(misses),
        _why_broken(value, len(misses), said, true),
    )


def _why_broken(value: float, samples: int, said: set[int], true: set[int]) -> str:
    """A model that always says the same, or is right no oftener than by chance, does so in int8 as well."""
    if len(true) < 2 or samples < FEWEST_TO_JUDGE:
        return ""
    if len(said) == 1:
        return f"the metric is constant: every answer is class {next(iter(said))}, the labels have {len(true)}"
    if value <= 1.0 / len(true):
        return f"accuracy is {100 * value:.1f} %, no better than guessing one of {len(true)} classes"
    return ""


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
