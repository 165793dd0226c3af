"""What is done to the scores of the next token before one is chosen: transformers' processors, in their order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeattn.runtimes.generation.plan import Plan

FORBIDDEN = np.float32(-np.inf)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits, [tokens] or rows of them.

    >>> np.exp(log_softmax(np.array([0.0, np.log(3.0)]))).round(6).tolist()
    [0.25, 0.75]
    """
    shifted = scores - scores.max(-1, keepdims=True)
    logs: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logs


class Rules:
    """Which tokens may come next, and how likely each is made.

    Args:
        plan: see :class:`~edgeattn.runtimes.generation.plan.Plan`.
        given: tokens that stood there before the first new one: a causal model's prompt, a decoder's start.
        length: tokens in all, at most.
    """

    def __init__(self, plan: Plan, given: int, length: int) -> None:
        self._plan, self._given, self._length = plan, given, length
        self._shortest = given + plan.min_new_tokens if plan.min_new_tokens else plan.min_length
        self._words = [word for word in plan.bad_words if word not in {(token,) for token in plan.stop}]
        # A first token that is forced is no choice: what may not begin the text comes behind it.
        self._begin = given if given > 1 or not plan.forced_bos else given + 1

    def apply(self, tokens: Sequence[int], scores: np.ndarray) -> np.ndarray:
        """The scores of the next token with all rules applied.

        Args:
            tokens: all so far, the given ones included.
            scores: logits, or log-probabilities in a beam search; [vocabulary], float32, changed in place.
        """
        plan = self._plan
        if plan.repetition_penalty != 1.0:
            said = _within(set(tokens), scores)
            factor = np.float32(plan.repetition_penalty)
            scores[said] = np.where(scores[said] < 0, scores[said] * factor, scores[said] / factor)
        if plan.no_repeat_ngram:
            scores[_within(repeated(tokens, plan.no_repeat_ngram), scores)] = FORBIDDEN
        for word in self._words:
            *before, last = word
            if list(tokens[len(tokens) - len(before) :]) == before:
                scores[_within((last,), scores)] = FORBIDDEN
        if len(tokens) < self._shortest:
            scores[_within(plan.stop, scores)] = FORBIDDEN
        if plan.forced_bos and len(tokens) == 1:
            scores = _only(plan.forced_bos, scores)
        if plan.forced_eos and len(tokens) == self._length - 1:
            scores = _only(plan.forced_eos, scores)
        scores[_within(plan.suppress, scores)] = FORBIDDEN
        if len(tokens) == self._begin:
            scores[_within(plan.begin_suppress, scores)] = FORBIDDEN
        return scores


def _within(tokens: Sequence[int] | set[int], scores: np.ndarray) -> np.ndarray:
    """Those tokens that there are scores for: configs name some that a cut vocabulary lacks."""
    return np.array([token for token in tokens if token < len(scores)], np.int64)


def _only(tokens: Sequence[int], scores: np.ndarray) -> np.ndarray:
    forced = np.full_like(scores, FORBIDDEN)
    forced[_within(tokens, scores)] = 0.0
    return forced


def repeated(tokens: Sequence[int], size: int) -> set[int]:
    """Tokens that would end a sequence of ``size`` tokens that was there before.

    >>> repeated([5, 6, 7, 5, 6], 3)
    {7}
    """
    end = tuple(tokens[len(tokens) - size + 1 :])
    if len(end) < size - 1:
        return set()
    starts = range(len(tokens) - size + 1)
    return {tokens[i + size - 1] for i in starts if tuple(tokens[i : i + size - 1]) == end}


def probabilities(plan: Plan, scores: np.ndarray) -> np.ndarray:
    """What a token is drawn by: temperature, the best k, the best that have p together, and softmax, in float64.

    Args:
        scores: logits with all rules applied, [vocabulary].
    """
    scores = scores.astype(np.float64) / plan.temperature
    if 0 < plan.top_k < len(scores):
        scores[scores < np.partition(scores, -plan.top_k)[-plan.top_k]] = FORBIDDEN
    if plan.top_p < 1.0:
        order = np.argsort(scores, kind="stable")
        below = np.cumsum(np.exp(log_softmax(scores[order])))
        dropped = below <= 1 - plan.top_p
        dropped[-1] = False
        scores[order[dropped]] = FORBIDDEN
    likely = np.exp(log_softmax(scores))
    drawn: np.ndarray = likely / likely.sum()
    return drawn
