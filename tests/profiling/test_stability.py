"""Warm-up, noise, trends and intervals against closed forms, SciPy's or their own definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.profiling.stability import BLOCKS, NOISE_LIMIT, Z_975, block_noise, p99_trend, warm_up, wilson


def test_a_steady_call_is_warm_after_two_blocks() -> None:
    times = itertools.chain([0.5], itertools.repeat(0.001))
    warmup, median = warm_up(lambda: next(times), 200)
    assert (warmup.first_ms, warmup.calls, warmup.settled) == (500.0, 1 + 2 * 10, True)
    assert median == 0.001


def test_warming_up_goes_on_while_the_median_drifts() -> None:
    # Blocks of 10 at 8, 4, 2, 1, 1 ms: settled once two in a row agree.
    slow = itertools.chain([9.0], *([0.001 * 2**k] * 10 for k in (3, 2, 1, 0, 0)))
    warmup, median = warm_up(lambda: next(slow), 200)
    assert (warmup.calls, warmup.settled, median) == (1 + 5 * 10, True, 0.001)


def test_a_drift_of_two_percent_is_none_and_of_three_is_one() -> None:
    for drift, blocks in ((0.019, 2), (0.03, 3)):
        times = itertools.chain([1.0], [0.001] * 10, itertools.repeat(0.001 * (1 + drift)))
        assert warm_up(lambda times=times: next(times), 200)[0].calls == 1 + blocks * 10  # type: ignore[misc]


def test_a_call_that_never_settles_is_cut_off_and_says_so() -> None:
    times = (0.001 * 1.1**k for k in itertools.count())
    warmup, _ = warm_up(lambda: next(times), 60)
    assert (warmup.calls, warmup.settled) == (1 + 12 * 5, False)
    slow = (1.0 + k for k in itertools.count())  # two of these take more than a quarter of five seconds
    warmup, _ = warm_up(lambda: next(slow), 60)
    assert (warmup.calls, warmup.settled) == (1 + 2 * 2, False)


def test_a_slow_first_call_makes_no_short_blocks() -> None:
    times = itertools.chain([9.0], itertools.repeat(0.25))  # the first one compiles
    warmup, median = warm_up(lambda: next(times), 200)
    assert (warmup.calls, warmup.settled, median) == (1 + 2 * 5, True, 0.25)


def test_noise_is_two_standard_deviations_of_the_medians_of_ten_blocks() -> None:
    # Medians 1.00, 1.01, ... 1.09: their standard deviation is 0.01 sqrt(n (n + 1) / 12) with n = 10.
    times = [1 + 0.01 * (k // 7) for k in range(70)]
    assert block_noise(times) == pytest.approx(2 * 0.01 * math.sqrt(10 * 11 / 12) / 1.045, rel=1e-9)


def test_outliers_are_no_noise_and_a_machine_that_got_slower_is() -> None:
    steady = [1.0] * 200
    steady[::20] = [50.0] * 10
    assert block_noise(steady) == 0.0
    slower = block_noise([1.0] * 100 + [1.1] * 100)
    assert slower is not None
    assert slower > NOISE_LIMIT


def test_a_short_run_has_no_noise_to_tell() -> None:
    assert block_noise([1.0] * (5 * BLOCKS - 1)) is None
    assert block_noise([1.0] * 5 * BLOCKS) == 0.0


def test_two_runs_whose_medians_differ_by_three_percent_are_flagged() -> None:
    # Times of a machine that wanders: a random walk of the logarithm, as slow clocks and neighbours make it.
    rng = np.random.default_rng(0)
    pairs = unflagged = apart = 0
    for step in np.geomspace(1e-4, 2e-2, 300):
        runs = [np.exp(np.cumsum(rng.normal(0, step, 300)) + rng.normal(0, 0.02, 300)) for _ in range(2)]
        medians = [float(np.median(run)) for run in runs]
        noises = [block_noise(run.tolist()) or 0.0 for run in runs]
        pairs += 1
        if abs(medians[0] - medians[1]) > 0.03 * min(medians):
            apart += 1
            unflagged += max(noises) <= NOISE_LIMIT
    assert apart > 50
    assert unflagged <= 0.02 * pairs


@pytest.mark.parametrize("slope", [0.0, 3.0, -2.0])
def test_trend_is_the_line_that_least_squares_fits(slope: float) -> None:
    scipy_stats = pytest.importorskip("scipy.stats", reason="the oracle of the interval")
    rng = np.random.default_rng(1)
    at = np.arange(500) * 0.1  # 50 s
    latency = 10 + slope * at / 60 + rng.normal(0, 0.5, 500)
    trend = p99_trend(at, latency)
    assert trend is not None
    x = at.reshape(10, 50).mean(axis=1) / 60
    y = np.sort(latency.reshape(10, 50), axis=1)[:, math.ceil(0.99 * 50) - 1]
    line = scipy_stats.linregress(x, y)
    half = scipy_stats.t.ppf(0.975, 8) * line.stderr
    assert trend.ms_per_minute == pytest.approx(line.slope, rel=1e-9)
    assert trend.ci95 == pytest.approx((line.slope - half, line.slope + half), rel=1e-4)


def test_a_tail_on_a_straight_line_has_a_slope_without_doubt() -> None:
    at = np.repeat(np.arange(10.0), 6) * 60  # ten minutes
    trend = p99_trend(at, 5 + np.repeat(np.arange(10.0), 6) * 0.25)
    assert trend is not None
    assert trend.ms_per_minute == pytest.approx(0.25)
    assert trend.ci95 == pytest.approx((0.25, 0.25))


def test_few_chunks_or_no_time_have_no_trend() -> None:
    assert p99_trend(np.arange(49.0), np.ones(49)) is None
    assert p99_trend(np.ones(60), np.arange(60.0)) is None


@given(total=st.integers(1, 10_000), share=st.floats(0, 1))
def test_wilson_bounds_are_the_rates_that_a_score_test_just_accepts(total: int, share: float) -> None:
    count = round(share * total)
    low, high = wilson(count, total)
    assert 0 <= low <= count / total <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:
        assert abs(count / total - bound) == pytest.approx(
            Z_975 * math.sqrt(bound * (1 - bound) / total), rel=1e-6, abs=1e-12
        )


def test_wilson_of_none_and_of_all() -> None:
    square = Z_975**2
    assert wilson(0, 100) == pytest.approx((0.0, square / (100 + square)))  # 3.7 %: no miss in 100 proves no more
    assert wilson(100, 100) == pytest.approx((100 / (100 + square), 1.0))


@pytest.mark.parametrize(("count", "total"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_a_rate_of_nothing_or_beyond_all_is_refused(count: int, total: int) -> None:
    with pytest.raises(ValueError, match="a rate needs"):
        wilson(count, total)
