"""The metric of a run, against counts made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.evaluation.accuracy import Score, accuracy, score_arrays, score_speech, transcribe
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
