"""The bootstrap interval of a word error rate against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from edgeattn.evaluation.word_error import bootstrap_ci95


def test_interval_of_equal_utterances_is_a_point() -> None:
    assert bootstrap_ci95([1.0] * 20, [4.0] * 20) == pytest.approx((0.25, 0.25), abs=1e-12)


def test_interval_is_the_same_in_every_run() -> None:
    errors = np.random.default_rng(1).integers(0, 3, 40).astype(float).tolist()
    assert bootstrap_ci95(errors, [5.0] * 40) == bootstrap_ci95(errors, [5.0] * 40)


def test_interval_is_near_the_normal_one_for_many_utterances() -> None:
    errors = np.random.default_rng(2).binomial(1, 0.3, 2_000).astype(float)
    low, high = bootstrap_ci95(errors.tolist(), [1.0] * len(errors))
    half = 1.96 * errors.std() / np.sqrt(len(errors))
    assert (low, high) == pytest.approx((errors.mean() - half, errors.mean() + half), abs=0.004)


def test_interval_covers_the_true_rate_about_95_times_in_100() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_ci95(rng.binomial(5, 0.2, 60).astype(float).tolist(), [5.0] * 60)
        covered += low <= 0.2 <= high
    assert 0.88 * 200 <= covered <= 0.99 * 200  # 95 % +- 4 standard errors, and the bootstrap's own optimism


@pytest.mark.parametrize(("errors", "weights"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_nothing_to_resample_is_refused(errors: list[float], weights: list[float]) -> None:
    with pytest.raises(ValueError, match="matching errors and weights"):
        bootstrap_ci95(errors, weights)
