"""Beam search against every text that there is; what transformers finds is in test_parity.py."""

from __future__ import annotations

import functools
import itertools
from typing import Any

from edgeattn.runtimes import GenerateOptions
from edgeattn.runtimes.generation import generate
from edgeattn.runtimes.generation.rules import log_softmax
from tests.runtimes.generation.toy import WORDS, ToyModel, greedy, logits_of


def written(model: ToyModel, prompt: Any, **options: Any) -> list[int]:
    return list(generate(model, prompt, GenerateOptions(**options)))


def test_enough_beams_find_the_best_text_of_all() -> None:
    """Every text of two tokens, by its log-probability: as many beams as there are words forget no first one."""

    def score(prompt: list[int], text: tuple[int, ...]) -> float:
        tokens, total = [*prompt], 0.0
        for token in text:
            total += float(log_softmax(logits_of(tokens))[token])
            tokens.append(token)
        return total

    prompts = [[3, 1], [5, 2], [8], [4, 4, 9]]
    best = [max(itertools.product(range(WORDS), repeat=2), key=functools.partial(score, prompt)) for prompt in prompts]
    assert [tuple(written(ToyModel(), prompt, max_new_tokens=2, beams=WORDS)) for prompt in prompts] == best
    assert [tuple(greedy(prompt, 2)) for prompt in prompts] != best  # the best first token is not always the way
