"""Steps are calibrated on what the source writes behind the prompts that the data holds."""

from __future__ import annotations

import numpy as np
import pytest

from edgeattn.pipeline.steps import written
from edgeattn.pipeline.steps.written import PROMPTS, calibrated_steps
from tests.runtimes.generation.toy import CACHE, ToyModel, greedy


def prompt(*tokens: int) -> dict[str, np.ndarray]:
    """Padded to the smallest size."""
    ids, mask = np.zeros((1, 4), np.int64), np.zeros((1, 4), np.int64)
    ids[0, : len(tokens)], mask[0, : len(tokens)] = tokens, 1
    return {"input_ids": ids, "attention_mask": mask}


def test_a_step_is_calibrated_on_the_tokens_and_caches_of_its_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = 4
    monkeypatch.setattr(written, "TOKENS", tokens)
    found = calibrated_steps(ToyModel(), {"prefill_4": (prompt(3, 1), prompt(5))})
    steps = found["step"]
    text, other = greedy([3, 1], tokens), greedy([5], tokens)
    read = [*text[:-1], 5, *other[:-1]]  # a prompt of one token is a step, and a last token is never read
    assert [int(step["input_ids"][0, 0]) for step in steps] == read
    assert [int(step["position"][0]) for step in steps] == [2, 3, 4, 0, 1, 2, 3]
    np.testing.assert_array_equal(steps[1]["key_0"].ravel(), [0, 0, 0, 4, 2, text[0] + 1])
    assert list(found["prefill_4"][0]) == ["input_ids", "attention_mask"]


def test_what_the_data_holds_of_steps_stays() -> None:
    own = ({"input_ids": np.array([[9]]), "position": np.zeros(1, np.int64), "key_0": np.zeros((1, 1, CACHE, 1))},)
    assert calibrated_steps(ToyModel(), {"prefill_4": (prompt(3, 1),), "step": own})["step"] is own


def test_without_prompts_or_texts_nothing_is_added() -> None:
    assert calibrated_steps(ToyModel(), {}) == {}
    assert list(calibrated_steps(ToyModel("other"), {"main": (prompt(3),)})) == ["main"]
    crossed = calibrated_steps(ToyModel("crossed"), {"encoder": (prompt(3),)})
    assert list(crossed) == ["encoder"]  # its config does not say how a text begins


def test_so_many_prompts_are_written_on() -> None:
    model = ToyModel()
    calibrated_steps(model, {"prefill_4": tuple(prompt(3, 1) for _ in range(40))})
    assert len(model.prompts) == PROMPTS // 2  # two sizes, and the data has prompts of one
