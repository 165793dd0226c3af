"""Writing on a model of a few lines: texts of one model at once, ends, draws, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import InputError, UnsupportedError
from edgeattn.runtimes import GenerateOptions
from edgeattn.runtimes.generation import generate
from tests.runtimes.generation.toy import CACHE, WORDS, ToyModel, assets, greedy, logits_of


def written(model: ToyModel, prompt: Any, **options: Any) -> list[int]:
    return list(generate(model, prompt, GenerateOptions(**options)))


def test_tokens_come_as_they_are_written() -> None:
    model = ToyModel()
    text = generate(model, [3, 1], GenerateOptions(max_new_tokens=4))
    assert model.prompts == []  # nothing is read before it is asked for
    assert [next(text), next(text)] == greedy([3, 1], 2)
    assert model.positions == [2]


def test_texts_of_one_model_do_not_mix() -> None:
    model = ToyModel()
    texts = [generate(model, [first, 2], GenerateOptions(max_new_tokens=4)) for first in (3, 4, 5)]
    rows = list(zip(*texts, strict=True))
    assert [list(row) for row in zip(*rows, strict=True)] == [greedy([first, 2], 4) for first in (3, 4, 5)]


def test_a_stop_token_ends_the_text_and_is_no_part_of_it() -> None:
    whole = greedy([3, 1], 5)
    last = whole.index(whole[3])
    assert written(ToyModel(), [3, 1], max_new_tokens=5, stop=(whole[3],)) == whole[:last]


def test_a_full_cache_is_refused_or_slides() -> None:
    room = CACHE + 1  # tokens that are read; one more is written
    assert written(ToyModel(), [3, 1], max_new_tokens=room - 1) == greedy([3, 1], room - 1)
    with pytest.raises(
        InputError, match=r"2 tokens are given and max_new_tokens is 7, .* room for 7: take 6 at most, or"
    ):
        generate(ToyModel(), [3, 1], GenerateOptions(max_new_tokens=room))
    with pytest.raises(
        InputError, match=r"8 tokens are given, and there is room for 7: let the oldest tokens fall out"
    ):
        generate(ToyModel(), range(8), GenerateOptions())
    slid = written(ToyModel(), [3, 1], max_new_tokens=20, slide=True)
    assert slid == greedy([3, 1], 20, sliding=True)
    assert slid[: room - 1] == greedy([3, 1], room - 1)


def test_without_a_length_a_text_is_as_long_as_a_cache(tmp_path: Path) -> None:
    assert len(written(ToyModel(), [3, 1])) == CACHE
    longer = assets(tmp_path, {}, {"max_length": 100})
    assert len(written(ToyModel(assets=longer), [3, 1])) == CACHE  # the model's own is no promise
    shorter = assets(tmp_path, {}, {"max_length": 5})
    assert len(written(ToyModel(assets=shorter), [3, 1])) == 3
    with pytest.raises(InputError, match="6 tokens are given, and the model's max_length is 5; give max_new_tokens"):
        generate(ToyModel(assets=shorter), range(6))
    with pytest.raises(InputError, match="the text has no end: give max_new_tokens"):
        generate(ToyModel(), [3, 1], GenerateOptions(slide=True))


def test_nothing_is_written_beyond_the_last_position(tmp_path: Path) -> None:
    files = assets(tmp_path, {"n_positions": 10})
    assert len(written(ToyModel(assets=files), [3, 1], slide=True, max_new_tokens=9)) == 9
    with pytest.raises(InputError, match=r"room for 10: take 9 at most, or the model has positions for no more"):
        generate(ToyModel(assets=files), [3, 1], GenerateOptions(slide=True, max_new_tokens=10))


def test_a_window_of_the_models_own_slides_by_itself(tmp_path: Path) -> None:
    own = assets(tmp_path, {"sliding_window": CACHE + 1, "max_position_embeddings": 64})
    assert written(ToyModel(assets=own), [3, 1], max_new_tokens=20) == greedy([3, 1], 20, sliding=True)
    for config in ({"sliding_window": CACHE + 2}, {"sliding_window": 4, "use_sliding_window": False}):
        wider = assets(tmp_path, config | {"max_position_embeddings": 64})
        with pytest.raises(InputError, match="take 6 at most, or let the oldest tokens fall out"):
            generate(ToyModel(assets=wider), [3, 1], GenerateOptions(max_new_tokens=20))


def test_the_same_seed_draws_the_same_text() -> None:
    texts = [written(ToyModel(), [3, 1], max_new_tokens=6, sample=True, seed=seed) for seed in (0, 0, 1, 2)]
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts}) > 1


def test_tokens_are_drawn_by_their_probability() -> None:
    logits = logits_of([3, 1]).astype(np.float64)
    expected = np.exp(logits / 2) / np.exp(logits / 2).sum()
    draws = 1000
    options = {"max_new_tokens": 1, "sample": True, "temperature": 2.0, "top_k": 0}
    counts = Counter(written(ToyModel(), [3, 1], seed=seed, **options)[0] for seed in range(draws))
    found = np.array([counts[token] for token in range(WORDS)]) / draws
    deviation = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(found - expected) <= 4 * deviation + 1e-9).all()  # of 11 shares, four sigma: 1 run in 1400 by chance


def test_one_best_token_is_greedy_whatever_the_seed() -> None:
    assert written(ToyModel(), [3, 1], max_new_tokens=6, sample=True, top_k=1) == greedy([3, 1], 6)


def test_where_every_token_is_forbidden_there_is_no_best() -> None:
    with pytest.raises(UnsupportedError, match="after 2 tokens every token is forbidden; suppress fewer"):
        written(ToyModel(), [3, 1], max_new_tokens=2, suppress=tuple(range(WORDS)))
