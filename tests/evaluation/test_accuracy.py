"""The metric of a run, against counts made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.evaluation.accuracy import Accuracy, Score, accuracy, paired_drop
from edgeattn.evaluation.array_score import score_arrays
from edgeattn.evaluation.arrays import ArraySample
from edgeattn.evaluation.speech import Utterance, score_speech, transcribe
from edgeattn.runtimes import Event, Stream, Word
from edgeattn.spec import from_json, to_json


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


def test_without_targets_there_is_no_metric() -> None:
    assert score_arrays(echo, [ArraySample({"x": np.ones((1, 3))}, {})], lambda: None) is None
    assert score_arrays(echo, [], lambda: None) is None


def test_a_target_of_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"target_y has shape \(2,\)"):
        score_arrays(echo, [ArraySample({"x": np.ones((1, 3))}, {"y": np.array([0, 1])})], lambda: None)


@pytest.mark.parametrize(
    ("metric", "source", "deployed", "drop"), [("wer", 0.10, 0.12, 2.0), ("accuracy", 0.9, 0.88, 2.0)]
)
def test_drop_is_in_points_and_positive_when_worse(metric: str, source: float, deployed: float, drop: float) -> None:
    def score(value: float) -> Score:
        return Score(metric, value, (value, value), (0.0,), (1.0,), higher_is_better=metric != "wer")

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
    # 20 of 1000 samples differ: the standard error is sqrt(20) / 1000, its 95 % quantile 1.645 times that, and half a
    # sample is added for continuity.
    assert drop.upper == pytest.approx(1.645 * 100 * 20**0.5 / 1000 + 0.05, rel=0.1)


@pytest.mark.parametrize("samples", [12, 400])
def test_answers_that_are_all_the_same_leave_the_chance_of_what_was_not_seen(samples: int) -> None:
    same = score([0.0, 1.0] * (samples // 2))
    drop = paired_drop(same, same, max_drop=0.5)
    assert drop.points == 0.0
    assert drop.upper == pytest.approx(100 * (1 - 0.05 ** (1 / samples)), rel=1e-9)
    assert drop.needed == 598  # of which none changes


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


# --- labels that are left out, and samples without ----------------------------------------------------------------


def unlabelled(said: list[int]) -> list[ArraySample]:
    return [ArraySample({"x": np.eye(3)[None, one]}, {}) for one in said]


def test_labels_of_minus_100_count_nowhere() -> None:
    tokens = np.array([[[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]]])  # says 0 1 0 1
    rows = [
        ArraySample({"x": tokens}, {"y": np.array([0, 1, -100, -100])}),
        ArraySample({"x": tokens}, {"y": np.array([-100, -100, -100, 0])}),
        ArraySample({"x": tokens}, {"y": np.array([-100] * 4)}),
    ]
    found = score_arrays(echo, rows, lambda: None)
    assert found is not None
    assert (found.errors, found.weights, found.samples) == ((0.0, 1.0), (2.0, 1.0), 2)
    assert found.value == pytest.approx(2 / 3)
    assert len(found.unlabelled) == 1


def test_a_model_that_gives_classes_itself_is_scored_on_them() -> None:
    rows = [ArraySample({"x": np.array([[1, 2, 3]])}, {"y": np.array([1, 2, 0])})]
    found = score_arrays(echo, rows, lambda: None)
    assert found is not None
    assert found.value == pytest.approx(2 / 3)


def test_samples_without_labels_bound_the_loss_by_the_answers_that_change() -> None:
    labelled = samples([0] * 100)
    source = score_arrays(echo, labelled + unlabelled([0, 1, 2] * 300), lambda: None)
    assert source is not None
    assert (source.samples, len(source.unlabelled)) == (100, 900)
    same = paired_drop(source, source, max_drop=0.5)
    assert same.upper == pytest.approx(100 * (1 - 0.025 ** (1 / 1000)), rel=1e-9)
    assert same.upper < paired_drop(score([0.0] * 100), score([0.0] * 100)).upper
    other = score_arrays(echo, labelled + unlabelled([0, 1, 2] * 299 + [0, 1, 1]), lambda: None)
    assert other is not None
    assert paired_drop(source, other).upper > same.upper
    assert accuracy(source, other, "x").unlabelled == 900


def test_recordings_without_words_bound_the_loss_by_the_words_that_change() -> None:
    heard = [Utterance(np.full(4, 7.0, np.float32), ("7", "end"))] * 50
    silent = [Utterance(np.full(4, level, np.float32), ()) for level in (1.0, 2.0) * 100]
    source = score_speech(saying(), heard + silent, lambda: None)
    assert source.unlabelled[:2] == ("1 end", "2 end")
    changed = replace(source, unlabelled=("1 end now", *source.unlabelled[1:]))
    same, other = paired_drop(source, source), paired_drop(source, changed)
    assert same.upper == pytest.approx(100 * (1 - 0.025 ** (1 / 250)), rel=1e-9)
    assert other.upper > same.upper


# --- values ---------------------------------------------------------------------------------------------------------


def valued(errors: list[float]) -> list[ArraySample]:
    """Targets 0, 1, 2, ... and outputs that are off by so much."""
    return [ArraySample({"x": np.array([[i + e]])}, {"y": np.array([float(i)])}) for i, e in enumerate(errors)]


def test_float_targets_give_an_error_relative_to_their_spread() -> None:
    found = score_arrays(echo, valued([1.0, 0.0, -1.0, 0.0]), lambda: None)
    assert found is not None
    assert found.metric == "rae"
    # Mean absolute error 1 / 2 over the mean absolute deviation of 0, 1, 2, 3, which is 1.
    assert found.value == pytest.approx(0.5)
    assert accuracy(None, found, "x").deployed == pytest.approx(50.0)


def test_more_error_is_a_loss_and_proved_as_any_other() -> None:
    rng = np.random.default_rng(0)
    errors = rng.standard_normal(1_500)
    source = score_arrays(echo, valued(errors.tolist()), lambda: None)
    worse = score_arrays(echo, valued((10 * errors).tolist()), lambda: None)
    assert source is not None
    assert worse is not None
    found = accuracy(source, worse, "x", max_drop=0.5)
    assert found.drop == pytest.approx(100 * 9 * source.value, rel=1e-9)
    assert found.proved is False
    near = score_arrays(echo, valued((errors + 1e-4).tolist()), lambda: None)
    assert near is not None
    assert accuracy(source, near, "x", max_drop=0.5).proved is True


def test_values_that_are_nan_are_left_out_and_infinite_outputs_are_not() -> None:
    rows = [ArraySample({"x": np.array([[1.0, 5.0]])}, {"y": np.array([1.0, np.nan])}) for _ in range(3)]
    rows += [ArraySample({"x": np.array([[np.inf, 0.0]])}, {"y": np.array([0.0, 4.0])})]
    found = score_arrays(echo, rows, lambda: None)
    assert found is not None
    assert found.errors[:3] == (0.0, 0.0, 0.0)
    assert np.isfinite(found.value)
    assert found.value > 1.0


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([np.array([1.0, 2.0])], r"target_y has shape \(2,\), the output \(1, 3\); classes instead of values"),
        ([np.array(["a"])], "target_y is <U1: expected integers, for classes, or floats, for values"),
        ([np.ones(3)] * 3, "target_y is the same in all samples"),
        ([np.array(0), np.arange(3.0)], "targets of y are classes and those of y are values"),
    ],
)
def test_targets_that_no_metric_fits_are_refused(targets: list[np.ndarray], message: str) -> None:
    rows = [ArraySample({"x": np.ones((1, 3))}, {"y": target}) for target in targets]
    with pytest.raises(DataError, match=message):
        score_arrays(echo, rows, lambda: None)


def test_values_that_the_mean_would_meet_better_are_broken() -> None:
    found = score_arrays(echo, valued([100.0] * 30), lambda: None)
    assert found is not None
    assert "no better than always saying their mean" in found.broken


# --- what is told ---------------------------------------------------------------------------------------------------


def test_a_figure_says_how_sure_it_is_and_what_it_would_take() -> None:
    same = score([0.0] * 12)
    told = to_json(accuracy(same, same, "x", max_drop=0.5))
    assert told["drop_upper"] == pytest.approx(22.09, abs=0.005)
    assert (told["confidence"], told["samples_needed"], told["proved"]) == (pytest.approx(95.0), 598, False)
    assert accuracy(score([0.0] * 598), score([0.0] * 598), "x", max_drop=0.5).proved is True
    assert accuracy(same, same, "x").proved is None


def test_figures_of_an_older_bundle_can_be_read() -> None:
    older = {"metric": "wer", "source": 5.0, "deployed": 5.5, "ci95": [4.0, 7.0], "samples": 60, "data": "x"}
    assert from_json(Accuracy, older, "x").proved is None
