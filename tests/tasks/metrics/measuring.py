"""A metric of a few samples, with what holds for every metric checked on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgeattn.tasks import Metric


def measured(metric: Metric, pairs: Sequence[tuple[Any, Any]]) -> float:
    """The value of (answer, target) pairs: it is no NaN, the same in another order, and of one array of statistics.

    What is summed has finite statistics, and the same value of their sum and with a sample left out by subtraction.
    """
    statistics = [metric.statistics(answer, target) for answer, target in pairs]
    value = metric.value(statistics)
    assert not math.isnan(value)
    assert all((one.dtype == np.float64 and not np.isnan(one).any()) or not metric.summed for one in statistics)
    assert metric.value(statistics[::-1]) == pytest.approx(value, rel=1e-9, abs=1e-12)
    if len({one.shape for one in statistics}) == 1 and statistics[0].ndim == 1:
        assert metric.value(np.stack(statistics)) == value
    if metric.summed:
        every = np.sum(statistics, axis=0)
        assert np.isfinite(every).all()
        assert metric.value([every]) == pytest.approx(value, rel=1e-9, abs=1e-12)
    return value
