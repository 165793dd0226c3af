"""Correlations against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import DataError
from edgeattn.tasks import Metric
from edgeattn.tasks.metrics.similarity import COSINE, PEARSON, SPEARMAN
from tests.tasks.metrics.measuring import measured

PAIRS = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=30)
CORRELATIONS = [PEARSON, SPEARMAN]


@given(pairs=PAIRS.filter(lambda pairs: all(len(set(side)) > 1 for side in zip(*pairs, strict=True))))
def test_correlations_are_those_of_scipy(pairs: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats", reason="the oracle: comes with scikit-learn")
    answers, targets = zip(*pairs, strict=True)
    assert measured(SPEARMAN, pairs) == pytest.approx(stats.spearmanr(answers, targets).statistic, abs=1e-9)
    assert measured(PEARSON, pairs) == pytest.approx(np.corrcoef(answers, targets)[0, 1], abs=1e-9)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_correlations_do_not_depend_on_the_scale(scale: float) -> None:
    pairs = [(scale * value, 3.0 + value) for value in (0.5, 1.0, -2.0)]
    assert measured(PEARSON, pairs) == pytest.approx(1.0, abs=1e-9)
    assert measured(SPEARMAN, pairs) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("metric", CORRELATIONS, ids=lambda m: m.name)
def test_equal_answers_have_no_correlation_and_equal_targets_are_refused(metric: Metric) -> None:
    assert measured(metric, [(0.3, 1), (0.3, 2), (0.3, 3)]) == 0.0
    for pairs in ([(1, 0.1), (2, 0.1), (3, 0.1)], [(1, 1)]):
        with pytest.raises(DataError, match=f"{metric.name} needs targets that differ"):
            measured(metric, pairs)
    with pytest.raises(DataError, match="a target here is a finite number"):
        metric.statistics(1.0, math.nan)


@pytest.mark.parametrize("metric", CORRELATIONS, ids=lambda m: m.name)
@pytest.mark.parametrize("answer", [math.nan, None, math.inf, "0.9"])
def test_an_answer_that_is_no_number_is_the_worst(metric: Metric, answer: object) -> None:
    good = [(float(value), value) for value in range(5)]
    with_it = measured(metric, [*good, (answer, 9)])
    assert with_it == pytest.approx(measured(metric, [*good, (0.0, 9)]), abs=1e-12)
    assert with_it < 0.6
    assert measured(metric, [*good, (answer, -9)]) < 0.6
    assert measured(metric, [(answer, 1), (answer, 2)]) == pytest.approx(-1.0)


def test_the_cosine_is_that_of_the_angle() -> None:
    assert measured(COSINE, [([1.0, 0.0], [1.0, 1.0])]) == pytest.approx(math.sqrt(0.5), abs=1e-12)
    assert measured(COSINE, [([1e200, 0.0], [1e-200, 0.0]), ([-1.0, 0.0], [1.0, 0.0])]) == pytest.approx(0.0, abs=1e-12)
    assert measured(COSINE, [(np.ones((2, 3), np.float32), np.ones((2, 3)))]) == pytest.approx(1.0, abs=1e-12)


def test_the_cosine_of_an_answer_without_a_direction() -> None:
    assert measured(COSINE, [([0.0, 0.0], [1.0, 0.0])]) == 0.0
    assert measured(COSINE, [([math.nan, 1.0], [1.0, 0.0])]) == -1.0
    for target in ([0.0, 0.0], [math.nan, 1.0], []):
        with pytest.raises(DataError, match="a vector of finite numbers that are not all 0"):
            COSINE.statistics(target, target)
    with pytest.raises(DataError, match="does not fit"):
        COSINE.statistics([1.0], [1.0, 0.0])
