"""The model that ships: its weights, spec, sample and data hooks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jiwer
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.errors import DataError, InputError
from edgeattn.evaluation.speech import transcribe as transcribe_stream
from edgeattn.model import EdgeModel, ReferenceStep, check_finite
from edgeattn.models import MODELS
from edgeattn.models.streaming_conformer import build, data, sample, weights_path
from edgeattn.models.streaming_conformer.measure import recogniser, score, transcribe
from edgeattn.models.streaming_conformer.model import ConformerConfig, StreamingConformer
from edgeattn.models.streaming_conformer.vocabulary import COMMANDS, DIGITS, TOKENS
from edgeattn.models.streaming_conformer.weights import load_model, save_state
from edgeattn.runtimes import Stream
from tests.models.voices import write_corpus

WORDS = st.lists(st.sampled_from(DIGITS), max_size=8)


@pytest.fixture(scope="module")
def model() -> EdgeModel:
    return build()


def test_the_registry_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, edgeattn.models as m; [row.options() for row in m.MODELS.values()]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy"} & set(done.stdout.split())
    assert "edgeattn.models.streaming_conformer" in done.stdout.split()


def test_the_weights_that_ship_are_small_and_of_the_built_in_sizes() -> None:
    assert weights_path().stat().st_size <= 4 * 2**20
    assert load_model(weights_path()).config == ConformerConfig()


def test_the_spec_names_what_the_step_takes_and_gives(model: EdgeModel) -> None:
    graph = model.spec.graph()
    assert graph.input_names[:2] == ("feats", "att_bias")
    assert {state.output for state in graph.states} == {f"next_{state.input}" for state in graph.states}
    outputs = model.run(model.example[graph.name])
    assert {name: outputs[name].shape for name in graph.output_names} == {t.name: t.shape for t in graph.all_outputs}
    assert model.spec.stream is not None
    assert model.spec.stream.decoder.tokens == TOKENS
    assert model.spec.name in MODELS
    check_finite(model)


def test_the_source_hash_is_that_of_the_weights(model: EdgeModel, tmp_path: Path) -> None:
    assert build().source_sha256 == model.source_sha256
    save_state(tmp_path / "other.safetensors", StreamingConformer(ConformerConfig()))
    assert build(tmp_path / "other.safetensors").source_sha256 != model.source_sha256


def test_the_sample_is_recognised_streamed_and_offline_alike(model: EdgeModel) -> None:
    assert model.spec.stream is not None
    speech = sample()
    assert len(speech.calibration) == len(speech.evaluation) == 12
    stream = Stream(ReferenceStep(model), model.spec.stream)
    streamed = [transcribe_stream(stream, item.samples) for item in speech.evaluation]
    offline = transcribe(load_model(weights_path()), speech.evaluation)
    assert score(speech.evaluation, streamed).total.rate < 0.1
    assert score(speech.evaluation, offline).total.rate < 0.1
    # The offline pass does not hear the half chunk of silence that a flush adds.
    same = sum(list(a) == b for a, b in zip(streamed, offline, strict=True))
    assert same >= 11
    assert recogniser(load_model(weights_path()))(speech.evaluation[0].samples) == offline[0]


def test_a_limit_keeps_that_many_utterances() -> None:
    assert len(data(None, None, 5).evaluation) == len(data(limit=5).calibration) == 5
    assert len(data().evaluation) == 12


def test_data_calibrates_on_train_and_measures_on_another_split(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    speech = data(corpus)
    assert {item.speaker for item in speech.evaluation} == {"speech_commands/c3"}
    assert "speech_commands/c3" not in {item.speaker for item in speech.calibration}
    assert all(set(item.words) <= set(COMMANDS) for item in speech.evaluation)
    with pytest.raises(DataError, match="nothing to measure on in split test; valid: test, dev"):
        data(corpus, "test")


@pytest.mark.parametrize("content", [b"", b"\x08" + bytes(7), b"x" * 100])
def test_a_damaged_weights_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a weights file of the streaming conformer"):
        build(path)


def test_a_truncated_missing_foreign_or_broken_weights_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(InputError, match="no such weights file"):
        build(path)
    path.write_bytes(weights_path().read_bytes()[:-1000])
    with pytest.raises(InputError, match="not a weights file"):
        build(path)
    tiny = StreamingConformer(ConformerConfig(dim=16, num_blocks=1, ffn_dim=16, channels=(2, 4)))
    tiny.config = replace(tiny.config, dim=24)
    save_state(path, tiny)
    with pytest.raises(InputError, match="does not fit"):
        build(path)
    tiny.config = replace(tiny.config, dim=16)
    with torch.no_grad():
        tiny.classify.bias[0] = float("inf")
    save_state(path, tiny)
    with pytest.raises(InputError, match=r"not finite in classify.bias"):
        build(path)


@settings(max_examples=50)
@given(pairs=st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=4))
def test_word_errors_are_those_of_jiwer(pairs: list[tuple[list[str], list[str]]]) -> None:
    from edgeattn.evaluation.speech import Utterance

    silent = np.zeros(0, np.float32)
    utterances = [Utterance(silent, tuple(said), f"s{index % 2}") for index, (said, _) in enumerate(pairs)]
    got = score(utterances, [heard for _, heard in pairs])
    wanted = jiwer.process_words([" ".join(said) for said, _ in pairs], [" ".join(heard) for _, heard in pairs])
    assert got.total.rate == pytest.approx(wanted.wer)
    assert sum(part.errors for part in got.by_speaker.values()) == got.total.errors
