"""Word error against jiwer; the quick distance against the one with its parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.tasks.metrics.edit import WordErrors, edit_distance, total, word_errors

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


@given(reference=WORDS, hypothesis=WORDS)
def test_the_quick_distance_is_that_of_the_parts(reference: list[str], hypothesis: list[str]) -> None:
    assert edit_distance(reference, hypothesis) == word_errors(reference, hypothesis).errors
    assert edit_distance(hypothesis, reference) == edit_distance(reference, hypothesis)


def test_the_quick_distance_takes_characters_of_any_script() -> None:
    assert edit_distance("北京市", "北 京") == 2
    assert edit_distance("", "") == 0
