"""Metrics of numbers: an answer and a target are a number, or arrays of one shape (vectors, series).

Numbers of a target that are missing (NaN, None) are left out, and every other weighs the same. An answer that is no
finite number is infinitely wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.tasks.metric import Metric, Statistics
from edgeattn.tasks.metrics.reading import floats, same_shape
from edgeattn.tasks.metrics.sums import ratio_metric

NEEDS = "at least one number among the targets"


def _known(answer: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    """Answers and targets where there is a target."""
    said, true = floats(answer), floats(target)
    if not said.shape and true.shape:
        said = np.full(true.shape, np.nan) if np.isnan(said) else said
    same_shape(said, true)
    known = ~np.isnan(true)
    if np.isinf(true).any():
        raise DataError("a target here is finite, or NaN where it is missing; got infinity")
    return said[known], true[known]


def _mean(name: str, cost: Callable[[np.ndarray], np.ndarray]) -> Metric:
    def parts(answer: Any, target: Any) -> tuple[float, float]:
        said, true = _known(answer, target)
        if not np.isfinite(said).all():
            return math.inf, float(len(true))
        return float(cost(said - true).sum()), float(len(true))

    return ratio_metric(name, parts, needs=NEEDS, higher_is_better=False, unit="")


MSE = _mean("mse", np.square)
"""Mean squared error, in the square of the targets' unit; also of a deployed model's outputs against the source's."""

MAE = _mean("mae", np.abs)
"""Mean absolute error, in the targets' unit."""


def _moments(answer: Any, target: Any) -> np.ndarray:
    """Count, mean and squared deviation of the targets, squared error, and 1 if an answer is not finite."""
    said, true = _known(answer, target)
    if not true.size:
        return np.zeros(5)
    mean, finite = true.mean(), bool(np.isfinite(said).all())
    error = np.square(said - true).sum() if finite else 0.0
    return np.array([true.size, mean, np.square(true - mean).sum(), error, not finite], np.float64)


def _determination(statistics: Statistics) -> float:
    counts, means, within, errors, broken = np.asarray(statistics, np.float64).reshape(-1, 5).T
    if counts.sum() <= 0:
        raise DataError(f"r2 needs {NEEDS}")
    mean = counts @ means / counts.sum()
    spread = within.sum() + counts @ np.square(means - mean)
    # The mean of equal numbers is a rounding away from them.
    if spread <= counts.sum() * (4 * np.finfo(np.float64).eps * abs(mean)) ** 2:
        raise DataError("r2 needs targets that differ")
    return -math.inf if broken.any() else float(1 - errors.sum() / spread)


R2 = Metric(name="r2", statistics=_moments, value=_determination)
"""Coefficient of determination over all numbers of all samples: 1 all right, 0 as good as the mean of the targets."""
