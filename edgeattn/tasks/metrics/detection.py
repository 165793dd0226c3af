"""COCO's mean average precision of boxes.

An answer is the list of detections in an image, each (x1, y1, x2, y2, score, class); a target the list of the true
boxes, each (x1, y1, x2, y2, class) or (x1, y1, x2, y2, class, crowd): what is found in a crowd (1) counts neither way.

Source: Lin et al., "Microsoft COCO", ECCV 2014; as pycocotools' COCOeval of ``bbox``: area ``all``, 100 detections.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeattn.errors import DataError
from edgeattn.printable import excerpt
from edgeattn.tasks.metric import Metric, Statistics
from edgeattn.tasks.metrics.reading import floats

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # detections of an image and class that are looked at
RIGHT, WRONG, NEITHER = 1.0, 0.0, -1.0
TRUE_BOXES, DETECTION = 0.0, 1.0
COLUMNS = 3 + len(OVERLAPS)


def overlaps(found: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Intersection over union, shape (found, true); for a crowd over the area of the found box alone.

    Args:
        found: boxes, float64, shape (found, 4).
        true: boxes, float64, shape (true, 4).
        crowd: bool, shape (true,).
    """
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, 2:], true[None, :, 2:])
    sides = high - low
    common = np.where((sides > 0).all(axis=2), sides[..., 0] * sides[..., 1], 0.0)
    area = ((found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1]))[:, None]
    other = ((true[:, 2] - true[:, 0]) * (true[:, 3] - true[:, 1]))[None]
    union = np.where(crowd[None], area, area + other - common)
    shares: np.ndarray = np.divide(common, union, out=np.zeros_like(common), where=(common > 0) & (union > 0))
    return shares


