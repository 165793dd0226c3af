"""Beam search as transformers does it: as many open texts as there are beams, the best finished ones kept beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeattn.runtimes.generation.plan import Plan
from edgeattn.runtimes.generation.rules import log_softmax
from edgeattn.runtimes.generation.writers import Opened, Writer

WORST = np.float32(-1e9)  # of a place that no text has taken yet
Tokens = tuple[int, ...]
Apply = Callable[[Tokens, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Candidate:
    """A text one token longer than the beam that it comes from."""

    tokens: Tokens
    beam: int
    score: np.float32
    ended: bool


def search(opened: Opened, given: Tokens, length: int, apply: Apply, plan: Plan) -> Tokens:
    """The best text, the given tokens and the one that ends it included.

    Args:
        opened: what has read the given tokens.
        length: tokens in all, at most.
        apply: see :meth:`edgeattn.runtimes.generation.rules.Rules.apply`.

    Source: transformers 5, ``GenerationMixin._beam_search``; the same choices for the same log-probabilities.
    """
    count = plan.beams
    writers = opened.writers(count)
    rows = [opened.logits.copy() for _ in range(count)]
    texts: list[Tokens] = [given] * count
    scores = [np.float32(0)] + [WORST] * (count - 1)  # all begin as the same text: only one of them branches
    finished: list[tuple[np.float32, Tokens]] = []  # the best first
    while True:
        candidates = _candidates(texts, scores, rows, apply, plan, length)
        ended = [candidate for candidate in candidates[:count] if candidate.ended]
        if not (plan.early_stopping is True and len(finished) == count):
            finished = _best(finished, ended, len(given), plan)
        going = [candidate for candidate in candidates if not candidate.ended][:count]
        if len(going) < count or _is_over(going[0].score, finished, len(going[0].tokens), length, len(given), plan):
            break
        _move(writers, [candidate.beam for candidate in going])
        texts, scores = [one.tokens for one in going], [one.score for one in going]
        rows = [writer.read(text[-1]) for writer, text in zip(writers, texts, strict=True)]
    return finished[0][1]


def _candidates(
    texts: list[Tokens], scores: list[np.float32], rows: list[np.ndarray], apply: Apply, plan: Plan, length: int
) -> list[_Candidate]:
    """The best next texts of all beams together, the best first: enough that as many go on as there are beams."""
    logs = [apply(text, log_softmax(row)) for text, row in zip(texts, rows, strict=True)]
    every = np.concatenate([log + score for log, score in zip(logs, scores, strict=True)])
    most = max(2, 1 + len(plan.stop)) * len(texts)
    best = np.argpartition(-every, min(most, len(every) - 1))[:most]
    best = best[np.lexsort((best, -every[best]))]
    found = []
    for index in best:
        beam, token = divmod(int(index), len(rows[0]))
        tokens = (*texts[beam], token)
        found.append(_Candidate(tokens, beam, every[index], token in plan.stop or len(tokens) >= length))
    return found


def _best(
    finished: list[tuple[np.float32, Tokens]], ended: list[_Candidate], given: int, plan: Plan
) -> list[tuple[np.float32, Tokens]]:
    every = finished + [
        (np.float32(one.score / (len(one.tokens) - given) ** plan.length_penalty), one.tokens) for one in ended
    ]
    return sorted(every, key=lambda pair: -pair[0])[: plan.beams]  # sorting keeps the older of two that are equal


def _is_over(
    best: np.float32, finished: list[tuple[np.float32, Tokens]], now: int, length: int, given: int, plan: Plan
) -> bool:
    """Whether no open text can, or is likely to, become better than the finished ones."""
    if len(finished) < plan.beams:
        return False
    if plan.early_stopping is True:
        return True
    longest = length if plan.early_stopping == "never" and plan.length_penalty > 0 else now
    return not bool(best / (longest - given) ** plan.length_penalty > finished[-1][0])


def _move(writers: list[Writer], parents: list[int]) -> None:
    """Give each writer the caches of the beam that its text comes from; what stays in its place is not copied."""
    moved = {parent for place, parent in enumerate(parents) if place != parent}
    kept = {parent: writers[parent].states() for parent in moved}
    position = writers[0].position
    for place, parent in enumerate(parents):
        if place != parent:
            writers[place].take(kept[parent], position)
