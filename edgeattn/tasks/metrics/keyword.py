"""Metrics of keyword spotting in recordings.

An answer is the list of accepted detections, each (seconds, keyword); a target ``{"hours": length, "keywords":
[[start, end, keyword], ...]}`` with what is really said, in seconds; no ``keywords`` in a recording of negatives. A
detection is right from the start of its keyword to half a second after its end, once; every other is a false alarm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.printable import excerpt
from edgeattn.tasks.metrics.reading import number
from edgeattn.tasks.metrics.sums import ratio_metric

TOLERANCE = 0.5  # seconds after a keyword's end: a detector answers with its latency


def _truth(target: Any) -> tuple[float, list[tuple[float, float, Any]]]:
    """Hours, and (start, end, keyword) in order of their ends."""
    hours = number(target.get("hours")) if isinstance(target, Mapping) else math.nan
    if not 0 < hours < math.inf:
        raise DataError(
            f'a target here is {{"hours": above 0, "keywords": [[start, end, keyword]]}}, got {excerpt(target)}'
        )
    keywords = target.get("keywords") or []
    if not isinstance(keywords, (list, tuple)):
        raise DataError(f"a target's keywords are a list, got {excerpt(keywords)}")
    said = []
    for one in keywords:
        start, end = (
            (number(one[0]), number(one[1])) if isinstance(one, (list, tuple)) and len(one) == 3 else (1.0, 0.0)
        )
        if not 0 <= start <= end < math.inf:
            raise DataError(f"a keyword of a target is [start, end, keyword] in seconds, got {excerpt(one)}")
        said.append((start, end, one[2]))
    return hours, sorted(said, key=lambda one: one[1])


def _detections(answer: Any) -> list[tuple[float, Any]]:
    """(seconds, keyword) in order of time; what is none is at no time."""
    given = answer if isinstance(answer, (list, tuple, np.ndarray)) else [] if answer is None else [answer]
    pairs = [one if isinstance(one, (list, tuple, np.ndarray)) and len(one) == 2 else (math.nan, None) for one in given]
    timed = [(number(time), keyword) for time, keyword in pairs]
    return sorted(timed, key=lambda one: math.inf if math.isnan(one[0]) else one[0])


def _matched(answer: Any, target: Any) -> tuple[int, int, int, float]:
    """Detections that are right, all detections, keywords, hours."""
    hours, said = _truth(target)
    found, left = _detections(answer), list(said)
    for time, keyword in found:
        match = next((one for one in left if one[2] == keyword and one[0] <= time <= one[1] + TOLERANCE), None)
        if match is not None:
            left.remove(match)
    return len(said) - len(left), len(found), len(said), hours


def _alarms(answer: Any, target: Any) -> tuple[float, float]:
    right, found, _, hours = _matched(answer, target)
    return float(found - right), hours


def _misses(answer: Any, target: Any) -> tuple[float, float]:
    right, _, said, _ = _matched(answer, target)
    return float(said - right), float(said)


FALSE_ALARMS_PER_HOUR = ratio_metric("false-alarms-per-hour", _alarms, higher_is_better=False, unit="")
"""Detections where their keyword is not said, per hour of all recordings."""

FALSE_REJECTION_RATE = ratio_metric(
    "false-rejection-rate", _misses, needs="at least one keyword among the targets", higher_is_better=False
)
"""The share of the spoken keywords that were not detected: false alarms alone are lowest for a model that is deaf."""
