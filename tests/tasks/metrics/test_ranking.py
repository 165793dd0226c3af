"""NDCG and the area under the curve against scikit-learn, the others against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import DataError
from edgeattn.tasks import Metric
from edgeattn.tasks.metrics.ranking import MRR, ROC_AUC, average_ranks, hits_at, mrr_at, ndcg_at, recall_at
from tests.tasks.metrics.measuring import measured

LISTS = [recall_at(2), mrr_at(2), ndcg_at(2)]


@given(
    queries=st.lists(
        st.tuples(st.permutations(range(6)), st.lists(st.integers(0, 3), min_size=6, max_size=6).filter(any)),
        min_size=1,
        max_size=4,
    ),
    k=st.integers(1, 7),
)
def test_ndcg_is_that_of_scikit_learn(queries: list[tuple[list[int], list[int]]], k: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="the oracle: pip install scikit-learn")
    scores = [[-ranked.index(one) for one in range(6)] for ranked, _ in queries]
    oracle = metrics.ndcg_score([gains for _, gains in queries], scores, k=k)
    pairs = [(ranked, dict(enumerate(gains))) for ranked, gains in queries]
    assert measured(ndcg_at(k), pairs) == pytest.approx(oracle, abs=1e-9)


SCORES = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.inf]), st.booleans()), min_size=2, max_size=30)


@given(trials=SCORES.filter(lambda trials: len({same for _, same in trials}) == 2))
def test_the_area_is_that_of_all_pairs(trials: list[tuple[float, bool]]) -> None:
    ones, zeros = ([score for score, same in trials if same == kind] for kind in (True, False))
    wins = sum((one > zero) + (one == zero) / 2 for one in ones for zero in zeros)
    assert measured(ROC_AUC, trials) == pytest.approx(wins / len(ones) / len(zeros), abs=1e-12)


def test_the_area_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="the oracle: pip install scikit-learn")
    rng = np.random.default_rng(0)
    scores, targets = rng.standard_normal(200).round(1), rng.integers(0, 2, 200)
    pairs = list(zip(scores, targets, strict=True))
    assert measured(ROC_AUC, pairs) == pytest.approx(metrics.roc_auc_score(targets, scores), abs=1e-9)


def test_ties_count_half_and_nan_is_the_worst() -> None:
    assert measured(ROC_AUC, [(0.5, 1), (0.5, 0), (0.5, 1)]) == 0.5
    assert measured(ROC_AUC, [(math.nan, 1), (math.nan, 0)]) == 0.0
    assert measured(ROC_AUC, [(None, 1), (-1e9, 0)]) == 0.0
    assert measured(ROC_AUC, [(1e9, True), (math.nan, False)]) == 0.0


@pytest.mark.parametrize("target", [0, 1])
def test_the_area_needs_both_kinds(target: int) -> None:
    with pytest.raises(DataError, match="roc-auc needs both positive and negative targets"):
        measured(ROC_AUC, [(0.1, target), (0.2, target)])
    with pytest.raises(DataError, match="a target here is 1"):
        ROC_AUC.statistics(0.5, 0.5)


@pytest.mark.parametrize(
    ("answer", "target", "recall", "reciprocal", "gain"),
    [
        (["a", "b", "c"], ["a"], 1.0, 1.0, 1.0),
        (["b", "a", "c"], ["a"], 1.0, 0.5, 1 / math.log2(3)),
        (["b", "c", "a"], ["a"], 0.0, 0.0, 0.0),
        (["é", "b"], ["é", "b", "c", "d"], 0.5, 1.0, 1.0),
        (["b", "b", "a"], ["a"], 1.0, 0.5, 1 / math.log2(3)),  # the second b is not counted
        (["b", math.nan, "a"], ["a"], 0.0, 0.0, 0.0),  # what is no id keeps its place
        ([math.nan, math.nan, "a"], ["a"], 0.0, 0.0, 0.0),
        (np.array([7, 3]), [3], 1.0, 0.5, 1 / math.log2(3)),
        ([np.int64(3)], {3: 2.0, 4: 0}, 1.0, 1.0, 1.0),
        ([], ["a"], 0.0, 0.0, 0.0),
        (None, ["a"], 0.0, 0.0, 0.0),
        (math.nan, ["a"], 0.0, 0.0, 0.0),
    ],
)
def test_the_first_two_of_plain_rankings(
    answer: object, target: object, recall: float, reciprocal: float, gain: float
) -> None:
    expected = (recall, reciprocal, gain)
    for metric, value in zip(LISTS, expected, strict=True):
        assert measured(metric, [(answer, target)]) == pytest.approx(value, abs=1e-12), metric.name
        assert measured(metric, [(answer, target), (["z"], ["z"])]) == pytest.approx((1 + value) / 2, abs=1e-12)


@pytest.mark.parametrize("metric", LISTS, ids=lambda m: m.name)
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([], "at least one relevant id"),
        ({"a": 0}, "at least one relevant id"),
        ("a", "a target here is the relevant ids"),
        (None, "a target here is the relevant ids"),
        ({"a": -1.0}, "its gain is at least 0"),
        ({"a": math.nan}, "a target here is a finite number"),
        ([1.5], "a text or a whole number"),
    ],
)
def test_a_target_of_no_relevant_ids_is_refused(metric: Metric, target: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        metric.statistics(["a"], target)


def test_ranks_that_were_found_are_taken() -> None:
    ranks = [
        (1, None),
        (2.0, "any"),
        (4, None),
        (math.nan, None),
        (None, None),
        (0, None),
        (-3, None),
        (np.int64(1), 0),
    ]
    assert measured(MRR, ranks) == pytest.approx((1 + 0.5 + 0.25 + 1) / 8)
    assert measured(hits_at(1), ranks) == 2 / 8
    assert measured(hits_at(3), ranks) == 3 / 8


def test_names_hold_their_k() -> None:
    assert [one.name for one in (*LISTS, hits_at(10))] == ["recall@2", "mrr@2", "ndcg@2", "hits@10"]


@given(values=st.lists(st.integers(-3, 3), min_size=1))
def test_equal_values_share_their_ranks(values: list[int]) -> None:
    stats = pytest.importorskip("scipy.stats", reason="the oracle: comes with scikit-learn")
    np.testing.assert_allclose(average_ranks(np.array(values, float)), stats.rankdata(values), atol=1e-12)
