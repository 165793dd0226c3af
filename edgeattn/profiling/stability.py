"""How far a figure can be trusted: warm-up, noise between blocks, trends, the interval of a miss rate. numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BLOCKS = 10
T_975 = 2.306  # Student's t, 97.5 %, BLOCKS - 2 degrees of freedom: what a straight line leaves
Z_975 = 1.959964  # the normal distribution's
WARMUP_SECONDS = 5.0
DRIFT_LIMIT = 0.02  # of the median from one block of warm-up to the next
NOISE_LIMIT = 0.03  # of the median; above it a second run may well report another p50


@dataclass(frozen=True)
class Warmup:
    """What came before the timed calls.

    Attributes:
        first_ms: the first call, which allocates and compiles what is left to compile.
        calls: all calls before the timed ones, the first one included.
        settled: whether the median of the last two blocks differed by less than :data:`DRIFT_LIMIT`.
    """

    first_ms: float
    calls: int
    settled: bool


@dataclass(frozen=True)
class Trend:
    """Slope of a straight line through the p99 of consecutive blocks (ordinary least squares).

    Attributes:
        ms_per_minute: the slope; positive where the run got slower.
        ci95: its 95 % confidence interval by Student's t.
    """

    ms_per_minute: float
    ci95: tuple[float, ...]


def warm_up(timed_call: Callable[[], float], runs: int) -> tuple[Warmup, float]:
    """Call until the median settles: two blocks of calls whose medians differ by less than 2 %.

    A block has a twentieth of ``runs`` calls, at least 5, or fewer, down to 2, where these take more than a quarter of
    :data:`WARMUP_SECONDS`. Where the median does not settle it ends after as many calls
    as will be timed (at least 6 blocks) or after 5 seconds, and says so.

    Args:
        timed_call: runs once and returns the seconds that it took.

    Returns:
        What happened, and the median of the last block in seconds.
    """
    first = timed_call()
    block = max(5, runs // 20)
    limit = max(6, runs // block)
    before, total, blocks, calls, settled = math.inf, 0.0, 0, 1, False
    while not settled and blocks < limit and (blocks < 2 or total < WARMUP_SECONDS):
        times: list[float] = []
        while len(times) < block and (len(times) < 2 or sum(times) < WARMUP_SECONDS / 4):
            times.append(timed_call())
        median = float(np.median(times))
        settled = abs(median - before) < DRIFT_LIMIT * median
        before, total, blocks, calls = median, total + sum(times), blocks + 1, calls + len(times)
    return Warmup(first * 1e3, calls, settled), before


def block_noise(times: Sequence[float]) -> float | None:
    """Two standard deviations of the medians of ten consecutive blocks, as a share of the median of all.

    Independent blocks would let the medians of two such runs differ by about half as much (batch means, Law, Simulation
    Modeling and Analysis, section 9.5.3); the other half is for blocks that are not independent.

    Returns:
        None for fewer than 50 times: blocks of less than five have no median worth the name.
    """
    if len(times) < 5 * BLOCKS:
        return None
    medians = [np.median(part) for part in np.array_split(np.asarray(times, np.float64), BLOCKS)]
    middle = float(np.median(np.asarray(times)))
    return float(2.0 * np.std(medians, ddof=1) / middle) if middle > 0 else None


def p99_trend(at_seconds: np.ndarray, latency_ms: np.ndarray) -> Trend | None:
    """Whether the tail grows during a run.

    Args:
        at_seconds: float, shape (n,), when each chunk was due.
        latency_ms: float, shape (n,).

    Returns:
        None for fewer than 50 chunks, five per block, or if they were all due at once.
    """
    if len(latency_ms) < 5 * BLOCKS:
        return None
    x = np.array([part.mean() for part in np.array_split(at_seconds, BLOCKS)]) / 60.0
    tails = [np.percentile(part, 99, method="inverted_cdf") for part in np.array_split(latency_ms, BLOCKS)]
    y = np.array(tails, np.float64)
    spread = x - x.mean()
    square = float(spread @ spread)
    if square == 0.0:
        return None
    slope = float(spread @ y) / square
    rest = y - y.mean() - slope * spread
    half = T_975 * math.sqrt(float(rest @ rest) / (BLOCKS - 2) / square)
    return Trend(slope, (slope - half, slope + half))


def wilson(count: int, total: int) -> tuple[float, float]:
    """95 % score interval of a rate (Wilson 1927): the rates that a test at 5 % does not reject.

    It takes the trials for independent; misses that a backlog brings come in rows, so the true interval is wider.

    Raises:
        ValueError: if ``count`` is not in 0..``total`` or nothing was tried.
    """
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"a rate needs 0 <= count <= total and total >= 1, got {count} of {total}")
    rate, square = count / total, Z_975 * Z_975 / total
    middle = (rate + square / 2) / (1 + square)
    half = Z_975 / (1 + square) * math.sqrt(rate * (1 - rate) / total + square / (4 * total))
    return (0.0 if count == 0 else middle - half), (1.0 if count == total else middle + half)
