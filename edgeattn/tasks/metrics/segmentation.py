"""Metrics of class maps: an answer and a target are the classes of all pixels, integers of one shape, (height, width).

Pixels whose target is 255 are left out, whatever was said there. A class that appears neither among answers nor targets
of any sample is left out of the mean; one that was said but never true counts 0. An answer that is no class is of none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.tasks.metric import Metric, Statistics
from edgeattn.tasks.metrics.classification import f1_scores
from edgeattn.tasks.metrics.reading import floats, same_shape
from edgeattn.tasks.metrics.sums import total

IGNORED = 255


def _class_map(value: Any) -> np.ndarray:
    """Integers as they are, anything else as float64."""
    return value if isinstance(value, np.ndarray) and value.dtype.kind in "iu" else floats(value)


def _pixel_counts(answer: Any, target: Any, classes: int, ignored: int | None) -> np.ndarray:
    """Right, answered and true pixels per class, shape (3, classes)."""
    said, true = _class_map(answer), _class_map(target)
    same_shape(said, true)
    if ignored is not None:
        said, true = said[true != ignored], true[true != ignored]
    if not np.all((true >= 0) & (true < classes) & (true == np.floor(true))):
        also = "" if ignored is None else f", or {ignored} to be left out"
        raise DataError(f"a pixel of a target is a class: a whole number from 0 below {classes}{also}")
    is_class = (said >= 0) & (said < classes) & (said == np.floor(said))
    # (3, classes): of the right pixels, of those that were said, of the true ones
    maps = (true[said == true], said[is_class], true)
    return np.stack([np.bincount(one.ravel().astype(np.int64), minlength=classes) for one in maps]).astype(np.float64)


def _mean_over_classes(
    name: str, scores: Callable[[np.ndarray], np.ndarray], classes: int, ignored: int | None
) -> Metric:
    def value(statistics: Statistics) -> float:
        counts = total(statistics)
        if counts[2].sum() <= 0:
            raise DataError(f"{name} needs at least one pixel of a target that is not left out")
        return float(scores(counts).mean())

    return Metric(name=name, statistics=lambda a, t: _pixel_counts(a, t, classes, ignored), value=value, summed=True)


def _overlap(counts: np.ndarray) -> np.ndarray:
    union = counts[1] + counts[2] - counts[0]
    scores: np.ndarray = counts[0][union > 0] / union[union > 0]
    return scores


def mean_iou(classes: int, ignored: int | None = IGNORED) -> Metric:
    """The mean over classes of intersection over union, of the pixels of all samples together.

    Args:
        classes: how many there are, the background included.
        ignored: the target of pixels that are left out, None for no such.
    """
    return _mean_over_classes("miou", _overlap, classes, ignored)


def dice(classes: int, ignored: int | None = IGNORED) -> Metric:
    """The mean over classes of 2 |A and B| / (|A| + |B|), of the pixels of all samples together.

    Args:
        classes: how many there are, the background included.
        ignored: the target of pixels that are left out, None for no such.
    """
    return _mean_over_classes("dice", f1_scores, classes, ignored)
