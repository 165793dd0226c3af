"""The time to a first token and the tokens after it, by a clock that the model itself moves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgeattn.profiling.writing import measure_writing
from tests.runtimes.generation.toy import CACHE, SIZES, Arrays, ToyModel, ToyStep, assets

PROMPT_SECONDS, STEP_SECONDS = 0.5, 0.02


class TimedModel(ToyModel):
    """A prompt takes half a second and a step a fiftieth."""

    def __init__(self, kind: str = "causal", files: Mapping[str, Path] | None = None) -> None:
        super().__init__(kind, files)
        self.now = 0.0

    def run(self, inputs: Mapping[str, np.ndarray], graph: str | None = None) -> Arrays:
        self.now += PROMPT_SECONDS
        return super().run(inputs, graph)

    def step(self, graph: str | None = None) -> ToyStep:
        model, step = self, super().step(graph)
        run = step.run

        def timed() -> None:
            model.now += STEP_SECONDS
            run()

        step.run = timed  # type: ignore[method-assign]
        return step

    def clock(self) -> float:
        return self.now


def test_a_first_token_takes_the_prompt_and_each_other_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeattn.profiling import writing

    monkeypatch.setattr(writing, "NEW", 4)
    model = TimedModel()
    found = measure_writing(model, clock=model.clock)
    room = CACHE + 1 - 4
    assert found is not None
    assert (found.prompt_tokens, found.new_tokens) == (room, 4)
    assert found.first_token_ms == pytest.approx(1e3 * PROMPT_SECONDS)
    assert found.tokens_per_second == pytest.approx(1 / STEP_SECONDS)
    assert model.prompts == [room] * 4  # one that warms up, three that are timed
    assert room < SIZES[-1]


def test_of_an_encoder_decoder_the_encoder_and_the_start_come_first(tmp_path: Path) -> None:
    model = TimedModel("crossed", assets(tmp_path, {"decoder_start_token_id": 2}))
    found = measure_writing(model, clock=model.clock)
    assert found is not None
    assert (found.prompt_tokens, found.new_tokens) == (None, CACHE)
    assert found.first_token_ms == pytest.approx(1e3 * (PROMPT_SECONDS + STEP_SECONDS))
    assert found.tokens_per_second == pytest.approx(1 / STEP_SECONDS)


def test_a_slow_model_writes_one_text_that_is_timed() -> None:
    model = TimedModel()
    assert measure_writing(model, most_seconds=0.1, clock=model.clock) is not None
    assert len([position for position in model.positions if position == 1]) == 2


def test_what_writes_no_text_has_no_figure() -> None:
    assert measure_writing(ToyModel("other")) is None
    assert measure_writing(ToyModel("crossed")) is None  # its config does not say how a text begins
