"""Metrics of trials (is it the same speaker, the same face): an answer is a score, a target 1 (same) or 0."""

from __future__ import annotations

import numpy as np

from edgeattn.errors import DataError
from edgeattn.tasks.metric import Metric, Statistics
from edgeattn.tasks.metrics.ranking import scored_trial

P_TARGET = 0.01


def error_rates(statistics: Statistics, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rates of misses and of false alarms at every threshold, from "none is accepted" to "all are"; float64.

    Args:
        statistics: (score, 1 for the same) of each trial. Equal scores are accepted together.
        name: of the metric, for the error.

    Raises:
        DataError: if trials of one of the two kinds are missing.
    """
    scores, same = np.asarray(statistics, np.float64).reshape(-1, 2).T
    if same.all() or not same.any():
        raise DataError(f"{name} needs trials of both kinds, the same (1) and not (0)")
    order = np.argsort(-scores, kind="stable")
    scores, same = scores[order], same[order]
    last = np.append(scores[1:] != scores[:-1], True)
    accepted, right = np.flatnonzero(last) + 1, np.cumsum(same)[last]
    misses = np.append(1.0, 1 - right / same.sum())
    return misses, np.append(0.0, (accepted - right) / (len(same) - same.sum()))


def _equal_error_rate(statistics: Statistics) -> float:
    misses, alarms = error_rates(statistics, "eer")
    at = int(np.argmax(alarms >= misses))  # the first threshold behind the crossing; at none accepted, misses are more
    before, after = misses[at - 1] - alarms[at - 1], alarms[at] - misses[at]
    share = before / (before + after)
    return float(alarms[at - 1] + share * (alarms[at] - alarms[at - 1]))


EER = Metric(name="eer", higher_is_better=False, statistics=scored_trial, value=_equal_error_rate)
"""Equal error rate: where misses and false alarms are as frequent, on straight lines between the thresholds.

A NaN score is the worst for its trial.
"""


def _detection_cost(statistics: Statistics) -> float:
    misses, alarms = error_rates(statistics, "min-dcf")
    return float((P_TARGET * misses + (1 - P_TARGET) * alarms).min() / min(P_TARGET, 1 - P_TARGET))


MIN_DCF = Metric(name="min-dcf", higher_is_better=False, unit="", statistics=scored_trial, value=_detection_cost)
"""The least detection cost of all thresholds: 1 in 100 trials is the same, both errors cost 1; 1 is as bad as no model.

Source: NIST, Speaker Recognition Evaluation plans (2016 and later), the normalised C_det.
"""
