"""Accuracy, F1 and Matthews against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import DataError
from edgeattn.tasks.metrics.classification import ACCURACY, F1, macro_f1, matthews, top_k_accuracy
from tests.tasks.metrics.measuring import measured

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="the oracle: pip install scikit-learn")
CLASSES = 4
PAIRS = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=40)


@given(pairs=PAIRS)
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    answers, targets = zip(*pairs, strict=True)
    assert measured(ACCURACY, pairs) == pytest.approx(sklearn_metrics.accuracy_score(targets, answers), abs=1e-12)
    oracle = sklearn_metrics.f1_score(targets, answers, average="macro", zero_division=0.0)
    assert measured(macro_f1(CLASSES), pairs) == pytest.approx(oracle, abs=1e-12)


@given(pairs=PAIRS.filter(lambda pairs: len({target for _, target in pairs}) > 1))
def test_matthews_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    answers, targets = zip(*pairs, strict=True)
    assert measured(matthews(CLASSES), pairs) == pytest.approx(
        sklearn_metrics.matthews_corrcoef(targets, answers), abs=1e-12
    )


def test_an_answer_of_no_class_is_one_of_a_class_of_its_own_for_matthews() -> None:
    pairs = [(0, 0), (math.nan, 0), (1, 1), (None, 2), (2, 2), (9, 1)]
    oracle = sklearn_metrics.matthews_corrcoef([0, 0, 1, 2, 2, 1], [0, 3, 1, 3, 2, 3])
    assert measured(matthews(3), pairs) == pytest.approx(oracle, abs=1e-12)


@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1).filter(lambda p: any(t for _, t in p)))
def test_f1_of_the_positive_class_is_that_of_scikit_learn(pairs: list[tuple[bool, bool]]) -> None:
    answers, targets = zip(*pairs, strict=True)
    assert measured(F1, pairs) == pytest.approx(sklearn_metrics.f1_score(targets, answers), abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_accuracy_is_that_of_scikit_learn(k: int) -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.standard_normal((50, CLASSES)), rng.integers(0, CLASSES, 50)
    oracle = sklearn_metrics.top_k_accuracy_score(targets, scores, k=k, labels=range(CLASSES))
    assert measured(top_k_accuracy(k), list(zip(scores, targets.tolist(), strict=True))) == pytest.approx(oracle)


@pytest.mark.parametrize(
    ("scores", "target", "hit"),
    [
        ([1.0, 1.0, 1.0], 1, True),  # of equal scores the lower class comes first
        ([1.0, 1.0, 1.0], 2, False),
        ([math.nan, math.nan, math.nan], 0, False),
        ([3.0, math.nan, math.nan], 0, False),
        ([3.0, math.nan, 1.0], 0, True),
        ([1.0], 5, False),
        ([], 0, False),
    ],
)
def test_top_2_of_equal_missing_and_nan_scores(scores: list[float], target: int, hit: bool) -> None:
    assert measured(top_k_accuracy(2), [(scores, target)]) == hit


@pytest.mark.parametrize("answer", [math.nan, None, math.inf, -1, 0.5, "0", 10**400, np.array([0])])
def test_an_answer_that_is_no_class_is_wrong(answer: object) -> None:
    assert measured(ACCURACY, [(answer, 0), (np.float32(1), 1)]) == 0.5
    assert measured(macro_f1(2), [(answer, 0), (1, 1)]) == 0.5
    assert measured(F1, [(answer, 0), (1, 1)]) == pytest.approx(2 / 3)  # a false alarm where the target is negative
    assert measured(F1, [(answer, 1), (1, 1)]) == pytest.approx(2 / 3)  # a miss where it is positive


def test_answers_of_one_class_have_no_correlation() -> None:
    assert measured(matthews(2), [(0, 0), (0, 1)]) == 0.0


@pytest.mark.parametrize("target", [math.nan, None, -1, 1.5, "cat"])
def test_a_target_that_is_no_class_is_refused(target: object) -> None:
    with pytest.raises(DataError, match="a target here is a class: a whole number from 0, got"):
        ACCURACY.statistics(0, target)
    with pytest.raises(DataError, match="a whole number from 0 below 3, got"):
        macro_f1(3).statistics(0, target)
    with pytest.raises(DataError, match=r"a target here is 1 \(positive\) or 0"):
        F1.statistics(0, target)


def test_what_the_targets_leave_undefined_is_refused() -> None:
    with pytest.raises(DataError, match="matthews needs at least two classes among the targets"):
        measured(matthews(2), [(0, 1), (1, 1)])
    with pytest.raises(DataError, match="f1 needs at least one positive target"):
        measured(F1, [(0, 0)])
