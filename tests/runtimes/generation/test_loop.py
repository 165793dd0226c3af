"""Writing on a model of a few lines: positions, caches, prompts of any length, ends, and what is refused."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import InputError, UnsupportedError
from edgeattn.runtimes import GenerateOptions
from edgeattn.runtimes.generation import generate, generates
from edgeattn.runtimes.generation.rules import log_softmax
from tests.runtimes.generation.toy import CACHE, WORDS, ToyModel, ToyStep, assets, greedy, logits_of, spec


def written(model: ToyModel, prompt: Any, **options: Any) -> list[int]:
    return list(generate(model, prompt, GenerateOptions(**options)))


@pytest.mark.parametrize("length", [1, 2, 4, 5])
def test_a_prompt_of_any_length_is_gone_on_with(length: int) -> None:
    model, prompt = ToyModel(), [3, 1, 4, 1, 5][:length]
    assert written(model, prompt, max_new_tokens=3) == greedy(prompt, 3)
    assert model.prompts == ([] if length == 1 else [length])  # one token is a step
    first = 0 if length == 1 else length
    assert model.positions == list(range(first, length + 2))  # the last new token is never read


def test_a_prompt_longer_than_the_largest_size_follows_token_by_token() -> None:
    model, prompt = ToyModel(), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    assert written(model, prompt, max_new_tokens=2, slide=True) == greedy(prompt, 2, sliding=True)
    assert model.prompts == [8]
    assert model.positions == [8, 9, 10]


def test_a_prompt_comes_in_any_form() -> None:
    expected = greedy([3, 1, 4], 3)
    ids = np.array([[3, 1, 4, 0]])
    forms: list[Any] = [
        (3, 1, 4), np.array([3, 1, 4], np.int32), ids[:, :3], {"input_ids": ids[:, :3]},
        {"input_ids": ids, "attention_mask": np.array([[1, 1, 1, 0]])},
    ]  # fmt: skip
    for form in forms:
        assert written(ToyModel(), form, max_new_tokens=3) == expected


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


def test_an_encoders_output_goes_into_every_step(tmp_path: Path) -> None:
    model = ToyModel("crossed", assets(tmp_path, {"decoder_start_token_id": 2}))
    expected, tokens = [], [2]
    for _ in range(4):
        expected.append(int(logits_of([7, 5, 0, 0, *tokens]).argmax()))
        tokens.append(expected[-1])
    assert written(model, [7, 5], max_new_tokens=4) == expected  # padded to the four tokens of the encoder
    whole = {"input_ids": np.array([[7, 5, 0, 0]]), "attention_mask": np.array([[1, 1, 0, 0]])}
    assert written(model, whole, max_new_tokens=4) == expected


def test_what_a_text_begins_with_is_not_given_again(tmp_path: Path) -> None:
    model = ToyModel("crossed", assets(tmp_path, {"decoder_start_token_id": 2}))
    first = written(model, [7, 5], max_new_tokens=1, prefix=(8, 9))
    assert first == [int(logits_of([7, 5, 0, 0, 2, 8, 9]).argmax())]
    assert model.positions == [0, 1, 2]
    assert written(ToyModel("crossed"), [7, 5], max_new_tokens=1, prefix=(2, 8, 9)) == first


@pytest.mark.parametrize(
    ("kind", "prompt", "said"),
    [
        ("other", [1], r"model 'toy' \(fill-mask\) writes no text: .* it has main; use run\(\)"),
        ("causal", [], "the prompt has no token"),
        ("causal", [1, WORDS], "token 11 is none of the model's 11"),
        ("causal", [1.5], "the prompt must be a sequence of token ids"),
        ("causal", [-1], "the prompt must be a sequence of token ids"),
        ("causal", np.ones((2, 3), np.int64), "the prompt must be a sequence of token ids"),
        (
            "causal",
            {"ids": np.ones((1, 3), np.int64)},
            "a causal model's prompt is input_ids and attention_mask, got ids",
        ),
        (
            "causal",
            {"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.array([[0, 1, 1]])},
            "attention_mask must be as long as input_ids, ones and then zeros",
        ),
        ("crossed", [1], "the model's config names no decoder_start_token_id"),
    ],
)
def test_a_prompt_that_is_none_is_refused_before_anything_is_read(kind: str, prompt: Any, said: str) -> None:
    model = ToyModel(kind)
    with pytest.raises(InputError, match=said):
        generate(model, prompt)
    assert (model.prompts, model.positions) == ([], [])


def test_whether_a_model_writes_is_told_by_its_graphs() -> None:
    assert generates(spec("causal"))
    assert generates(spec("crossed"))
    assert not generates(spec("other"))


def test_logits_that_are_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ToyStep.run

    def broken(step: ToyStep) -> None:
        run(step)
        step.outputs["logits"][0, 0, 3] = np.nan

    monkeypatch.setattr(ToyStep, "run", broken)
    text = generate(ToyModel(), [3, 1], GenerateOptions(max_new_tokens=3))
    assert next(text) == greedy([3, 1], 1)[0]  # of the prompt, whose logits are whole
    with pytest.raises(UnsupportedError, match="after 3 tokens: logits holds NaN: it overflows in this precision"):
        next(text)


def test_where_every_token_is_forbidden_there_is_no_best() -> None:
    with pytest.raises(UnsupportedError, match="after 2 tokens every token is forbidden; suppress fewer"):
        written(ToyModel(), [3, 1], max_new_tokens=2, suppress=tuple(range(WORDS)))