def match(found: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Whether each box is right at each of :data:`OVERLAPS`, shape (found, 10): RIGHT, WRONG or NEITHER (in a crowd).

    Each takes the box that it overlaps most and that no better one took, of equal ones the last; a crowd is taken by
    any number of them, if nothing else is left.

    Args:
        found: boxes, the best score first, float64, shape (found, 4).
        true: boxes, float64, shape (true, 4).
        crowd: bool, shape (true,).
    """
    order, own = np.argsort(crowd, kind="stable"), int(np.count_nonzero(~crowd))
    common, flags = overlaps(found, true[order], crowd[order]), np.full((len(found), len(OVERLAPS)), WRONG)
    least, levels = np.minimum(OVERLAPS, 1 - 1e-10)[:, None], np.arange(len(OVERLAPS))
    free = np.ones((len(OVERLAPS), len(true)), bool)
    for index in np.flatnonzero((common >= OVERLAPS[0]).any(axis=1)):
        fits = free & (common[index] >= least)
        flags[index, fits[:, own:].any(axis=1)] = NEITHER
        if own:
            shares = np.where(fits[:, :own], common[index, :own], -1.0)
            best = own - 1 - shares[:, ::-1].argmax(axis=1)  # of equal ones the last
            right = fits[levels, best]
            flags[index, right] = RIGHT
            free[levels[right], best[right]] = False
    return flags


def _true_boxes(target: Any) -> np.ndarray:
    """Rows (x1, y1, x2, y2, class, crowd)."""
    if not isinstance(target, (list, tuple, np.ndarray)):
        raise DataError(f"a target here is a list of boxes, got {excerpt(target)}")
    rows = [floats(one) for one in target]
    if not all(row.shape in ((5,), (6,)) and np.isfinite(row).all() for row in rows):
        raise DataError("a true box is (x1, y1, x2, y2, class) or (x1, y1, x2, y2, class, crowd), of finite numbers")
    boxes = np.array([row if len(row) == 6 else np.append(row, 0.0) for row in rows]).reshape(-1, 6)
    if not (boxes[:, :2] <= boxes[:, 2:4]).all() or not np.isin(boxes[:, 5], (0, 1)).all():
        raise DataError("a true box has x1 <= x2, y1 <= y2, and crowd is 0 or 1")
    return boxes


def _found_boxes(answer: Any) -> np.ndarray:
    """Rows (x1, y1, x2, y2, score, class); one that is not finite has no box and the highest score: it is wrong."""
    rows = floats(answer if isinstance(answer, (list, tuple, np.ndarray)) else [])
    if rows.size and (rows.ndim != 2 or rows.shape[1] != 6):
        raise DataError(f"an answer here has shape (n, 6): (x1, y1, x2, y2, score, class), got {rows.shape}")
    boxes = rows.reshape(-1, 6).copy()
    broken = ~np.isfinite(boxes[:, :5]).all(axis=1)
    boxes[broken, :5] = 0.0, 0.0, 0.0, 0.0, np.inf
    classified: np.ndarray = boxes[np.isfinite(boxes[:, 5])]
    return classified


def _matches(answer: Any, target: Any) -> np.ndarray:
    """Rows (kind, class, score, 10 flags of :func:`match`) of detections; of true boxes, their number for the score."""
    found, true = _found_boxes(answer), _true_boxes(target)
    rows = [np.zeros((0, COLUMNS))]
    for kind in np.union1d(found[:, 5], true[:, 4]):
        theirs, own = found[found[:, 5] == kind], true[true[:, 4] == kind]
        theirs = theirs[np.argsort(-theirs[:, 4], kind="stable")][:MOST]
        crowd = own[:, 5] > 0
        part = np.zeros((len(theirs) + 1, COLUMNS))
        part[:, 1] = kind
        part[0, :3] = TRUE_BOXES, kind, np.count_nonzero(~crowd)
        part[1:, 0], part[1:, 2], part[1:, 3:] = DETECTION, theirs[:, 4], match(theirs[:, :4], own[:, :4], crowd)
        rows.append(part)
    return np.concatenate(rows)


def _precisions(flags: np.ndarray, count: int) -> np.ndarray:
    """Mean of the precision at the 101 recalls, of each column of flags, which are in order of their scores.

    Args:
        flags: of a class's detections, shape (detections, overlaps).
        count: true boxes of the class, above 0.
    """
    right, wrong = np.cumsum(flags == RIGHT, axis=0), np.cumsum(flags == WRONG, axis=0)
    precision = right / (right + wrong + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    reached = np.zeros((count, flags.shape[1]))  # the precision when so many boxes are found, 0 if they never are
    rows, columns = np.nonzero(flags == RIGHT)
    reached[right[rows, columns] - 1, columns] = envelope[rows, columns]
    needed = np.searchsorted(np.arange(1, count + 1) / count, RECALLS, side="left")
    means: np.ndarray = reached[needed].sum(axis=0) / len(RECALLS)
    return means


def _mean_average_precision(name: str, levels: slice) -> Metric:
    def value(statistics: Statistics) -> float:
        rows = np.concatenate(list(statistics))
        boxes, found = rows[rows[:, 0] == TRUE_BOXES, 1:3], np.flatnonzero(rows[:, 0] == DETECTION)
        classes, places = np.unique(boxes[:, 0], return_inverse=True)
        counts = np.bincount(places, weights=boxes[:, 1], minlength=len(classes))
        if not counts.any():
            raise DataError(f"{name} needs at least one true box that is no crowd")
        # By class, then by score; of equal scores the earlier sample's comes first, as in pycocotools.
        found = found[np.lexsort((-rows[found, 2], rows[found, 1]))]
        starts = np.searchsorted(rows[found, 1], classes, side="left")
        ends = np.searchsorted(rows[found, 1], classes, side="right")
        flags = rows[:, 3:][:, levels]
        means = [
            _precisions(flags[found[start:end]], int(count))
            for start, end, count in zip(starts, ends, counts, strict=True)
            if count > 0
        ]
        return float(np.mean(means))

    return Metric(name=name, statistics=_matches, value=value)


MAP = _mean_average_precision("map", slice(None))
"""The mean over classes with true boxes, and over overlaps from 0.5 to 0.95, of average precision at 101 recalls."""

MAP_50 = _mean_average_precision("map-50", slice(0, 1))
"""As :data:`MAP`, at an overlap of 0.5."""
