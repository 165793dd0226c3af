"""The metric of a run, against counts made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.evaluation.accuracy import (
    Drop,
    Score,
    accuracy,
    paired_drop,
    score_arrays,
    score_speech,
    transcribe,
)
from edgeattn.evaluation.data import ArraySample, Utterance
from edgeattn.runtimes import Event, Stream, Word


class Saying:
    """A stream that says one word per push, the level of its first sample, and one more when flushed."""

    def push(self, samples: np.ndarray) -> tuple[Event, ...]:
        word = Word(str(int(samples[0])), 0.0)
        self.said = (word,)
        return (Event("partial", word.text, (word,), 0.0),)

    def flush(self) -> tuple[Event, ...]:
        words = (*self.said, Word("end", 0.0))
        return (Event("final", "", words, 0.0),)


def saying() -> Stream:
    return cast(Stream, Saying())


def echo(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": inputs["x"]}


def samples(labels: list[int]) -> list[ArraySample]:
    """Inputs whose largest entry is the first one."""
    return [ArraySample({"x": np.array([[2.0, 1.0, 0.0]])}, {"y": np.array(label)}) for label in labels]


def test_only_final_words_count() -> None:
    assert transcribe(saying(), np.full(4, 7.0, np.float32)) == ("7", "end")


def test_word_error_of_a_stream_is_counted_over_all_words() -> None:
    utterances = [
        Utterance(np.full(4, 7.0, np.float32), ("7", "end")),
        Utterance(np.full(4, 7.0, np.float32), ("8", "end", "now")),
    ]
    heard = []
    score = score_speech(saying(), utterances, lambda: heard.append(1))
    assert score.value == pytest.approx(2 / 5)
    assert (score.metric, score.samples, len(heard)) == ("wer", 2, 2)
    assert (score.errors, score.weights) == ((0.0, 2.0), (2.0, 3.0))


def test_word_error_without_words_is_refused() -> None:
    with pytest.raises(DataError, match="needs transcripts"):
        score_speech(saying(), [Utterance(np.ones(4, np.float32), ())], lambda: None)


def test_accuracy_is_the_share_of_right_labels() -> None:
    score = score_arrays(echo, samples([0, 0, 0, 1]), lambda: None)
    assert score is not None
    assert (score.metric, score.value, score.samples) == ("accuracy", 0.75, 4)
    assert score.ci95[0] <= 0.75 <= score.ci95[1]


def test_without_integer_targets_there_is_no_metric() -> None:
    assert score_arrays(echo, [ArraySample({"x": np.ones((1, 3))}, {"y": np.ones(3)})], lambda: None) is None
    assert score_arrays(echo, [], lambda: None) is None


def test_a_target_of_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"target_y has shape \(2,\)"):
        score_arrays(echo, [ArraySample({"x": np.ones((1, 3))}, {"y": np.array([0, 1])})], lambda: None)


@pytest.mark.parametrize(
    ("metric", "source", "deployed", "drop"), [("wer", 0.10, 0.12, 2.0), ("accuracy", 0.9, 0.88, 2.0)]
)
def test_drop_is_in_points_and_positive_when_worse(metric: str, source: float, deployed: float, drop: float) -> None:
    def score(value: float) -> Score:
        return Score(metric, value, (value, value), (0.0,), (1.0,))

    assert accuracy(score(source), score(deployed), "x").drop == pytest.approx(drop, abs=1e-9)
    assert accuracy(score(deployed), score(source), "x").drop == pytest.approx(-drop, abs=1e-9)
    assert accuracy(None, score(source), "x").drop is None
    assert accuracy(None, score(source), "x").deployed == pytest.approx(100 * source)


def score(errors: list[float], weights: list[float] | None = None, metric: str = "accuracy") -> Score:
    return Score(metric, 0.0, (0.0, 0.0), tuple(errors), tuple(weights or [1.0] * len(errors)))


def test_a_paired_drop_is_the_difference_and_what_chance_allows() -> None:
    source = score([0.0] * 950 + [1.0] * 50)
    deployed = score([0.0] * 940 + [1.0] * 50 + [0.0] * 10)  # 50 misses too, ten of them others
    drop = paired_drop(source, deployed)
    assert drop.points == 0.0
    # 20 of 1000 samples differ: the standard error is sqrt(20) / 1000, its 95 % quantile 1.645 times that.
    assert drop.upper == pytest.approx(1.645 * 100 * 20**0.5 / 1000, rel=0.15)


def test_answers_that_are_all_the_same_leave_nothing_to_chance() -> None:
    assert paired_drop(score([0.0, 1.0, 0.0]), score([0.0, 1.0, 0.0])) == Drop(0.0, 0.0)


def test_a_paired_drop_weighs_words_and_not_utterances() -> None:
    drop = paired_drop(score([0.0, 0.0], [9.0, 1.0], "wer"), score([0.0, 1.0], [9.0, 1.0], "wer"))
    assert drop.points == pytest.approx(10.0)
    assert drop.upper >= drop.points


@pytest.mark.parametrize("other", [score([0.0]), score([0.0, 0.0], metric="wer"), score([0.0, 0.0], [1.0, 2.0])])
def test_only_the_same_samples_can_be_paired(other: Score) -> None:
    with pytest.raises(ValueError, match="paired comparison needs the same samples and metric"):
        paired_drop(score([0.0, 0.0]), other)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0] * 15 + [1] * 15, "the metric is constant: every answer is class 0, the labels have 2"),
        ([0] * 30, ""),  # one class alone: nothing to mix up
        ([0, 1], ""),  # too few to judge
    ],
)
def test_a_metric_that_tells_nothing_says_why(labels: list[int], told: str) -> None:
    found = score_arrays(echo, samples(labels), lambda: None)
    assert found is not None
    assert found.broken == told


def test_an_accuracy_of_chance_is_broken() -> None:
    rng = np.random.default_rng(0)
    # Right three times in forty, of four classes.
    cases = [(i % 4, (i % 4 + (0 if i < 3 else 1)) % 4) for i in range(40)]
    rows = [ArraySample({"x": np.eye(4)[said] + 0.01 * rng.random(4)}, {"y": np.array(label)}) for said, label in cases]
    found = score_arrays(echo, rows, lambda: None)
    assert found is not None
    assert found.broken == "accuracy is 7.5 %, no better than guessing one of 4 classes"


def test_speech_that_is_never_recognised_is_broken() -> None:
    found = score_speech(saying(), [Utterance(np.zeros(1, np.float32), ("yes",))], lambda: None)
    assert "nothing of what is said is recognised" in found.broken
