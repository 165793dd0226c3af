"""Statistics that are summed, and the metrics that are one sum over another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.tasks.metric import Metric, Statistics


def total(statistics: Statistics) -> np.ndarray:
    """The sum of the statistics of all samples, float64, of the shape of one."""
    summed: np.ndarray = np.asarray(statistics, np.float64).sum(axis=0)
    return summed


def ratio_metric(
    name: str,
    parts: Callable[[Any, Any], tuple[float, float]],
    *,
    needs: str = "at least one sample",
    higher_is_better: bool = True,
    unit: str = "%",
) -> Metric:
    """A metric that is the sum of amounts over the sum of counts.

    Its statistics are (amount, count, 1 if the amount was not finite). One such answer makes the value as bad as can
    be, minus or plus infinity: the sums stay finite, so that the sample can be left out by subtraction.

    Args:
        parts: of an answer and its target: amount and count.
        needs: what is missing when all counts are 0, for the error.
    """
    worst = -math.inf if higher_is_better else math.inf

    def statistics(answer: Any, target: Any) -> np.ndarray:
        amount, count = parts(answer, target)
        return np.array([amount, count, 0.0] if math.isfinite(amount) else [0.0, count, 1.0])

    def value(statistics: Statistics) -> float:
        amount, count, broken = total(statistics)
        if count <= 0:
            raise DataError(f"{name} needs {needs}")
        return worst if broken > 0 else float(amount / count)

    return Metric(
        name=name, higher_is_better=higher_is_better, unit=unit, statistics=statistics, value=value, summed=True
    )
