"""What holds for all metrics: names, units, and that a sample among many is left out in little time."""

from __future__ import annotations

import importlib
import re
import time
from collections import Counter

import numpy as np
import pytest

from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics import __all__ as families
from edgeattn.tasks.metrics.classification import macro_f1, matthews, top_k_accuracy
from edgeattn.tasks.metrics.enhancement import stoi
from edgeattn.tasks.metrics.generation import bleu, rouge_l
from edgeattn.tasks.metrics.ranking import ROC_AUC, hits_at, mrr_at, ndcg_at, recall_at
from edgeattn.tasks.metrics.regression import R2
from edgeattn.tasks.metrics.segmentation import dice, mean_iou
from edgeattn.tasks.metrics.similarity import SPEARMAN
from edgeattn.tasks.metrics.verification import EER

MADE = [
    *(made(3) for made in (top_k_accuracy, macro_f1, matthews, mean_iou, dice, recall_at, mrr_at, ndcg_at, hits_at)),
    *(bleu(), bleu("zh"), rouge_l(), rouge_l(characters=True), stoi(16_000)),
]
NOT_SUMMED = {"eer", "map", "map-50", "min-dcf", "pearson", "r2", "roc-auc", "spearman"}
LOWER_IS_BETTER = {"cer", "eer", "false-alarms-per-hour", "false-rejection-rate", "mae", "min-dcf", "mse", "per", "wer"}


def constants() -> list[Metric]:
    """Those that every family holds ready."""
    modules = [importlib.import_module(f"edgeattn.tasks.metrics.{family}") for family in families]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Metric)]


def every() -> list[Metric]:
    return [*constants(), *MADE]


def test_names_are_the_fields_and_each_stands_once() -> None:
    names = [metric.name for metric in every()]
    twice = {name for name, count in Counter(names).items() if count > 1}
    assert twice == {"f1", "exact-match"}  # of spans, and of classes and texts: a task has one of each
    assert [name for name in names if not re.fullmatch(r"[a-z0-9]+([-@][a-z0-9]+)*", name)] == []


def test_units_and_directions() -> None:
    assert {metric.unit for metric in every()} == {"%", "dB", ""}
    assert {metric.name for metric in every() if not metric.higher_is_better} == {*LOWER_IS_BETTER, "perplexity"}
    assert {metric.name for metric in every() if not metric.summed} == NOT_SUMMED


@pytest.mark.parametrize("metric", [ROC_AUC, EER, SPEARMAN, R2], ids=lambda m: m.name)
def test_a_value_of_two_thousand_samples_takes_milliseconds(metric: Metric) -> None:
    rng = np.random.default_rng(0)
    pairs = zip(rng.random(2_000), rng.integers(0, 2, 2_000), strict=True)
    statistics = np.stack([metric.statistics(answer, target) for answer, target in pairs])
    begin = time.process_time()
    for index in range(10):
        metric.value(np.delete(statistics, index, axis=0))
    assert time.process_time() - begin < 0.2  # a tenth of it on an idle machine
