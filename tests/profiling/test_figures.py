"""Percentiles against their definition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.profiling.figures import percentiles_ms


@given(seconds=st.lists(st.floats(1e-7, 1e3), min_size=1, max_size=300))
def test_percentiles_are_order_statistics(seconds: list[float]) -> None:
    ordered = sorted(seconds)
    # The smallest value that at least a share q of the sample does not exceed: position ceil(q n), counted from one.
    expected = [1e3 * ordered[math.ceil(len(ordered) * share / 100) - 1] for share in (50, 90, 99, 100)]
    assert percentiles_ms(seconds) == pytest.approx(expected, rel=1e-12)


@given(seconds=st.lists(st.floats(1e-7, 1e3), min_size=1, max_size=50))
def test_percentiles_were_measured_and_rise(seconds: list[float]) -> None:
    p50, p90, p99, largest = percentiles_ms(seconds)
    assert p50 <= p90 <= p99 <= largest
    assert {p50, p90, p99, largest} <= {1e3 * value for value in seconds}


def test_percentiles_of_one_to_a_hundred_milliseconds() -> None:
    assert percentiles_ms([k / 1e3 for k in range(100, 0, -1)]) == pytest.approx((50, 90, 99, 100), rel=1e-12)


def test_percentiles_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        percentiles_ms([])
