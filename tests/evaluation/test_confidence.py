"""Bounds of a loss: against closed forms, and their coverage by enumerating every outcome."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeattn.cli.options import DEFAULT_SAMPLES
from edgeattn.evaluation.confidence import (
    ALPHA,
    SAMPLES,
    loss_upper,
    net_upper,
    rate_upper,
    samples_needed,
    step_down,
    zero_loss_samples,
)
from edgeattn.quantize.search import most_trials
from edgeattn.results.gates import DEFAULT_MAX_DROP


def binomial(count: int, samples: int, rate: float) -> float:
    """P(X = count)."""
    if rate <= 0.0:
        return float(count == 0)
    log = math.lgamma(samples + 1) - math.lgamma(count + 1) - math.lgamma(samples - count + 1)
    return math.exp(log + count * math.log(rate) + (samples - count) * math.log1p(-rate))


@pytest.mark.parametrize("alpha", [0.05, 0.0125, 0.001])
@pytest.mark.parametrize("samples", [1, 12, 400, 2_000])
def test_where_nothing_changed_the_bound_is_the_exact_one_of_none_seen(samples: int, alpha: float) -> None:
    expected = 1.0 - alpha ** (1.0 / samples)
    assert rate_upper(0, samples, alpha) == pytest.approx(expected, rel=1e-12)
    assert loss_upper(np.zeros(samples), np.full(samples, 3.0), alpha) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("count", "samples"), [(1, 12), (3, 12), (5, 400), (40, 400), (7, 2_000), (11, 12)])
@pytest.mark.parametrize("alpha", [0.05, 0.002])
def test_at_the_bound_of_a_rate_so_few_are_seen_with_probability_alpha(count: int, samples: int, alpha: float) -> None:
    upper = rate_upper(count, samples, alpha)
    assert sum(binomial(k, samples, upper) for k in range(count + 1)) == pytest.approx(alpha, rel=1e-8)


def test_a_rate_of_all_is_not_bounded_and_nonsense_is_refused() -> None:
    assert rate_upper(5, 5) == 1.0
    for count, samples, alpha in ((-1, 5, 0.05), (6, 5, 0.05), (0, 0, 0.05), (1, 5, 0.0)):
        with pytest.raises(ValueError, match="expected 0 <= count <= samples"):
            rate_upper(count, samples, alpha)


def coverage(samples: int, worse: float, better: float, alpha: float) -> float:
    """Exact: the probability that the bound is not below the truth, over every outcome of a multinomial draw."""
    missed = 0.0
    for b in range(min(samples, int(samples * worse + 8 * math.sqrt(samples * worse) + 12)) + 1):
        first = binomial(b, samples, worse)
        if first < 1e-7:
            continue
        rest = samples - b
        rate = better / (1.0 - worse)
        for c in range(min(rest, int(rest * rate + 8 * math.sqrt(rest * rate) + 12)) + 1):
            both = first * binomial(c, rest, rate)
            if both > 1e-8 and net_upper(b, c, samples, alpha) < worse - better - 1e-12:
                missed += both
    return 1.0 - missed


GRID = [(w, b) for w in (0.5, 2.9, 3.1, 5.0, 8.0, 15.0, 25.0) for b in (0.0, 0.2, 1.0, 3.0, 8.0, 20.0) if b <= w]


@pytest.mark.parametrize("alpha", [0.05, 0.0125, 0.002])
@pytest.mark.parametrize("samples", [12, 60, 600])
def test_a_bound_of_paired_answers_covers_as_often_as_it_says(samples: int, alpha: float) -> None:
    expected = [(w, b) for w, b in GRID if w + b <= 0.6 * samples]
    found = {(w, b): coverage(samples, w / samples, b / samples, alpha) for w, b in expected}
    assert min(found.values()) >= 1.0 - alpha - 1e-6, min(found, key=found.__getitem__)


def test_changes_for_the_better_tell_in_favour_and_those_for_the_worse_against() -> None:
    assert net_upper(3, 0, 600) > net_upper(3, 3, 600) > net_upper(0, 0, 600)
    assert net_upper(0, 9, 600) == net_upper(0, 0, 600)  # never better than nothing seen
    # 20 and 20 of 1000 differ: the standard error is sqrt(40) / 1000, its 95 % quantile 1.645 times that.
    assert net_upper(20, 20, 1_000) == pytest.approx(1.645 * math.sqrt(40) / 1_000, rel=0.1)


WHOLE = (0.0, 0.05)  # of the utterances that become worse, those that lose all their words


@pytest.mark.parametrize("whole", WHOLE)
@pytest.mark.parametrize(("worse", "better"), [(3.5, 0.0), (5.0, 2.0), (20.0, 0.0), (20.0, 15.0)])
def test_a_bound_of_word_error_covers_on_utterances_of_one_to_ten_words(
    worse: float, better: float, whole: float
) -> None:
    rng, samples, runs, lengths = np.random.default_rng(0), 300, 300, np.arange(1, 11)
    one, two = 1 - whole - 0.1, 0.1
    lost = one + two * np.minimum(2, lengths) + whole * lengths
    truth = (worse * lost.mean() - better) / samples / lengths.mean()
    missed = 0
    for _ in range(runs):
        words = rng.integers(1, 11, samples).astype(np.float64)
        draw, size = rng.random(samples), rng.random(samples)
        edits = np.where(size < one, 1.0, np.where(size < one + two, np.minimum(2.0, words), words))
        losses = np.where(draw * samples < worse, edits, np.where(draw * samples < worse + better, -1.0, 0.0))
        missed += loss_upper(losses, words) < truth
    assert missed <= ALPHA * runs + 3 * math.sqrt(ALPHA * runs)


def test_weights_that_are_all_one_give_the_bound_of_counts() -> None:
    losses = np.zeros(500)
    losses[:4], losses[4:6] = 1.0, -1.0
    assert loss_upper(losses, np.ones(500)) == pytest.approx(net_upper(4, 2, 500), rel=1e-9)
    assert loss_upper(7.0 * losses, np.full(500, 7.0)) == pytest.approx(net_upper(4, 2, 500), rel=1e-9)


def test_few_samples_with_large_losses_are_not_told_as_sure() -> None:
    losses = np.array([10.0, 0.0, 0.0])
    assert loss_upper(losses, np.array([10.0, 1.0, 1.0])) >= 1.0
    with pytest.raises(ValueError, match="need samples with weights"):
        loss_upper(np.zeros(0), np.zeros(0))


@pytest.mark.parametrize("alpha", [0.05, 0.0125])
def test_the_samples_needed_are_the_fewest_that_show_it(alpha: float) -> None:
    needed = zero_loss_samples(0.005, alpha)
    assert rate_upper(0, needed, alpha) <= 0.005 < rate_upper(0, needed - 1, alpha)
    assert samples_needed(np.zeros(12), np.ones(12), 0.005, alpha) == needed
    losses = np.zeros(400)
    losses[0] = 1.0
    found = samples_needed(losses, np.ones(400), 0.005, alpha)
    assert found is not None
    assert found > needed
    assert net_upper(found / 400, 0, found, alpha) <= 0.005 < net_upper(0.98 * found / 400, 0, 0.98 * found, alpha)
    assert samples_needed(np.ones(10), np.ones(10), 0.005, alpha) is None
    assert zero_loss_samples(1.0) == 1


def test_the_default_samples_can_prove_the_default_budget_after_a_whole_search() -> None:
    trials = most_trials(200) + 2  # over 200 layers, a slower recipe and a recovery
    assert rate_upper(0, SAMPLES, ALPHA / 2 / trials) <= DEFAULT_MAX_DROP / 100
    assert DEFAULT_SAMPLES == SAMPLES


def test_holm_gives_what_is_left_to_the_others() -> None:
    # Bounds at alpha / 3, alpha / 2 and alpha.
    assert step_down([(0.9, 0.6, 0.4), (0.4, 0.3, 0.2), (0.6, 0.5, 0.4)], 0.5) == (True, True, True)
    assert step_down([(0.9, 0.7, 0.6), (0.4, 0.3, 0.2), (0.6, 0.55, 0.4)], 0.5) == (False, True, False)
    assert step_down([(0.9, 0.6, 0.4)] * 3, 0.5) == (False, False, False)
