"""How much of a metric may be lost, at most, where some samples showed some loss: bounds that hold for few samples too.

A loss is looked at sample by sample: the same inputs through the source and through what replaces it, and what the
second loses on each. Samples that no loss was seen on say that a loss is rare, never that there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

ALPHA = 0.05  # of all verdicts on one target together: a claim that is wrong oftener than that is no claim
SAMPLES = 2_000  # to measure on unless said: proves half a point after the correction for a whole search
RESAMPLES, TAIL = 1_000, 5  # of the bootstrap: at least, and that many beyond the bound
MOST_SAMPLES = 10_000_000  # that are told as needed
HALVINGS = 45


def rate_upper(count: float, samples: float, alpha: float = ALPHA) -> float:
    """Clopper-Pearson: the one-sided upper bound of a rate of which ``count`` of ``samples`` were seen.

    Exact: whatever the rate, the bound lies below it with probability ``alpha`` at most. Of none seen it is
    ``1 - alpha ** (1 / samples)``. Counts may be fractions, as moments of weighted samples give them.

    Source: Clopper and Pearson, Biometrika 26 (1934), as a quantile of the beta distribution.

    Raises:
        ValueError: for a count that is not between 0 and ``samples``, or ``alpha`` that is none.
    """
    if not (0 <= count <= samples and samples > 0 and 0 < alpha < 1):
        raise ValueError(f"expected 0 <= count <= samples and 0 < alpha < 1, got {count}, {samples}, {alpha}")
    if count == 0:
        return -math.expm1(math.log(alpha) / samples)
    if samples - count < 1e-9:
        return 1.0
    low, high = count / samples, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _incomplete_beta(count + 1.0, samples - count, middle) < 1.0 - alpha:
            low = middle
        else:
            high = middle
    return high


def net_upper(worse: float, better: float, samples: float, alpha: float = ALPHA) -> float:
    """The one-sided upper bound of (rate of samples that became worse) - (rate of those that became better).

    Where nothing changed it is that of :func:`rate_upper`. Else the larger of two bounds: that of the net count as if
    none had become better, and the score bound of a paired difference with a continuity correction. The bound lies
    below the truth in at most ``alpha`` of all cases: enumerated exactly over rates and sizes in the tests.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998).
    """
    net = max(worse - better, 0.0)
    if worse + better == 0:
        return rate_upper(0, samples, alpha)
    z, seen = NormalDist().inv_cdf(1.0 - alpha), worse - better
    low, high = max(seen / samples, -1.0), 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        deviation = math.sqrt(samples * _paired_variance(worse, better, samples, middle))
        if samples * middle - seen - 0.5 > z * deviation:
            high = middle
        else:
            low = middle
    if net > 0 and _incomplete_beta(net + 1.0, samples - net, high) >= 1.0 - alpha:
        return high  # the bound of the net count lies below
    return max(rate_upper(net, samples, alpha), high)


def _paired_variance(worse: float, better: float, samples: float, difference: float) -> float:
    """Of one sample's difference, at the likeliest rates whose difference is ``difference``."""
    b = worse + better - difference * (2 * samples - worse + better)
    root = math.sqrt(max(b * b + 8 * samples * better * difference * (1 - difference), 0.0))
    rate = max((b + root) / (4 * samples), 0.0, -difference)  # of those that became better
    return max(2 * rate + difference - difference**2, 0.0)


def loss_upper(losses: np.ndarray, weights: np.ndarray, alpha: float = ALPHA) -> float:
    """The one-sided upper bound of sum(losses) / sum(weights) over all inputs, from those of some.

    Losses of any size are counted as equal ones with the same sum and sum of squares, one imagined sample that
    is lost whole (with the mean weight) among them: what was not seen may be as bad. Of losses of 0 and 1, as those of
    accuracy, nothing is approximated by that; no loss at all gives the exact bound ``1 - alpha ** (1 / samples)``. The
    bound is never below that of a bootstrap over the samples.

    Source: Fay and Feuer, "Confidence intervals for directly standardized rates: a method based on the gamma
    distribution", Statistics in Medicine 16 (1997), for weighted counts and the imagined one; Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993.

    Args:
        losses: float64, shape (samples,): what is lost on each, in the metric's own counts; negative where gained.
        weights: float64, shape (samples,): what there was to lose, such as words.
        alpha: how often the bound may be below the truth.

    Raises:
        ValueError: for no samples, or nothing to lose.
    """
    samples, total = len(losses), float(weights.sum())
    if samples == 0 or len(weights) != samples or not total > 0:
        raise ValueError(f"need samples with weights, got {samples} with a weight of {total:g}")
    if not losses.any():
        return rate_upper(0, samples, alpha)
    unit = _unit(losses, total / samples)
    count = total / unit
    worse, better = float(losses[losses > 0].sum()) / unit, -float(losses[losses < 0].sum()) / unit
    if worse + better >= count:
        return max(1.0, float(losses.sum()) / total)
    return max(net_upper(worse, better, count, alpha), _bootstrap_upper(losses, alpha) / total)


