"""What may come next, against transformers' own processors, and what is drawn, against closed forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.runtimes import GenerateOptions
from edgeattn.runtimes.generation.plan import Plan, plan_of
from edgeattn.runtimes.generation.rules import Rules, log_softmax, probabilities, repeated

WORDS, LENGTH = 9, 12
PLAIN = plan_of(GenerateOptions(), {})


def applied(plan: Plan, tokens: list[int], scores: np.ndarray, prompt: int = 1) -> np.ndarray:
    return Rules(plan, prompt, LENGTH).apply(tokens, scores.copy())


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(WORDS).astype(np.float32)


@given(
    tokens=st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=LENGTH - 1),
    seed=st.integers(0, 99),
    penalty=st.sampled_from([1.0, 1.5, 0.7]),
    ngram=st.sampled_from([0, 1, 2, 3]),
    shortest=st.sampled_from([0, 4]),
    forced=st.booleans(),
    words=st.sampled_from([(), ((3,),), ((2,), (4, 5), (1, 1, 1))]),
)
def test_all_rules_together_are_transformers_processors_in_their_order(
    tokens: list[int], seed: int, penalty: float, ngram: int, shortest: int, forced: bool, words: Any
) -> None:
    torch = pytest.importorskip("torch", reason="transformers computes with it: edgeattn[hf]")
    processors: Any = pytest.importorskip("transformers", reason="the oracle: edgeattn[hf]").generation.logits_process
    plan = replace(
        PLAIN, repetition_penalty=penalty, no_repeat_ngram=ngram, min_length=shortest, bad_words=words, stop=(2,),
        forced_bos=(6,) if forced else (), forced_eos=(2,) if forced else (), suppress=(7,), begin_suppress=(8,),
    )  # fmt: skip
    chain = []
    if penalty != 1.0:
        chain.append(processors.RepetitionPenaltyLogitsProcessor(penalty))
    if ngram:
        chain.append(processors.NoRepeatNGramLogitsProcessor(ngram))
    if words:
        chain.append(processors.NoBadWordsLogitsProcessor([list(word) for word in words], 2))
    if shortest:
        chain.append(processors.MinLengthLogitsProcessor(shortest, 2))
    if forced:
        chain += [processors.ForcedBOSTokenLogitsProcessor(6), processors.ForcedEOSTokenLogitsProcessor(LENGTH, 2)]
    chain.append(processors.SuppressTokensLogitsProcessor([7]))
    chain.append(processors.SuppressTokensAtBeginLogitsProcessor([8], 2 if forced else 1))
    expected = torch.from_numpy(noise(seed))[None].clone()
    for processor in chain:
        expected = processor(torch.tensor([tokens]), expected)
    np.testing.assert_array_equal(applied(plan, tokens, noise(seed)), expected[0].numpy())


def test_a_text_does_not_stop_before_its_new_tokens() -> None:
    plan = replace(PLAIN, stop=(2,), min_new_tokens=3, min_length=99)
    assert np.isneginf(applied(plan, [5, 5, 1, 1], noise(0), prompt=2)[2])
    assert np.isfinite(applied(plan, [5, 5, 1, 1, 1], noise(0), prompt=2)[2])


def test_tokens_that_the_model_lacks_are_passed_over() -> None:
    plan = replace(PLAIN, suppress=(1, 900), stop=(901,), repetition_penalty=2.0, bad_words=((902,),))
    assert np.isneginf(applied(plan, [950], noise(0))).tolist() == [index == 1 for index in range(WORDS)]


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4))
def test_a_repeated_sequence_is_one_that_stood_there(tokens: list[int], size: int) -> None:
    there = {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}
    expected = {last for last in range(4) if tuple([*tokens, last][-size:]) in there and len(tokens) >= size - 1}
    assert repeated(tokens, size) == expected


def test_log_probabilities_sum_to_one() -> None:
    np.testing.assert_allclose(np.exp(log_softmax(noise(1))).sum(), 1, atol=1e-6)
    shifted = log_softmax(noise(1) + np.float32(1000))
    np.testing.assert_allclose(shifted, log_softmax(noise(1)), atol=1e-3)  # float32 near 1000 has steps of 6e-5


def test_what_is_drawn_without_a_rule_is_softmax() -> None:
    scores = noise(2)
    expected = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(probabilities(replace(PLAIN, top_k=0), scores), expected, atol=1e-7)


def test_temperature_divides_the_logits() -> None:
    scores = noise(2)
    expected = np.exp(scores / 0.5) / np.exp(scores / 0.5).sum()
    np.testing.assert_allclose(probabilities(replace(PLAIN, top_k=0, temperature=0.5), scores), expected, atol=1e-7)


def test_the_best_k_are_drawn_by_their_shares() -> None:
    scores = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    np.testing.assert_allclose(probabilities(replace(PLAIN, top_k=2), scores), [4 / 7, 3 / 7, 0, 0], atol=1e-7)


@pytest.mark.parametrize(("top_p", "kept"), [(0.3, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_the_fewest_that_have_p_together_are_drawn(top_p: float, kept: int) -> None:
    shares = np.array([0.1, 0.4, 0.3, 0.2], np.float32)
    drawn = probabilities(replace(PLAIN, top_k=0, top_p=top_p), np.log(shares))
    order = np.argsort(-shares)
    assert set(np.flatnonzero(drawn)) == set(order[:kept].tolist())
    np.testing.assert_allclose(drawn.sum(), 1)


def test_the_share_of_forbidden_tokens_is_nothing() -> None:
    scores = noise(3)
    scores[4] = -np.inf
    assert probabilities(PLAIN, scores)[4] == 0
