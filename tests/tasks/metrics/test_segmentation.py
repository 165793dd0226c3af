"""Overlaps of class maps against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.tasks import Metric
from edgeattn.tasks.metrics.segmentation import dice, mean_iou
from tests.tasks.metrics.measuring import measured

BOTH = [mean_iou(5), dice(5)]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("present", [2, 5])
def test_overlaps_are_those_of_scikit_learn(dtype: type, present: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="the oracle: pip install scikit-learn")
    rng = np.random.default_rng(0)
    answers, targets = rng.integers(0, present, (2, 4, 6, 7))
    targets[rng.random(targets.shape) < 0.2] = 255
    pairs = [(answer.astype(dtype), target.tolist()) for answer, target in zip(answers, targets, strict=True)]
    flat = targets[targets != 255], answers[targets != 255]
    assert measured(BOTH[0], pairs) == pytest.approx(metrics.jaccard_score(*flat, average="macro"), abs=1e-9)
    assert measured(BOTH[1], pairs) == pytest.approx(metrics.f1_score(*flat, average="macro"), abs=1e-9)


def test_a_class_that_was_said_but_is_not_there_counts_nothing_right() -> None:
    answer, target = np.array([[0, 0], [1, 1]]), np.zeros((2, 2), int)
    assert measured(mean_iou(3), [(answer, target)]) == 0.25
    assert measured(dice(3), [(answer, target)]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("metric", BOTH, ids=lambda m: m.name)
def test_pixels_of_no_class_are_wrong(metric: Metric) -> None:
    assert measured(metric, [(np.full((2, 2), math.nan), np.zeros((2, 2)))]) == 0.0
    for wrong in (-1, 9, 255, math.nan, math.inf, 0.5):
        half = measured(metric, [(np.array([[0.0, wrong]]), [[0, 0]])])
        assert half == pytest.approx(0.5 if metric.name == "miou" else 2 / 3)


@pytest.mark.parametrize("metric", BOTH, ids=lambda m: m.name)
def test_maps_that_do_not_fit_are_refused(metric: Metric) -> None:
    with pytest.raises(DataError, match=r"an answer of shape \(1, 2\) does not fit a target of shape \(2, 1\)"):
        metric.statistics([[0, 0]], [[0], [0]])
    for pixel in (5, -1, 0.5, math.nan):
        with pytest.raises(DataError, match="a whole number from 0 below 5, or 255 to be left out"):
            metric.statistics([[0]], [[pixel]])
    with pytest.raises(DataError, match=f"{metric.name} needs at least one pixel"):
        measured(metric, [([[0, 1]], [[255, 255]])])


def test_another_value_or_none_is_left_out() -> None:
    assert measured(mean_iou(2, ignored=0), [([[0, 1]], [[0, 1]])]) == 1.0
    with pytest.raises(DataError, match="a whole number from 0 below 2"):
        mean_iou(2, ignored=None).statistics([[0]], [[255]])
