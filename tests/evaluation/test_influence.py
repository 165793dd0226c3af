"""Metrics as sums over samples: exact for means, and bounds that hold for those that are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.evaluation.accuracy import accuracy, paired_drop
from edgeattn.evaluation.influence import MOST_LEFT_OUT, influences, score_of_statistics
from edgeattn.tasks import Metric
from edgeattn.tasks.metrics.classification import ACCURACY, macro_f1
from edgeattn.tasks.metrics.language import PERPLEXITY
from edgeattn.tasks.metrics.ranking import ROC_AUC
from edgeattn.tasks.metrics.regression import R2
from edgeattn.tasks.metrics.similarity import SPEARMAN


def statistics(metric: Metric, answers: np.ndarray, targets: np.ndarray) -> list[np.ndarray]:
    return [metric.statistics(a, t) for a, t in zip(answers.tolist(), targets.tolist(), strict=True)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_of_a_mean_each_sample_has_its_own_loss(rows: list[tuple[int, int]]) -> None:
    answers, targets = np.array(rows).T
    found = score_of_statistics(ACCURACY, statistics(ACCURACY, answers, targets))
    np.testing.assert_allclose(found.errors, answers != targets, atol=1e-9)
    assert found.weights == (1.0,) * len(rows)
    assert found.value == pytest.approx(float((answers == targets).mean()))


@pytest.mark.parametrize("metric", [macro_f1(3), SPEARMAN, R2], ids=["macro-f1", "spearman", "r2"])
def test_losses_sum_to_the_value(metric: Metric) -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 60)
    answers = np.where(rng.random(60) < 0.7, targets, rng.integers(0, 3, 60))
    found = score_of_statistics(metric, statistics(metric, answers, targets))
    assert 1.0 - sum(found.errors) / sum(found.weights) == pytest.approx(found.value, abs=1e-12)
    assert found.ci95[0] < found.value < found.ci95[1]


def test_leaving_out_by_subtraction_is_leaving_out() -> None:
    rng = np.random.default_rng(1)
    metric = macro_f1(4)
    rows = statistics(metric, rng.integers(0, 4, 50), rng.integers(0, 4, 50))
    value = float(metric.value(rows))
    np.testing.assert_allclose(
        influences(metric, rows, value)[0], influences(replace(metric, summed=False), rows, value)[0], atol=1e-9
    )


def test_many_samples_are_left_out_in_groups() -> None:
    count = 2 * MOST_LEFT_OUT + 2
    rows = statistics(ACCURACY, np.arange(count) % 2, np.zeros(count, int))
    found = score_of_statistics(ACCURACY, rows)
    assert len(found.errors) <= MOST_LEFT_OUT
    assert sum(found.weights) == count
    assert sum(found.errors) / count == pytest.approx(0.5)


def test_a_metric_in_its_own_unit_loses_points_of_that_unit() -> None:
    rng = np.random.default_rng(2)
    targets = [np.array([int(t)]) for t in rng.integers(0, 5, 40)]
    logits = [rng.standard_normal((1, 5)) for _ in targets]
    source, worse = (
        score_of_statistics(PERPLEXITY, [PERPLEXITY.statistics(k * x, t) for x, t in zip(logits, targets, strict=True)])
        for k in (1.0, 1.5)
    )
    drop = paired_drop(source, worse)
    assert drop.points == pytest.approx(worse.value - source.value)
    assert drop.upper > drop.points
    told = accuracy(source, worse, "x", drop, 0.5)
    assert (told.unit, told.lower_is_better) == ("", True)
    assert told.source == pytest.approx(source.value)
    assert told.drop == pytest.approx(worse.value - source.value)


def test_an_infinitely_bad_model_has_a_finite_score() -> None:
    rows = [R2.statistics(a, t) for a, t in ((np.nan, 0.0), (1.0, 1.0), (2.0, 2.0))]
    assert np.isfinite(score_of_statistics(R2, rows).value)


def test_a_sample_without_which_nothing_is_defined_moves_nothing() -> None:
    rows = statistics(ROC_AUC, np.array([0.9, 0.2, 0.1, 0.95]), np.array([1, 0, 0, 0]))
    found = score_of_statistics(ROC_AUC, rows)
    assert found.value == pytest.approx(2 / 3)
    assert np.isfinite(found.errors).all()


def changed_classes(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    targets = rng.integers(0, 3, count)
    source = np.where(rng.random(count) < 0.85, targets, rng.integers(0, 3, count))
    return targets, source, np.where(rng.random(count) < 0.06, rng.integers(0, 3, count), source)


def changed_scores(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    targets = rng.standard_normal(count)
    source = targets + 0.5 * rng.standard_normal(count)
    return targets, source, source + 0.15 * rng.standard_normal(count)


Population = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "population"),
    [(macro_f1(3), changed_classes), (SPEARMAN, changed_scores), (R2, changed_scores)],
    ids=["macro-f1", "spearman", "r2"],
)
def test_the_bound_of_what_is_lost_holds(metric: Metric, population: Population) -> None:
    """The true loss, of thirty thousand samples, lies above the bound in at most 5 % of the draws (and chance)."""
    rng = np.random.default_rng(3)

    def lost(count: int) -> tuple[float, float]:
        targets, before, after = population(rng, count)
        source, deployed = (score_of_statistics(metric, statistics(metric, said, targets)) for said in (before, after))
        drop = paired_drop(source, deployed)
        return drop.points, drop.upper

    targets, before, after = population(rng, 30_000)
    values = [float(metric.value(statistics(metric, said, targets))) for said in (before, after)]
    true = 100 * (values[0] - values[1])
    above = sum(lost(120)[1] < true for _ in range(100))
    assert above <= 10  # binomial(100, 0.05) exceeds it in 1.1 % of runs


def test_nothing_lost_on_few_samples_proves_little() -> None:
    rows = statistics(macro_f1(3), np.arange(30) % 3, np.arange(30) % 3)
    score = score_of_statistics(macro_f1(3), rows)
    assert paired_drop(score, score).upper == pytest.approx(100 * (1 - 0.05 ** (1 / 30)))
