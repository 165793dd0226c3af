"""Word error against jiwer; the bootstrap interval against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.evaluation.word_error import WordErrors, bootstrap_ci95, total, word_errors

WORDS = st.lists(st.sampled_from(["one", "two", "three", "four"]), max_size=12)


@given(reference=WORDS.filter(bool), hypothesis=WORDS)
def test_edits_are_those_of_jiwer(reference: list[str], hypothesis: list[str]) -> None:
    jiwer = pytest.importorskip("jiwer", reason="the oracle of word error: edgeattn[speech] installs it")
    oracle = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    ours = word_errors(reference, hypothesis)
    assert ours.errors == oracle.substitutions + oracle.deletions + oracle.insertions
    assert ours.rate == pytest.approx(oracle.wer, abs=1e-12)
    assert ours.words == len(reference)
    # Alignments of equal cost may differ in their kinds; what each kind does to the length may not.
    assert ours.insertions - ours.deletions == len(hypothesis) - len(reference)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("a b c", "a b c", WordErrors(0, 0, 0, 3)),
        ("a b c", "a x c", WordErrors(1, 0, 0, 3)),
        ("a b c", "a c", WordErrors(0, 1, 0, 3)),
        ("a b c", "a b b c", WordErrors(0, 0, 1, 3)),
        ("a b", "", WordErrors(0, 2, 0, 2)),
        ("", "a b", WordErrors(0, 0, 2, 0)),
        ("a b", "x y z", WordErrors(2, 0, 1, 2)),
    ],
)
def test_each_kind_of_edit_is_counted_apart(reference: str, hypothesis: str, expected: WordErrors) -> None:
    assert word_errors(reference.split(), hypothesis.split()) == expected


def test_rate_may_exceed_one() -> None:
    assert word_errors(["a"], ["b", "c", "d"]).rate == 3.0


def test_rate_without_reference_words_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one reference word"):
        _ = word_errors([], ["a"]).rate


def test_total_weighs_words_not_utterances() -> None:
    parts = [word_errors(["a"], ["b"]), word_errors(["a"] * 9, ["a"] * 9)]
    assert total(parts).rate == pytest.approx(0.1, abs=1e-12)
    assert total([]) == WordErrors(0, 0, 0, 0)


def test_interval_of_equal_utterances_is_a_point() -> None:
    assert bootstrap_ci95([1.0] * 20, [4.0] * 20) == pytest.approx((0.25, 0.25), abs=1e-12)


def test_interval_is_the_same_in_every_run() -> None:
    errors = np.random.default_rng(1).integers(0, 3, 40).astype(float).tolist()
    assert bootstrap_ci95(errors, [5.0] * 40) == bootstrap_ci95(errors, [5.0] * 40)


def test_interval_is_near_the_normal_one_for_many_utterances() -> None:
    errors = np.random.default_rng(2).binomial(1, 0.3, 2_000).astype(float)
    low, high = bootstrap_ci95(errors.tolist(), [1.0] * len(errors))
    half = 1.96 * errors.std() / np.sqrt(len(errors))
    assert (low, high) == pytest.approx((errors.mean() - half, errors.mean() + half), abs=0.004)


def test_interval_covers_the_true_rate_about_95_times_in_100() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_ci95(rng.binomial(5, 0.2, 60).astype(float).tolist(), [5.0] * 60)
        covered += low <= 0.2 <= high
    assert 0.88 * 200 <= covered <= 0.99 * 200  # 95 % +- 4 standard errors, and the bootstrap's own optimism


@pytest.mark.parametrize(("errors", "weights"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_nothing_to_resample_is_refused(errors: list[float], weights: list[float]) -> None:
    with pytest.raises(ValueError, match="matching errors and weights"):
        bootstrap_ci95(errors, weights)
