"""Error rates of trials against closed forms and scikit-learn's curve."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.tasks import Metric
from edgeattn.tasks.metrics.verification import EER, MIN_DCF
from tests.tasks.metrics.measuring import measured

BOTH = [EER, MIN_DCF]


@pytest.mark.parametrize("decimals", [1, 9])
@pytest.mark.parametrize("shift", [-0.5, 0.0, 1.0, 9.0])
def test_rates_are_those_of_the_curve_of_scikit_learn(decimals: int, shift: float) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="the oracle: pip install scikit-learn")
    optimize = pytest.importorskip("scipy.optimize", reason="the oracle: comes with scikit-learn")
    rng = np.random.default_rng(0)
    same = rng.integers(0, 2, 300)
    scores = (rng.standard_normal(300) + shift * same).round(decimals)
    alarms, hits, _ = metrics.roc_curve(same, scores, drop_intermediate=False)
    trials = list(zip(scores, same, strict=True))
    # Along the curve, which may be vertical where alarms and misses meet: by its length.
    along = np.arange(len(alarms))
    at = optimize.brentq(
        lambda x: np.interp(x, along, alarms) - 1 + np.interp(x, along, hits), 0, along[-1], xtol=1e-13
    )
    assert measured(EER, trials) == pytest.approx(np.interp(at, along, alarms), abs=1e-9)
    cost = (0.01 * (1 - hits) + 0.99 * alarms).min() / 0.01
    assert measured(MIN_DCF, trials) == pytest.approx(cost, abs=1e-9)


@pytest.mark.parametrize(
    ("trials", "rate", "cost"),
    [
        ([(0.9, 1), (0.1, 0)], 0.0, 0.0),
        ([(0.1, 1), (0.9, 0)], 1.0, 1.0),
        ([(0.5, 1), (0.5, 0), (0.5, 1)], 0.5, 1.0),  # all the same: as good as none
        ([(3, 1), (2, 0), (1, 1), (0, 0)], 0.5, 0.5),
        ([(4, 1), (3, 1), (2, 0), (1, 1), (0, 0), (-1, 0)], 1 / 3, 1 / 3),
    ],
)
def test_rates_of_plain_trials(trials: list[tuple[float, int]], rate: float, cost: float) -> None:
    assert measured(EER, trials) == pytest.approx(rate, abs=1e-12)
    assert measured(MIN_DCF, trials) == pytest.approx(cost, abs=1e-12)


def test_equal_rates_of_two_normals_are_those_of_their_distance() -> None:
    normal = [NormalDist().inv_cdf((index + 0.5) / 2_000) for index in range(2_000)]
    trials = [(score + 2, 1) for score in normal] + [(score, 0) for score in normal]
    assert measured(EER, trials) == pytest.approx(NormalDist().cdf(-1), abs=5e-4)


@pytest.mark.parametrize("metric", BOTH, ids=lambda m: m.name)
def test_a_nan_score_is_the_worst_for_its_trial(metric: Metric) -> None:
    assert not metric.higher_is_better
    assert measured(metric, [(math.nan, 1), (math.nan, 0)]) == 1.0
    assert measured(metric, [(1.0, 1), (math.nan, 1), (0.0, 0)]) > measured(metric, [(1.0, 1), (0.5, 1), (0.0, 0)])
    assert measured(metric, [(1.0, 1), (math.nan, 0), (0.0, 0)]) > measured(metric, [(1.0, 1), (0.5, 0), (0.0, 0)])


@pytest.mark.parametrize("metric", BOTH, ids=lambda m: m.name)
@pytest.mark.parametrize("target", [0, 1])
def test_trials_of_one_kind_are_refused(metric: Metric, target: int) -> None:
    with pytest.raises(DataError, match=f"{metric.name} needs trials of both kinds"):
        measured(metric, [(0.5, target)])
    with pytest.raises(DataError, match="a target here is 1"):
        metric.statistics(0.5, "same")