def _unit(losses: np.ndarray, whole: float) -> float:
    """The size of equal losses that are as uneven as these and an imagined one of ``whole``, or as the gains."""
    lost, gained = losses[losses > 0], -losses[losses < 0]
    imagined = max(whole, float(losses.max()))
    unit = float(np.square(lost).sum() + imagined**2) / float(lost.sum() + imagined)
    return max(unit, float(np.square(gained).sum() / gained.sum()) if len(gained) else 0.0)


def _bootstrap_upper(losses: np.ndarray, alpha: float) -> float:
    """Percentile bootstrap of the sum; samples without a loss need no draws of their own."""
    changed = losses[losses != 0]
    shares = np.full(len(changed) + 1, 1.0 / len(losses))
    shares[-1] = max(1.0 - len(changed) / len(losses), 0.0)
    draws = max(RESAMPLES, math.ceil(TAIL / alpha))
    rng, sums = np.random.default_rng(0), []
    for start in range(0, draws, RESAMPLES):  # in turns: all at once would be a large table
        times = rng.multinomial(len(losses), shares, min(RESAMPLES, draws - start))
        sums.append(times[:, :-1] @ changed)
    return float(np.quantile(np.concatenate(sums), 1.0 - alpha, method="higher"))


def samples_needed(losses: np.ndarray, weights: np.ndarray, budget: float, alpha: float = ALPHA) -> int | None:
    """How many samples like these would show that less than ``budget`` is lost; None if none would.

    The same share of them is taken to change by as much; so it is an estimate, except where nothing changed.

    Args:
        budget: a fraction, as the bounds here.
    """
    total = float(weights.sum())
    if budget <= 0 or float(losses.sum()) / total >= budget:
        return None
    if not losses.any():
        return zero_loss_samples(budget, alpha)
    unit = _unit(losses, total / len(losses))
    worse, better = float(losses[losses > 0].sum()) / unit, -float(losses[losses < 0].sum()) / unit

    def shows(samples: int) -> bool:
        times = samples / len(losses)
        return net_upper(times * worse, times * better, times * total / unit, alpha) <= budget

    low, high = 0, len(losses)
    while not shows(high):
        low, high = high, 2 * high
        if high > MOST_SAMPLES:
            return None
    while high - low > max(1, high // 1000):
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high


def zero_loss_samples(budget: float, alpha: float = ALPHA) -> int:
    """The fewest samples that show, if none of them loses anything, that less than ``budget`` (a fraction) is lost."""
    if budget >= 1.0:
        return 1
    return math.ceil(math.log(alpha) / math.log1p(-budget) - 1e-9)


def step_down(bounds: Sequence[Sequence[float]], budget: float) -> tuple[bool, ...]:
    """Holm's step-down: which of several candidates are shown to be within a budget, all of them at once.

    The probability that any of the shown ones is beyond the budget is at most alpha, however they depend on each other.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
    (1979).

    Args:
        bounds: per candidate its upper bounds at alpha / k, alpha / (k - 1), ..., alpha; k is the number of candidates.
    """
    shown = [False] * len(bounds)
    while True:
        level = sum(shown)
        new = [i for i, row in enumerate(bounds) if not shown[i] and row[level] <= budget]
        if not new:
            return tuple(shown)
        for index in new:
            shown[index] = True


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularized, by its continued fraction (Abramowitz and Stegun 26.5.8, Lentz's method), to about 1e-12."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny, c = 1e-300, 1.0
    d = 1.0 / (1.0 - (a + b) * x / (a + 1.0) or tiny)
    value = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / (1.0 + term * d or tiny)
            c = 1.0 + term / c or tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return math.exp(log_front) * value / a
