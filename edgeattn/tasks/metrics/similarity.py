"""Correlation with a target, and nearness to the source model's outputs (mean squared error: ``regression.MSE``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.tasks.metric import Metric, Statistics
from edgeattn.tasks.metrics.ranking import average_ranks
from edgeattn.tasks.metrics.reading import floats, number, same_shape, target_number
from edgeattn.tasks.metrics.sums import ratio_metric


def _pair(answer: Any, target: Any) -> np.ndarray:
    return np.array([number(answer), target_number(target)])


def _worst_for_nan(said: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Answers that are not finite become the other answers' lowest where the target is high, their highest else."""
    known = np.isfinite(said)
    if known.all():
        return said
    low, high = (said[known].min(), said[known].max()) if known.any() else (0.0, 1.0)
    return np.where(known, said, np.where(true > np.mean(true), low, high))


def _correlation(said: np.ndarray, true: np.ndarray) -> float:
    a, b = said - said.mean(), true - true.mean()
    a, b = a / (np.abs(a).max() or 1.0), b / (np.abs(b).max() or 1.0)
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return min(1.0, max(-1.0, float(a @ b) / scale)) if scale > 0 else 0.0


def _correlated(name: str, read: Callable[[np.ndarray], np.ndarray]) -> Metric:
    def value(statistics: Statistics) -> float:
        said, true = np.asarray(statistics, np.float64).reshape(-1, 2).T
        if np.all(true == true[0]):
            raise DataError(f"{name} needs targets that differ")
        said = _worst_for_nan(said, true)
        return 0.0 if np.all(said == said[0]) else _correlation(read(said), read(true))

    return Metric(name=name, statistics=_pair, value=value)


PEARSON = _correlated("pearson", lambda values: values)
"""Linear correlation. Answer and target: a number.

Answers that are all the same have a correlation of 0; one that is NaN becomes the other answers' lowest where the
target is above the mean of the targets, else their highest.
"""

SPEARMAN = _correlated("spearman", average_ranks)
"""Correlation of the ranks, those of equal values averaged. Answer and target: a number; else as :data:`PEARSON`."""


def _cosine(answer: Any, target: Any) -> tuple[float, float]:
    said, true = floats(answer), floats(target)
    same_shape(said, true)
    if not np.isfinite(true).all() or not true.any():
        raise DataError("a target here is a vector of finite numbers that are not all 0")
    if not np.isfinite(said).all():
        return -1.0, 1.0
    if not said.any():
        return 0.0, 1.0
    a, b = said / np.abs(said).max(), true / np.abs(true).max()
    return float(np.vdot(a, b)) / math.sqrt(float(np.vdot(a, a)) * float(np.vdot(b, b))), 1.0


COSINE = ratio_metric("cosine", _cosine, unit="")
"""The mean cosine of an answer and its target, arrays of one shape: 0 for an answer of zeros, -1 with a NaN in it."""
