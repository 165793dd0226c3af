"""False alarms and misses of keyword spotting against cases counted by hand."""

from __future__ import annotations

import math

import pytest

from edgeattn.errors import DataError
from edgeattn.tasks import Metric
from edgeattn.tasks.metrics.keyword import FALSE_ALARMS_PER_HOUR, FALSE_REJECTION_RATE
from tests.tasks.metrics.measuring import measured

BOTH = [FALSE_ALARMS_PER_HOUR, FALSE_REJECTION_RATE]
YES = {"hours": 0.5, "keywords": [[1.0, 1.5, "yes"], [3.0, 3.4, "да"]]}


@pytest.mark.parametrize(
    ("answer", "alarms", "misses"),
    [
        ([], 0, 2),
        (None, 0, 2),
        ([(1.2, "yes"), (3.2, "да")], 0, 0),
        ([[2.0, "yes"], [3.9, "да"]], 0, 0),  # half a second after the end
        ([(2.01, "yes"), (0.99, "yes")], 2, 2),
        ([(1.2, "да"), (3.2, "yes")], 2, 2),  # another word
        ([(1.2, "yes"), (1.3, "yes")], 1, 1),  # once
        ([(math.nan, "yes"), (1.2, "yes")], 1, 1),
        ([(math.nan, "yes"), (math.inf, "yes"), (None, "да")], 3, 2),
        ([math.nan, (1.2,), "yes"], 3, 2),  # no detections
        (math.nan, 1, 2),
    ],
)
def test_what_is_not_said_is_an_alarm_and_what_is_not_found_a_miss(answer: object, alarms: int, misses: int) -> None:
    assert measured(FALSE_ALARMS_PER_HOUR, [(answer, YES)]) == alarms / 0.5
    assert measured(FALSE_REJECTION_RATE, [(answer, YES)]) == misses / 2


def test_alarms_of_negatives_are_counted_per_hour_of_all() -> None:
    pairs = [([(9.0, "yes")], {"hours": 1.5}), ([], {"hours": 2.5, "keywords": []})]
    assert measured(FALSE_ALARMS_PER_HOUR, pairs) == 0.25
    with pytest.raises(DataError, match="false-rejection-rate needs at least one keyword among the targets"):
        measured(FALSE_REJECTION_RATE, pairs)


def test_overlapping_keywords_are_each_found() -> None:
    target = {"hours": 1, "keywords": [[0.0, 2.0, "yes"], [1.0, 1.2, "yes"]]}
    assert measured(FALSE_REJECTION_RATE, [([(1.1, "yes"), (2.4, "yes")], target)]) == 0.0


@pytest.mark.parametrize("metric", BOTH, ids=lambda m: m.name)
def test_a_target_without_hours_or_with_odd_keywords_is_refused(metric: Metric) -> None:
    assert not metric.higher_is_better
    for target in (None, {}, {"hours": 0}, {"hours": math.nan}, {"hours": math.inf}, 3.0):
        with pytest.raises(DataError, match=r'a target here is \{"hours": above 0'):
            metric.statistics([], target)
    for keyword in ([2.0, 1.0, "yes"], [math.nan, 1.0, "yes"], [0.0, 1.0], "yes", [-1.0, 1.0, "yes"]):
        with pytest.raises(DataError, match=r"a keyword of a target is \[start, end, keyword\] in seconds"):
            metric.statistics([], {"hours": 1, "keywords": [keyword]})
    with pytest.raises(DataError, match="a target's keywords are a list"):
        metric.statistics([], {"hours": 1, "keywords": 3})
