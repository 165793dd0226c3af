"""Metrics of one class per sample.

An answer is the index of a class (for the top k: the scores of all classes), a target that of the right one, from 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.tasks.metric import Metric, Statistics
from edgeattn.tasks.metrics.reading import NO_CLASS, class_index, floats, target_class, target_truth
from edgeattn.tasks.metrics.sums import ratio_metric, total


def _hit(answer: Any, target: Any) -> tuple[float, float]:
    return float(class_index(answer) == target_class(target)), 1.0


ACCURACY = ratio_metric("accuracy", _hit)
"""Answer: class index. Target: class index."""


def top_k_accuracy(k: int) -> Metric:
    """How often the right class is among the k of the highest scores; of equal scores the lower class comes first.

    Answer: scores of all classes, shape (classes,). Target: class index. A NaN score comes before all others, but at
    the right class it is a miss.

    Args:
        k: at least 1.
    """

    def hit(answer: Any, target: Any) -> tuple[float, float]:
        scores, right = floats(answer).ravel(), target_class(target)
        if right >= scores.size or np.isnan(scores[right]):
            return 0.0, 1.0
        above = np.isnan(scores) | (scores > scores[right])
        above[:right] |= scores[:right] == scores[right]
        return float(np.count_nonzero(above) < k), 1.0

    return ratio_metric(f"top-{k}-accuracy", hit)


def _counts(answer: Any, target: Any, classes: int) -> np.ndarray:
    """Right, answered and true ones per class, shape (3, classes + 1): the last class is that of no class."""
    right, found = target_class(target, classes), class_index(answer, classes)
    counts = np.zeros((3, classes + 1))
    counts[1, classes if found == NO_CLASS else found] = counts[2, right] = 1.0
    counts[0, right] = float(found == right)
    return counts


def f1_scores(counts: np.ndarray) -> np.ndarray:
    """F1 of the classes that appear among answers or targets.

    Args:
        counts: right, answered and true ones per class, shape (3, classes).
    """
    both = counts[1] + counts[2]
    scores: np.ndarray = 2 * counts[0][both > 0] / both[both > 0]
    return scores


def macro_f1(classes: int) -> Metric:
    """The mean of the F1 of each class that appears among the answers or the targets, as scikit-learn's ``macro``.

    Answer and target: class index. An answer that is no class is a miss of the right one.
    """

    def value(statistics: Statistics) -> float:
        return float(f1_scores(total(statistics)[:, :classes]).mean())

    return Metric(name="macro-f1", statistics=lambda a, t: _counts(a, t, classes), value=value, summed=True)


def matthews(classes: int) -> Metric:
    """Matthews correlation, of several classes as well (R_K): 1 all right, 0 for answers that are all the same class.

    Answer and target: class index. The targets need two classes. An answer that is no class is of a class of its own.

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004.
    """

    def value(statistics: Statistics) -> float:
        right, answered, true = total(statistics)
        count = true.sum()
        spread = count**2 - true @ true
        if spread <= 0:
            raise DataError("matthews needs at least two classes among the targets")
        answers = count**2 - answered @ answered
        return float((right.sum() * count - answered @ true) / np.sqrt(spread * answers)) if answers > 0 else 0.0

    return Metric(name="matthews", statistics=lambda a, t: _counts(a, t, classes), value=value, summed=True)


def _positives(answer: Any, target: Any) -> np.ndarray:
    truth, found = target_truth(target), class_index(answer, 2)
    said = not truth if found == NO_CLASS else found == 1
    return np.array([said and truth, said, truth], np.float64)


def _f1(statistics: Statistics) -> float:
    right, said, true = total(statistics)
    if true <= 0:
        raise DataError("f1 needs at least one positive target")
    return float(2 * right / (said + true))


F1 = Metric(name="f1", statistics=_positives, value=_f1, summed=True)
"""F1 of the positive class. Answer and target: 1 (positive) or 0. An answer that is neither is the wrong one."""
