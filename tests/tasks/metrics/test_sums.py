"""Metrics that are one sum over another."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.tasks.metrics.sums import ratio_metric, total


@pytest.mark.parametrize(("higher_is_better", "worst"), [(True, -math.inf), (False, math.inf)])
def test_one_amount_that_is_not_finite_is_the_worst_and_can_be_left_out(higher_is_better: bool, worst: float) -> None:
    metric = ratio_metric("share", lambda answer, target: (answer, target), higher_is_better=higher_is_better)
    statistics = [metric.statistics(amount, 2.0) for amount in (1.0, math.nan, 0.5, math.inf)]
    assert metric.value(statistics) == worst
    every = total(statistics)
    assert metric.value([every - statistics[1] - statistics[3]]) == pytest.approx(0.375, abs=1e-12)


def test_nothing_to_count_is_refused_with_what_is_needed() -> None:
    metric = ratio_metric("share", lambda answer, target: (answer, target), needs="something to share")
    with pytest.raises(DataError, match="share needs something to share"):
        metric.value(np.array([metric.statistics(0.0, 0.0)]))
