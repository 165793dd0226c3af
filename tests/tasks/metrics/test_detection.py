"""Average precision of boxes against pycocotools."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.tasks import Metric
from edgeattn.tasks.metrics.detection import MAP, MAP_50, match, overlaps
from tests.tasks.metrics.measuring import measured

BOTH = [MAP, MAP_50]
Rows = list[tuple[float, ...]]
BOX = (0.0, 0.0, 10.0, 10.0)


def oracle(images: list[tuple[Rows, Rows]]) -> tuple[float, float]:
    """What COCOeval says: of 0.5 to 0.95, and of 0.5."""
    coco = pytest.importorskip("pycocotools.coco", reason="the oracle: pip install pycocotools")
    from pycocotools.cocoeval import COCOeval

    def box(row: tuple[float, ...]) -> dict[str, Any]:
        width, height = row[2] - row[0], row[3] - row[1]
        return {"bbox": [row[0], row[1], width, height], "area": width * height}

    classes = sorted(
        {int(row[4]) for _, true in images for row in true} | {int(row[5]) for f, _ in images for row in f}
    )
    boxes = [(image, row) for image, (_, true) in enumerate(images) for row in true]
    found = [(image, row) for image, (rows, _) in enumerate(images) for row in rows]
    with contextlib.redirect_stdout(io.StringIO()):
        truth, said = coco.COCO(), coco.COCO()
        for index, dataset in enumerate((truth, said)):
            dataset.dataset = {
                "images": [{"id": image} for image in range(len(images))],
                "categories": [{"id": one} for one in classes],
                "annotations": [
                    {"id": n, "image_id": image, "category_id": int(row[5]), "score": row[4], "iscrowd": 0, **box(row)}
                    if index
                    else {
                        "id": n,
                        "image_id": image,
                        "category_id": int(row[4]),
                        "iscrowd": int(sum(row[5:])),
                        **box(row),
                    }
                    for n, (image, row) in enumerate(found if index else boxes, 1)
                ],
            }
            dataset.createIndex()
        evaluation = COCOeval(truth, said, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def random_images(seed: int, *, classes: int, crowds: float, levels: int) -> list[tuple[Rows, Rows]]:
    """True boxes, and detections near most of them, at whole pixels; few score levels make ties."""
    rng, images = np.random.default_rng(seed), []
    for _ in range(6):
        true: Rows = []
        found: Rows = []
        for _ in range(int(rng.integers(0, 9))):
            x, y, width, height = (int(one) for one in (*rng.integers(0, 60, 2), *rng.integers(4, 30, 2)))
            kind = int(rng.integers(0, classes))
            true.append((x, y, x + width, y + height, kind, float(rng.random() < crowds)))
            for _ in range(int(rng.integers(0, 4))):
                left, top, right, bottom = (int(one) for one in rng.integers(-3, 4, 4) * rng.integers(0, 2))
                low, high = (x + left, y + top), (x + width + max(right, left), y + height + max(bottom, top))
                score = float(rng.integers(0, levels)) / levels
                found.append((*low, *high, score, kind if rng.random() < 0.8 else int(rng.integers(0, classes + 1))))
        images.append(([found[index] for index in rng.permutation(len(found))], true))
    return images


def value(metric: Metric, images: list[tuple[Rows, Rows]]) -> float:
    """Without :func:`measured`: between equal scores, the order of the images decides, there as here."""
    return metric.value([metric.statistics(found, true) for found, true in images])


@pytest.mark.parametrize("seed", range(12))
def test_precision_is_that_of_pycocotools(seed: int) -> None:
    images = random_images(seed, classes=1 + seed % 3, crowds=(0.0, 0.3)[seed % 2], levels=(1000, 5, 1)[seed % 3])
    expected = oracle(images)
    assert value(MAP, images) == pytest.approx(expected[0], abs=1e-9)
    assert value(MAP_50, images) == pytest.approx(expected[1], abs=1e-9)
    assert 0.02 < expected[0] < expected[1] < 1.0  # neither all nor nothing


CASES: dict[str, tuple[Rows, Rows]] = {
    "nothing found": ([], [(*BOX, 0)]),
    "all found": ([(*BOX, 0.5, 0)], [(*BOX, 0)]),
    "found twice": ([(*BOX, 0.5, 0), (*BOX, 0.9, 0)], [(*BOX, 0)]),
    "another class": ([(*BOX, 0.5, 1)], [(*BOX, 0)]),
    "a class that is nowhere true": ([(*BOX, 0.5, 0), (*BOX, 0.5, 7)], [(*BOX, 0)]),
    "exactly half": ([(0, 0, 10, 5, 0.5, 0)], [(*BOX, 0)]),
    "less than half": ([(0, 0, 10, 4, 0.5, 0)], [(*BOX, 0)]),
    "exactly three quarters": ([(0, 0, 10, 15, 0.5, 0)], [(0, 0, 10, 20, 0)]),
    "no area": ([(5, 5, 5, 5, 0.5, 0)], [(*BOX, 0)]),
    "touching": ([(10, 0, 20, 10, 0.5, 0)], [(*BOX, 0)]),
    "two equal true boxes": ([(*BOX, 0.5, 0), (*BOX, 0.4, 0)], [(*BOX, 0), (*BOX, 0)]),
    "as near to two": ([(0, 0, 10, 8, 0.9, 0), (0, 0, 10, 10, 0.8, 0)], [(0, 0, 10, 10, 0), (0, 0, 10, 6, 0)]),
    "in a crowd": ([(0, 0, 4, 4, 0.9, 0), (1, 1, 5, 5, 0.8, 0), (30, 30, 40, 40, 0.7, 0)],
                   [(*BOX, 0, 1), (30, 30, 40, 40, 0, 0)]),
    "a box before its crowd": ([(*BOX, 0.9, 0), (*BOX, 0.8, 0)], [(*BOX, 0, 1), (*BOX, 0, 0)]),
    "a class of crowds alone": ([(*BOX, 0.9, 1), (*BOX, 0.8, 0)], [(*BOX, 1, 1), (*BOX, 0)]),
    "a hundred false ones before": ([*[(50, 50, 60, 60, 0.9, 0)] * 100, (*BOX, 0.1, 0)], [(*BOX, 0)]),
    "ninety-nine false ones before": ([*[(50, 50, 60, 60, 0.9, 0)] * 99, (*BOX, 0.1, 0)], [(*BOX, 0)]),
    "all of one score": ([(50, 50, 60, 60, 0.5, 0), (*BOX, 0.5, 0)], [(*BOX, 0)]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_precision_of_single_images_is_that_of_pycocotools(case: str) -> None:
    expected = oracle([CASES[case]])
    assert measured(MAP, [CASES[case]]) == pytest.approx(expected[0], abs=1e-9)
    assert measured(MAP_50, [CASES[case]]) == pytest.approx(expected[1], abs=1e-9)


def test_a_box_counts_from_its_overlap_on() -> None:
    assert measured(MAP, [CASES["all found"]]) == pytest.approx(1.0, abs=1e-12)
    assert measured(MAP, [CASES["exactly half"]]) == pytest.approx(0.1, abs=1e-12)
    assert measured(MAP_50, [CASES["exactly half"]]) == pytest.approx(1.0, abs=1e-12)
    assert measured(MAP_50, [CASES["less than half"]]) == 0.0


def test_images_without_boxes_add_their_false_ones() -> None:
    alone = [([(*BOX, 0.5, 0)], [(*BOX, 0)])]
    assert measured(MAP, [*alone, ([], [])]) == pytest.approx(1.0, abs=1e-12)
    assert measured(MAP, [*alone, ([(*BOX, 0.9, 0)], [])]) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("metric", BOTH, ids=lambda m: m.name)
@pytest.mark.parametrize("place", range(5))
def test_a_detection_with_a_nan_is_a_false_one_before_all_others(metric: Metric, place: int) -> None:
    broken = [math.nan if index == place else one for index, one in enumerate((*BOX, 0.1, 0.0))]
    assert measured(metric, [([broken], [(*BOX, 0)])]) == 0.0
    assert measured(metric, [([(*BOX, 0.9, 0), broken], [(*BOX, 0)])]) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("metric", BOTH, ids=lambda m: m.name)
def test_what_has_no_class_finds_nothing(metric: Metric) -> None:
    assert measured(metric, [([(*BOX, 0.9, math.nan)], [(*BOX, 0)])]) == 0.0
    nothing: list[object] = [None, math.nan, [], np.zeros((0, 6))]
    for answer in nothing:
        assert measured(metric, [(answer, [(*BOX, 0)])]) == 0.0


@pytest.mark.parametrize("metric", BOTH, ids=lambda m: m.name)
def test_what_are_no_boxes_is_refused(metric: Metric) -> None:
    with pytest.raises(DataError, match=r"an answer here has shape \(n, 6\).*got \(1, 5\)"):
        metric.statistics([(*BOX, 0.5)], [])
    odd: list[object] = [BOX, (*BOX, math.nan), (math.nan, 0, 1, 1, 0), [[0.0]]]
    for row in odd:
        with pytest.raises(DataError, match=r"a true box is \(x1, y1, x2, y2, class\)"):
            metric.statistics([], [row])
    for row in [(5, 0, 1, 1, 0), (*BOX, 0, 2)]:
        with pytest.raises(DataError, match="a true box has x1 <= x2, y1 <= y2, and crowd is 0 or 1"):
            metric.statistics([], [row])
    with pytest.raises(DataError, match="a target here is a list of boxes"):
        metric.statistics([], None)


@pytest.mark.parametrize("metric", BOTH, ids=lambda m: m.name)
@pytest.mark.parametrize("true", [[], [(*BOX, 0, 1)]], ids=["no boxes", "crowds"])
def test_targets_without_boxes_are_refused(metric: Metric, true: Rows) -> None:
    with pytest.raises(DataError, match=f"{metric.name} needs at least one true box that is no crowd"):
        measured(metric, [([(*BOX, 0.5, 0)], true)])


def test_overlaps_are_those_of_their_areas() -> None:
    found, true = np.array([[0, 0, 2, 2], [5, 5, 6, 6]], float), np.array([[1, 1, 3, 3], [0, 0, 8, 8]], float)
    expected = [[1 / 7, 1.0], [0.0, 1.0]]
    np.testing.assert_allclose(overlaps(found, true, np.array([False, True])), expected, atol=1e-12)
    assert match(found[:0], true, np.array([False, True])).shape == (0, 10)
