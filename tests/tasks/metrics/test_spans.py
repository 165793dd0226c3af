"""Exact match and F1 of extracted answers against the algorithms of the official scripts."""

from __future__ import annotations

import collections
import math
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import DataError
from edgeattn.tasks import Metric
from edgeattn.tasks.metrics.spans import CMRC_EXACT_MATCH, CMRC_F1, SQUAD_EXACT_MATCH, SQUAD_F1

TEXTS = st.lists(st.sampled_from(["the", "The", "a", "an", "cat", "Cat,", "dog", "é", "theatre", "-", "!"]), max_size=6)


def normalize(answer: str) -> str:
    """normalize_answer of evaluate-v2.0.py."""
    kept = "".join(c for c in answer.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", kept).split())


def official_f1(gold: str, said: str) -> float:
    """compute_f1 of evaluate-v2.0.py."""
    gold_words, said_words = normalize(gold).split(), normalize(said).split()
    same = sum((collections.Counter(gold_words) & collections.Counter(said_words)).values())
    if not gold_words or not said_words:
        return int(gold_words == said_words)
    if same == 0:
        return 0
    precision, recall = same / len(said_words), same / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def measured(metric: Metric, answer: object, target: object) -> float:
    assert metric.summed
    return metric.value([metric.statistics(answer, target)])


@given(said=TEXTS, accepted=st.lists(TEXTS, max_size=3))
def test_squad_scores_are_those_of_the_official_script(said: list[str], accepted: list[list[str]]) -> None:
    answer, target = " ".join(said), [" ".join(one) for one in accepted]
    golds = [one for one in target if normalize(one)] or [""]
    exact = max(int(normalize(one) == normalize(answer)) for one in golds)
    assert measured(SQUAD_EXACT_MATCH, answer, target) == exact
    expected = max(official_f1(one, answer) for one in golds)
    assert measured(SQUAD_F1, answer, target) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "target", "exact", "f1"),
    [
        ("", [], 1.0, 1.0),  # no answer, and none is said
        ("cat", [], 0.0, 0.0),
        ("", ["cat"], 0.0, 0.0),
        ("The Cat!", "cat", 1.0, 1.0),
        ("the", ["a"], 1.0, 1.0),
        ("big cat", ["cat", "a big cat"], 1.0, 1.0),
        ("big cat", ["cat"], 0.0, 2 / 3),
        ("Zürich", ["zürich"], 1.0, 1.0),
    ],
)
def test_squad_of_plain_cases(answer: str, target: list[str] | str, exact: float, f1: float) -> None:
    assert measured(SQUAD_EXACT_MATCH, answer, target) == exact
    assert measured(SQUAD_F1, answer, target) == pytest.approx(f1, abs=1e-12)


def official_cmrc_f1(gold: list[str], said: list[str]) -> float:
    """calc_f1_score of cmrc2018_evaluate.py, after segmentation."""
    table = [[0] * (len(said) + 1) for _ in range(len(gold) + 1)]
    longest = 0
    for i, one in enumerate(gold):
        for j, other in enumerate(said):
            if one == other:
                table[i + 1][j + 1] = table[i][j] + 1
                longest = max(longest, table[i + 1][j + 1])
    if longest == 0:
        return 0
    precision, recall = longest / len(said), longest / len(gold)
    return 2 * precision * recall / (precision + recall)


CHINESE = st.text(st.sampled_from("北京上海，。·"), min_size=1, max_size=8)


@given(said=CHINESE, gold=CHINESE.filter(lambda line: bool(line.strip("，。·"))))
def test_cmrc_f1_is_that_of_the_official_script(said: str, gold: str) -> None:
    def parts(line: str) -> list[str]:
        return [c for c in line if c not in "，。·"]

    assert measured(CMRC_F1, said, [gold]) == pytest.approx(official_cmrc_f1(parts(gold), parts(said)), abs=1e-12)
    assert measured(CMRC_EXACT_MATCH, said, [gold]) == (parts(said) == parts(gold))


@pytest.mark.parametrize(
    ("answer", "target", "exact", "f1"),
    [
        ("北京。", ["北京"], 1.0, 1.0),
        ("在北京", ["北京"], 0.0, 0.8),
        ("iPhone手机", ["iphone 手机"], 0.0, 1.0),  # Latin words whole, Chinese by character
        ("iPhone手机 ", ["《iphone手机》"], 1.0, 1.0),
        ("京北", ["北京"], 0.0, 0.5),
        ("", [], 1.0, 1.0),
        ("", ["北京"], 0.0, 0.0),
    ],
)
def test_cmrc_of_plain_cases(answer: str, target: list[str], exact: float, f1: float) -> None:
    assert measured(CMRC_EXACT_MATCH, answer, target) == exact
    assert measured(CMRC_F1, answer, target) == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize("metric", [SQUAD_EXACT_MATCH, SQUAD_F1, CMRC_EXACT_MATCH, CMRC_F1], ids=lambda m: m.name)
def test_what_is_no_text_is_wrong_even_where_there_is_no_answer(metric: Metric) -> None:
    for target in ([], ["cat"]):
        assert measured(metric, math.nan, target) == measured(metric, None, target) == 0.0
    with pytest.raises(DataError, match="a target here is a text, or a list of accepted texts"):
        metric.statistics("cat", 3)
