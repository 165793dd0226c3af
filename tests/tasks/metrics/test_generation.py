"""BLEU and chrF against sacreBLEU, ROUGE-L against rouge-score."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.errors import DataError, UnsupportedError
from edgeattn.tasks import Metric
from edgeattn.tasks.metrics.generation import (
    CHRF,
    EXACT_MATCH,
    bleu,
    longest_common_subsequence,
    rouge_l,
    rouge_words,
    words_13a,
    words_zh,
)
from tests.tasks.metrics.measuring import measured

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "3.14",
    "1,000",
    "U.S.",
    "(x)",
    "don't",
    "state-of",
    "5-6",
    "Ünï",
    "&amp;",
]
LINES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
CHINESE = st.text(st.sampled_from("我们爱北京天安门，。ABC 12.5"), max_size=14)


def corpora(lines: st.SearchStrategy[str]) -> st.SearchStrategy[list[tuple[str, list[str]]]]:
    """(answer, two references) of several samples."""
    return st.lists(st.tuples(lines, st.lists(lines, min_size=2, max_size=2)), min_size=1, max_size=6)


def oracle(metric: Any, pairs: list[tuple[str, list[str]]]) -> float:
    answers, references = zip(*pairs, strict=True)
    streams = [list(one) for one in zip(*references, strict=True)]
    return float(metric.corpus_score(list(answers), streams).score) / 100


@given(pairs=corpora(LINES))
def test_bleu_is_that_of_sacrebleu(pairs: list[tuple[str, list[str]]]) -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="the oracle: pip install sacrebleu")
    assert measured(bleu(), pairs) == pytest.approx(oracle(sacrebleu.BLEU(), pairs), abs=1e-9)


@given(pairs=corpora(CHINESE))
def test_bleu_of_chinese_is_that_of_sacrebleu(pairs: list[tuple[str, list[str]]]) -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="the oracle: pip install sacrebleu")
    assert measured(bleu("zh"), pairs) == pytest.approx(oracle(sacrebleu.BLEU(tokenize="zh"), pairs), abs=1e-9)


@given(pairs=corpora(LINES | CHINESE))
def test_chrf_is_that_of_sacrebleu(pairs: list[tuple[str, list[str]]]) -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="the oracle: pip install sacrebleu")
    assert measured(CHRF, pairs) == pytest.approx(oracle(sacrebleu.CHRF(), pairs), abs=1e-9)


@settings(max_examples=300)
@given(
    line=st.text(st.characters(codec="utf-8"), max_size=30)
    | st.text("a1.,-&;'\"(<quotamplg> \n\u3002\u2010", max_size=30)
)
def test_words_are_those_of_sacrebleu(line: str) -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="the oracle: pip install sacrebleu")
    for name, words in (("13a", words_13a), ("zh", words_zh)):
        assert words(line) == sacrebleu.BLEU(tokenize=name).tokenizer(line.rstrip()).split(), name


@given(answer=LINES, references=st.lists(LINES, min_size=1, max_size=3))
def test_rouge_l_is_that_of_rouge_score(answer: str, references: list[str]) -> None:
    scoring = pytest.importorskip("rouge_score.rouge_scorer", reason="the oracle: pip install rouge-score")
    expected = scoring.RougeScorer(["rougeL"]).score_multi(references, answer)["rougeL"].fmeasure
    assert measured(rouge_l(), [(answer, references)]) == pytest.approx(expected, abs=1e-9)


def test_words_of_rouge_are_those_of_rouge_score() -> None:
    tokenize = pytest.importorskip("rouge_score.tokenize", reason="the oracle: pip install rouge-score")
    for line in (*WORDS, "A-b_c d", "", "北京", "İstanbul K"):
        assert rouge_words(line) == tokenize.tokenize(line, None)


def plain_subsequence(first: str, second: str) -> int:
    if not first or not second:
        return 0
    if first[0] == second[0]:
        return 1 + plain_subsequence(first[1:], second[1:])
    return max(plain_subsequence(first[1:], second), plain_subsequence(first, second[1:]))


@given(first=st.text("abc", max_size=7), second=st.text("abc", max_size=7))
def test_the_longest_common_subsequence_is_that_of_its_definition(first: str, second: str) -> None:
    assert longest_common_subsequence(first, second) == plain_subsequence(first, second)


def test_rouge_l_of_characters_serves_other_scripts() -> None:
    assert measured(rouge_l(), [("北京", "北京")]) == 0.0
    assert measured(rouge_l(characters=True), [("北 京", "北京市")]) == pytest.approx(0.8)
    assert rouge_l(characters=True).name == "rouge-l-characters"


def test_exact_match_looks_at_every_character() -> None:
    assert measured(EXACT_MATCH, [(" yes\n", "yes"), ("Yes", ["yes", "no"]), ("no", ["yes", "no"]), ("é", "é")]) == 0.75


@pytest.mark.parametrize("metric", [bleu(), bleu("zh"), CHRF, rouge_l(), EXACT_MATCH], ids=lambda m: m.name)
def test_an_empty_answer_and_what_is_no_text_are_the_worst(metric: Metric) -> None:
    assert measured(metric, [("", "a cat sat on a mat")]) == 0.0
    assert measured(metric, [(math.nan, "a cat sat on a mat"), (None, "nan None")]) == 0.0
    assert measured(metric, [("a cat sat on a mat",) * 2]) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("metric", [bleu(), CHRF, rouge_l(), EXACT_MATCH], ids=lambda m: m.name)
@pytest.mark.parametrize("target", [[], None, math.nan, [1]])
def test_a_target_that_is_no_text_is_refused(metric: Metric, target: object) -> None:
    with pytest.raises(DataError, match="a target here is a text, or a list of accepted texts"):
        metric.statistics("a", target)


def test_an_unknown_tokenizer_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="unknown tokenizer of BLEU '13b', did you mean '13a'"):
        bleu("13b")
