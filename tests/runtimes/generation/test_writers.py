"""What a prompt becomes: caches, positions, an encoder's output; and what is no prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import InputError, UnsupportedError
from edgeattn.runtimes import GenerateOptions
from edgeattn.runtimes.generation import generate, generates
from tests.runtimes.generation.toy import WORDS, ToyModel, ToyStep, assets, greedy, logits_of, spec


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
