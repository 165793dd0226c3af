"""Metrics of rankings.

For recall, NDCG and ``mrr_at`` an answer is the list of ids that were found, the best first, and a target the relevant
ids: a list, or a mapping of id to gain (0 for what is not relevant). Ids are texts or whole numbers; one that comes
twice counts at its first place. For Hits and ``MRR`` an answer is a rank that was already found, from 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.printable import excerpt
from edgeattn.tasks.metric import Metric, Statistics
from edgeattn.tasks.metrics.reading import number, target_number, target_truth
from edgeattn.tasks.metrics.sums import ratio_metric


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, the lowest value first; equal values share the mean of their ranks.

    Args:
        values: shape (n,), without NaN.
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def _ranked(answer: Any) -> list[Any]:
    """Ids in order, each once; none for what is no list."""
    if not isinstance(answer, (list, tuple, np.ndarray)):
        return []
    ids = [one.item() if isinstance(one, np.generic) else one for one in answer]
    # Something that is no id (a NaN is unequal to itself) keeps its place.
    return list(dict.fromkeys(one if isinstance(one, (str, int)) else object() for one in ids))


def _relevant(target: Any) -> dict[Any, float]:
    """Id -> gain above 0."""
    if isinstance(target, Mapping):
        gains = {one: target_number(gain) for one, gain in target.items()}
    elif isinstance(target, (list, tuple, set, frozenset)):
        gains = dict.fromkeys(target, 1.0)
    else:
        raise DataError(f"a target here is the relevant ids, as a list or a mapping to gains, got {excerpt(target)}")
    if not all(isinstance(one, (str, int)) for one in gains) or any(gain < 0 for gain in gains.values()):
        raise DataError("a relevant id is a text or a whole number, and its gain is at least 0")
    found = {one: gain for one, gain in gains.items() if gain > 0}
    if not found:
        raise DataError("a ranking needs at least one relevant id")
    return found


def recall_at(k: int) -> Metric:
    """The mean share of the relevant ids that are among the first k. Answer: ranked ids. Target: relevant ids."""

    def parts(answer: Any, target: Any) -> tuple[float, float]:
        relevant = _relevant(target)
        return sum(one in relevant for one in _ranked(answer)[:k]) / len(relevant), 1.0

    return ratio_metric(f"recall@{k}", parts)


def mrr_at(k: int) -> Metric:
    """The mean of 1 / place of the first relevant id, 0 if it is not among the first k. Answer: ranked ids."""

    def parts(answer: Any, target: Any) -> tuple[float, float]:
        relevant = _relevant(target)
        places = (place for place, one in enumerate(_ranked(answer)[:k], 1) if one in relevant)
        return 1 / next(places, math.inf), 1.0

    return ratio_metric(f"mrr@{k}", parts)


def ndcg_at(k: int) -> Metric:
    """Normalised discounted cumulative gain of the first k, with linear gains as in BEIR. Answer: ranked ids.

    Source: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002.
    """

    def gained(gains: Sequence[float]) -> float:
        return math.fsum(gain / math.log2(place + 1) for place, gain in enumerate(gains[:k], 1))

    def parts(answer: Any, target: Any) -> tuple[float, float]:
        relevant = _relevant(target)
        best = gained(sorted(relevant.values(), reverse=True))
        return gained([relevant.get(one, 0.0) for one in _ranked(answer)]) / best, 1.0

    return ratio_metric(f"ndcg@{k}", parts)


def _rank(answer: Any) -> float:
    """A rank from 1; infinite for what is none."""
    rank = number(answer)
    return rank if rank >= 1 else math.inf


MRR = ratio_metric("mrr", lambda answer, _: (1 / _rank(answer), 1.0))
"""The mean of 1 / rank. Answer: rank of the right one, from 1 (filtered, if others are right as well). No target."""


def hits_at(k: int) -> Metric:
    """How often the right one is among the first k. Answer: its rank, from 1, as for :data:`MRR`. No target."""
    return ratio_metric(f"hits@{k}", lambda answer, _: (float(_rank(answer) <= k), 1.0))


def scored_trial(answer: Any, target: Any) -> np.ndarray:
    """(score, 1 for a positive target): NaN is the worst score for its target, minus or plus infinity."""
    positive, score = target_truth(target), number(answer)
    if math.isnan(score):
        score = -math.inf if positive else math.inf
    return np.array([score, positive], np.float64)


def _area(statistics: Statistics) -> float:
    scores, positive = np.asarray(statistics, np.float64).reshape(-1, 2).T
    ones = positive.sum()
    zeros = len(positive) - ones
    if not ones or not zeros:
        raise DataError("roc-auc needs both positive and negative targets")
    return float((average_ranks(scores)[positive > 0].sum() - ones * (ones + 1) / 2) / (ones * zeros))


ROC_AUC = Metric(name="roc-auc", statistics=scored_trial, value=_area)
"""How often a positive is scored above a negative; ties count half. Answer: score. Target: 1 (positive) or 0."""
