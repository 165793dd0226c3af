"""Errors of numbers against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.tasks import Metric
from edgeattn.tasks.metrics.regression import MAE, MSE, R2
from tests.tasks.metrics.measuring import measured

ORACLES = [(MSE, "mean_squared_error"), (MAE, "mean_absolute_error"), (R2, "r2_score")]
EVERY = [metric for metric, _ in ORACLES]


@pytest.mark.parametrize(("metric", "oracle"), ORACLES, ids=[metric.name for metric in EVERY])
@pytest.mark.parametrize("shape", [(), (3,), (4, 2)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_errors_are_those_of_scikit_learn(metric: Metric, oracle: str, shape: tuple[int, ...], offset: float) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="the oracle: pip install scikit-learn")
    rng = np.random.default_rng(0)
    answers, targets = rng.standard_normal((2, 30, *shape)) + offset
    expected = getattr(metrics, oracle)(targets.ravel(), answers.ravel())
    pairs = [(answer, target.tolist()) for answer, target in zip(answers, targets, strict=True)]
    assert measured(metric, pairs) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("metric", EVERY, ids=lambda m: m.name)
def test_missing_targets_are_left_out(metric: Metric) -> None:
    pairs = [([1.0, 2.0, 9.0], [1.5, None, math.nan]), ([3.0], [5.0]), ([math.nan], [None]), (math.nan, math.nan)]
    assert measured(metric, pairs) == pytest.approx(measured(metric, [(1.0, 1.5), (3.0, 5.0)]), abs=1e-12)


@pytest.mark.parametrize("answer", [math.nan, None, math.inf, -math.inf])
def test_an_answer_that_is_no_number_is_infinitely_wrong(answer: float | None) -> None:
    for metric, worst in ((MSE, math.inf), (MAE, math.inf), (R2, -math.inf)):
        assert measured(metric, [(answer, 1.0), (2.0, 2.0)]) == worst
        assert measured(metric, [([answer, 1.0], [1.0, 2.0]), ([2.0, 1.0], [2.0, 1.0])]) == worst


@pytest.mark.parametrize("metric", EVERY, ids=lambda m: m.name)
def test_what_does_not_fit_is_refused(metric: Metric) -> None:
    with pytest.raises(DataError, match=r"an answer of shape \(2,\) does not fit a target of shape \(3,\)"):
        metric.statistics([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="expected numbers"):
        metric.statistics(1.0, "warm")
    with pytest.raises(DataError, match="a target here is finite, or NaN where it is missing"):
        metric.statistics(1.0, math.inf)
    with pytest.raises(DataError, match=f"{metric.name} needs at least one number among the targets"):
        metric.value([metric.statistics(1.0, math.nan)])


@pytest.mark.parametrize("target", [0.0, 0.1, 1e9])
def test_determination_of_equal_targets_is_refused(target: float) -> None:
    with pytest.raises(DataError, match="r2 needs targets that differ"):
        measured(R2, [(1.0, target), ([2.0, 3.0], [target, target]), (5.0, target)])
    with pytest.raises(DataError, match="r2 needs targets that differ"):
        measured(R2, [(1.0, target)])


def test_one_answer_is_enough_for_the_errors() -> None:
    assert measured(MSE, [(1.0, 3.0)]) == 4.0
    assert measured(MAE, [(1.0, 3.0)]) == 2.0
