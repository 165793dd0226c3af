"""Any metric as a sum over samples: how much each sample moves it, so that one bound of what is lost serves all.

A metric that is no mean (F1, BLEU, mAP, a rank correlation) is taken apart by the jackknife: the pseudo-value of a
sample is n * value - (n - 1) * value without it. Of a mean it is the sample's own number, exactly. The differences of
the pseudo-values of source and deployed then go where those of counts go, to
:func:`edgeattn.evaluation.accuracy.paired_drop`.

Source: Tukey, "Bias and confidence in not-quite large samples", 1958; Efron and Stein, "The jackknife estimate of
variance", Annals of Statistics 9 (1981); groups of samples: Shao and Tu, "The Jackknife and Bootstrap", 1995, 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgeattn.errors import DataError
from edgeattn.evaluation.accuracy import PERCENT, Score
from edgeattn.evaluation.word_error import bootstrap_ci95
from edgeattn.tasks import Metric

MOST_LEFT_OUT = 1_000  # times that a metric is computed again; samples beyond are left out in groups
FARTHEST = 1e6  # from 0: a metric that is infinitely bad counts as that
SUMMED, PLAIN = 1.0, 0.01  # 100 of these are what is told: percent of a fraction, or the metric's own unit


def score_of_statistics(
    metric: Metric,
    statistics: Sequence[np.ndarray],
    name: str = "",
    broken: str = "",
    unlabelled: Sequence[str] = (),
    others: Mapping[str, float] | None = None,
) -> Score:
    """A metric over the statistics of all samples, and what each says of it.

    Args:
        name: what the metric is called here, if not its own name.
        broken, unlabelled, others: see :class:`~edgeattn.evaluation.accuracy.Score`.
    """
    value = _bounded(metric, metric.value(statistics))
    errors, weights = influences(metric, statistics, value)
    low, high = bootstrap_ci95(errors, weights)
    interval = _told_back(metric, low), _told_back(metric, high)
    return Score(
        name or metric.name,
        value,
        (min(interval), max(interval)),
        tuple(errors),
        tuple(weights),
        broken,
        tuple(unlabelled),
        metric.higher_is_better,
        metric.unit,
        dict(others or {}),
    )


def influences(metric: Metric, statistics: Sequence[np.ndarray], value: float) -> tuple[list[float], list[float]]:
    """What is lost on each sample, or on each group of samples where there are many, and its weight.

    The losses are shifted alike, so that their weighted mean is that of ``value`` exactly: 1 - value of a fraction of
    which more is better, and so on.
    """
    groups = _groups(len(statistics))
    pseudo = np.full(len(groups), value)
    if len(groups) > 1:
        without = np.array(_without(metric, statistics, groups))
        pseudo = len(groups) * value - (len(groups) - 1) * without
    weights = np.array([float(len(group)) for group in groups])
    pseudo += value - float(pseudo @ weights) / float(weights.sum())
    losses = (_worst(metric) - pseudo if metric.higher_is_better else pseudo) * _scale(metric)
    return (losses * weights).tolist(), weights.tolist()


def _groups(samples: int) -> list[range]:
    size = -(-samples // MOST_LEFT_OUT)
    return [range(start, min(start + size, samples)) for start in range(0, samples, size)]


def _without(metric: Metric, statistics: Sequence[np.ndarray], groups: Sequence[range]) -> list[float]:
    whole = _bounded(metric, metric.value(statistics))
    total = np.sum(statistics, axis=0) if metric.summed else np.zeros(0)

    def without(own: range) -> float:
        if metric.summed:
            rest = [total - np.sum([statistics[i] for i in own], axis=0)]
        else:
            rest = [*statistics[: own.start], *statistics[own.stop :]]
        try:
            return _bounded(metric, metric.value(rest))
        except DataError:  # undefined without the only sample of a class: it says nothing of the others
            return whole

    return [without(own) for own in groups]


def _bounded(metric: Metric, value: float) -> float:
    """A value that can be computed with: NaN answers make some metrics infinitely bad."""
    worst = -FARTHEST if metric.higher_is_better else FARTHEST
    return float(np.nan_to_num(value, nan=worst, posinf=FARTHEST, neginf=-FARTHEST))


def _worst(metric: Metric) -> float:
    return 1.0 if metric.unit == PERCENT else 0.0


def _scale(metric: Metric) -> float:
    return SUMMED if metric.unit == PERCENT else PLAIN


def _told_back(metric: Metric, loss: float) -> float:
    """The metric's value whose loss that is."""
    value = loss / _scale(metric)
    value = _worst(metric) - value if metric.higher_is_better else value
    return min(value, 1.0) if metric.unit == PERCENT and metric.higher_is_better else value
