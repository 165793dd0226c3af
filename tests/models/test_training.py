"""Training on a tiny corpus: determinism, resuming, refusals. Nothing here learns enough to be measured."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeattn.errors import InputError
from edgeattn.models.streaming_conformer import recipe as recipes
from edgeattn.models.streaming_conformer.model import ConformerConfig, StreamingConformer
from edgeattn.models.streaming_conformer.options import Options
from edgeattn.models.streaming_conformer.recipe import recipe, stage_options, train
from edgeattn.models.streaming_conformer.stage import (
    StageOptions,
    divide,
    learning_rate_at,
    loss_of,
    save_checkpoint,
    train_stage,
    word_errors_text,
)
from edgeattn.models.streaming_conformer.utterances import BatchMaker, Recipe
from edgeattn.models.streaming_conformer.weights import load_model, read_file, save_state
from edgeattn.models.training import TrainingError, TrainProgress
from tests.models.voices import tone_clips, write_corpus

TINY = ConformerConfig(dim=16, num_blocks=1, num_heads=2, head_dim=8, ffn_dim=16, channels=(2, 4))
FEW = Recipe(frames=500)


def options(out: Path, **changes: Any) -> StageOptions:
    made = StageOptions(out=out, steps=6, evaluate_every=3, workers=0, threads=1, warmup=2, bfloat16=False)
    return replace(made, **changes)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    return state


class StoppedError(Exception):
    pass


def stop_at(step: int) -> Any:
    def report(progress: TrainProgress) -> None:
        if progress.step == step:
            raise StoppedError

    return report


def test_a_resumed_run_gives_the_same_bits_as_an_uninterrupted_one(tmp_path: Path) -> None:
    clips = tone_clips()
    whole = train_stage(clips, options(tmp_path / "whole"), config=TINY, recipe=FEW)
    with pytest.raises(StoppedError):
        train_stage(clips, options(tmp_path / "parts"), stop_at(3), TINY, FEW)
    parts = train_stage(clips, options(tmp_path / "parts", resume=True), config=TINY, recipe=FEW)
    assert parts.steps == whole.steps == 6
    first, second = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.weights.read_bytes() == parts.weights.read_bytes()


@pytest.mark.slow
def test_worker_processes_change_nothing_but_rounding(tmp_path: Path) -> None:
    clips = tone_clips()
    here = train_stage(clips, options(tmp_path / "here", steps=2), config=TINY, recipe=FEW)
    there = train_stage(clips, options(tmp_path / "there", steps=2, workers=1), config=TINY, recipe=FEW)
    # A worker's BLAS runs one thread, which sums in another order.
    first, second = read_file(here.weights)[0], read_file(there.weights)[0]
    assert all(torch.allclose(first[name], second[name], atol=2e-3) for name in first)


def test_held_out_speakers_are_measured_and_progress_is_told(tmp_path: Path) -> None:
    told: list[TrainProgress] = []
    chosen = options(tmp_path / "a", steps=3, held_out=("ann", "split=dev"), bfloat16=True)
    result = train_stage(tone_clips(), chosen, told.append, TINY, FEW)
    assert set(result.scores) == {"fsdd", "speech_commands"}
    assert set(result.scores["fsdd"].by_speaker) == {"fsdd/ann"}
    assert set(result.scores["speech_commands"].by_speaker) == {"speech_commands/c3"}
    assert told[-1].step == 3
    assert told[-1].measured == word_errors_text(result.scores)
    assert re.fullmatch(r"fsdd WER [\d.]+ %, speech_commands WER [\d.]+ %", told[-1].measured)


def test_a_stage_that_had_ended_only_measures(tmp_path: Path) -> None:
    chosen = options(tmp_path, steps=3, held_out=("ann",))
    first = train_stage(tone_clips(), chosen, config=TINY, recipe=FEW)
    again = train_stage(tone_clips(), replace(chosen, resume=True), config=TINY, recipe=FEW)
    assert again.scores == first.scores


def test_a_name_that_nobody_has_is_refused() -> None:
    with pytest.raises(InputError, match="no speaker or split is called 'carl'; for example fsdd/ann, fsdd/bob"):
        divide(tone_clips(), ["carl"])


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path: Path) -> None:
    model = StreamingConformer(TINY)
    with torch.no_grad():
        model.classify.weight.fill_(float("nan"))
    save_state(tmp_path / "bad.safetensors", model)
    with pytest.raises(TrainingError, match="the loss is nan at step 0"):
        train_stage(tone_clips(), options(tmp_path, init=tmp_path / "bad.safetensors"), config=TINY, recipe=FEW)


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})

    def half(_: object, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"step": 2})
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train_stage(tone_clips(), options(tmp_path, steps=1), config=TINY, recipe=FEW)
    with pytest.raises(InputError, match="not a checkpoint of this model"):
        train_stage(tone_clips(), options(tmp_path, resume=True), config=replace(TINY, dim=24), recipe=FEW)
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(InputError, match="not a checkpoint"):
        train_stage(tone_clips(), options(tmp_path, resume=True), config=TINY, recipe=FEW)


def test_padding_does_not_enter_the_loss() -> None:
    torch.manual_seed(0)
    model, auxiliary = StreamingConformer(TINY).eval(), torch.nn.Linear(TINY.dim, TINY.vocabulary)
    batch = BatchMaker(tone_clips(), FEW, 0, np.zeros(40, np.float32))(0, (1.5, 1.6))
    padded = batch.feats.copy()
    for row, length in zip(padded, batch.lengths, strict=True):
        row[length:] = 77.0
    chosen = options(Path("unused"))
    first = loss_of(model, auxiliary, batch, chosen, 0)
    second = loss_of(model, auxiliary, replace(batch, feats=padded), chosen, 0)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    assert first > 0


def test_the_learning_rate_rises_stays_and_falls() -> None:
    stage = StageOptions(out=Path("unused"), steps=100, learning_rate=2.0, warmup=4, decay=0.5)
    rates = [learning_rate_at(step, stage) for step in range(101)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert set(rates[4:51]) == {2.0}
    assert rates[75] == 1.0
    assert rates[100] == 0.0
    assert learning_rate_at(100, replace(stage, decay=0.0)) == 2.0


def test_the_average_of_a_stage_that_ends_spans_a_twenty_fifth_of_it() -> None:
    trunk, *others = recipe(tone_clips())
    assert stage_options(trunk, Path("out"), Options(), 1.0).average == 700
    assert [stage_options(stage, Path("out"), Options(), 1.0).average for stage in others] == [
        stage.steps // 25 for stage in others
    ]
    assert stage_options(trunk, Path("out"), Options(), 1e-4).average == 10


def test_the_recipe_leaves_each_fsdd_speaker_out_once() -> None:
    stages = recipe(tone_clips())
    assert [stage.name for stage in stages] == ["trunk", "without-ann", "without-bob", "final"]
    assert stages[0].held_out == ("fsdd/*", "split=dev")
    assert stages[1].held_out == ("fsdd/ann", "split=dev")
    assert stages[-1].held_out == ()
    assert [stage.after for stage in stages] == [None, "trunk", "trunk", "trunk"]


def test_the_recipe_for_given_speakers_never_hears_them() -> None:
    trunk, final = recipe(tone_clips(), ["bob"])
    assert set(trunk.held_out) == {"fsdd/*", "split=dev", "bob"}
    assert final.held_out == ("bob",)


def test_only_the_trunk_keeps_its_learning_rate() -> None:
    trunk, *others = (stage_options(stage, Path("out"), Options(), 1.0) for stage in recipe(tone_clips()))
    assert trunk.decay == 0.0
    assert trunk.init is None
    assert all(stage.decay > 0 and stage.init == Path("out/trunk/weights.safetensors") for stage in others)


@pytest.mark.slow
def test_the_whole_recipe_runs_from_a_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        recipes, "stage_options", lambda *given: replace(stage_options(*given), workers=0, bfloat16=False)
    )
    monkeypatch.setattr(recipes, "train_stage", lambda clips, chosen, told: train_stage(clips, chosen, told, TINY, FEW))
    data = write_corpus(tmp_path / "data")
    result = train(data, tmp_path / "out", Options(steps=4, threads=1, synthetic=False))
    assert set(result.scores) == {"trunk", "without-ann", "without-bob", "final"}
    assert set(result.scores["without-bob"]["fsdd"].by_speaker) == {"fsdd/bob"}
    tensors, config = read_file(result.weights)
    assert config == TINY
    assert not any(name.startswith("auxiliary.") for name in tensors)
    assert isinstance(load_model(result.weights), StreamingConformer)


@pytest.mark.parametrize("name", ["steps", "threads"])
def test_a_negative_number_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"--{name} must be 0"):
        Options(**{name: -1})  # type: ignore[arg-type]
