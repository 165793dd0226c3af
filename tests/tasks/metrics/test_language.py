"""Perplexity against its closed form and scikit-learn's log loss; error rates against jiwer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import DataError
from edgeattn.tasks import Metric
from edgeattn.tasks.metrics.language import CER, NEXT_TOKEN_ACCURACY, PER, PERPLEXITY, WER, log_likelihoods
from tests.tasks.metrics.measuring import measured

TEXTS = st.lists(st.sampled_from(["one", "two", "zwölf", "三"]), max_size=8).map(" ".join)


def test_perplexity_is_the_exponential_of_the_log_loss() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="the oracle: pip install scikit-learn")
    rng = np.random.default_rng(0)
    logits, tokens = rng.standard_normal((2, 99, 5)) * 3, rng.integers(0, 5, (2, 99))
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    oracle = math.exp(metrics.log_loss(tokens.ravel(), shares.reshape(-1, 5), labels=range(5)))
    assert measured(PERPLEXITY, list(zip(logits, tokens, strict=True))) == pytest.approx(oracle, rel=1e-9)
    hits = float((logits.argmax(-1) == tokens).mean())
    assert measured(NEXT_TOKEN_ACCURACY, list(zip(logits, tokens, strict=True))) == pytest.approx(hits, abs=1e-12)


@pytest.mark.parametrize("vocabulary", [1, 7, 1_000])
def test_equal_logits_have_the_perplexity_of_the_vocabulary(vocabulary: int) -> None:
    logits = np.full((3, vocabulary), 1e30, np.float32)
    assert measured(PERPLEXITY, [(logits, [0] * 3)]) == pytest.approx(vocabulary, rel=1e-12)


def test_every_token_weighs_the_same_and_ignored_ones_nothing() -> None:
    sure, even = [[100.0, 0.0]], [[0.0, 0.0]]
    pairs = [(sure * 3 + even, [0, 0, -100, -100]), (even * 2, [0, 1])]
    assert measured(PERPLEXITY, pairs) == pytest.approx(math.sqrt(2), rel=1e-12)
    assert measured(NEXT_TOKEN_ACCURACY, pairs) == 0.75


@pytest.mark.parametrize("logits", [[math.nan, 0.0], [0.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_a_token_of_nan_likelihood_is_as_bad_as_can_be(logits: list[float]) -> None:
    assert measured(PERPLEXITY, [([[0.0, 0.0]], [0]), ([logits], [0])]) == math.inf
    assert log_likelihoods(np.array([logits]), np.array([1]))[0] == -math.inf


def test_an_impossible_token_and_one_beyond_floats_are_infinitely_surprising() -> None:
    assert measured(PERPLEXITY, [([[0.0, -math.inf]], [1])]) == math.inf
    assert measured(PERPLEXITY, [([[0.0, -1e9]], [1])]) == math.inf
    assert measured(PERPLEXITY, [([[0.0, -math.inf]], [0])]) == 1.0


def test_a_nan_logit_predicts_no_next_token() -> None:
    assert measured(NEXT_TOKEN_ACCURACY, [([[math.nan, 0.0], [1.0, math.nan], [1.0, 0.0]], [0, 0, 0])]) == 1 / 3


@pytest.mark.parametrize("metric", [PERPLEXITY, NEXT_TOKEN_ACCURACY], ids=lambda m: m.name)
def test_tokens_that_do_not_fit_are_refused(metric: Metric) -> None:
    for logits, tokens in (([[0.0]], [0, 0]), ([0.0], [0]), ([[[0.0]]], [0]), ([], [])):
        with pytest.raises(DataError, match=r"do not fit .*: \(tokens, vocabulary\) do"):
            metric.statistics(logits, tokens)
    for token in (2, -1, 0.5, math.nan):
        with pytest.raises(DataError, match="a token is a whole number from 0 below 2, or -100"):
            metric.statistics([[0.0, 0.0]], [token])
    with pytest.raises(DataError, match="expected numbers"):
        metric.statistics([["a"]], [0])
    with pytest.raises(DataError, match="needs at least one token among the targets"):
        metric.value([metric.statistics([[0.0, 0.0]], [-100])])


@given(pairs=st.lists(st.tuples(TEXTS, TEXTS.filter(bool)), min_size=1, max_size=4))
def test_error_rates_are_those_of_jiwer(pairs: list[tuple[str, str]]) -> None:
    jiwer = pytest.importorskip("jiwer", reason="the oracle of error rates: edgeattn[speech] installs it")
    answers, targets = ([pair[side] for pair in pairs] for side in (0, 1))
    assert measured(WER, pairs) == pytest.approx(jiwer.wer(targets, answers), abs=1e-12)
    assert measured(PER, pairs) == pytest.approx(jiwer.wer(targets, answers), abs=1e-12)
    assert measured(CER, pairs) == pytest.approx(jiwer.cer(targets, answers), abs=1e-12)


def test_units_may_come_in_a_list() -> None:
    assert measured(PER, [(["k", "æ"], ("k", "æ", "t"))]) == pytest.approx(1 / 3)
    assert measured(WER, [(["new york"], "new york")]) == 1.0


@pytest.mark.parametrize("metric", [WER, CER, PER], ids=lambda m: m.name)
def test_an_answer_that_is_no_text_has_heard_nothing(metric: Metric) -> None:
    assert not metric.higher_is_better
    for answer in (math.nan, None, "", [math.nan]):
        assert measured(metric, [(answer, "a b c")]) == 1.0
    assert measured(metric, [(math.nan, ""), ("ab", "ab")]) > 0.0  # is an error where there is nothing to hear


@pytest.mark.parametrize("metric", [WER, CER, PER], ids=lambda m: m.name)
def test_targets_without_text_are_refused(metric: Metric) -> None:
    with pytest.raises(DataError, match="needs at least one unit"):
        metric.value([metric.statistics("a", "")])
    with pytest.raises(DataError, match="a target here is a text or a list of texts"):
        metric.statistics("a", math.nan)
