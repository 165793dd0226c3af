"""Recordings as inputs: held to transformers' feature extractors and to Kaldi's features; what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.audio import fbank
from edgeattn.errors import DataError
from edgeattn.spec import FbankConfig, GraphSpec, ModelSpec, TensorSpec, from_json, to_json
from edgeattn.tasks.sounds import SoundInput, in_folders, listed, sound_encoder, sound_input
from edgeattn.tasks.task import Described
from tests.tasks.recordings import write_wav

RATE = 16_000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 12_000).astype(np.float32)


def described(shape: tuple[int, ...], processor: Mapping[str, Any] | None = None, mask: bool = False) -> Described:
    taken = [TensorSpec("input_values", "float32", shape)]
    taken += [TensorSpec("attention_mask", "int64", shape[:1] + shape[-1:])] if mask else []
    graph = GraphSpec("main", tuple(taken), (TensorSpec("logits", "float32", (1, 2)),))
    return Described(spec=ModelSpec("m", "audio-classification", (graph,)), processor=processor or {})


def made(shape: tuple[int, ...], processor: Mapping[str, Any], samples: np.ndarray, mask: bool = False) -> Any:
    model = described(shape, processor, mask)
    return sound_encoder(sound_input(model), model.spec)(samples)


def test_samples_are_padded_and_cut_and_the_cut_is_told() -> None:
    short = made((1, 16_000), {}, NOISE)
    np.testing.assert_array_equal(short.calls[0]["input_values"], np.pad(NOISE, (0, 4_000))[None])
    assert (short.cut, short.facts["filled"]) == ("", 0.75)
    long = made((1, 1, 8_000), {}, NOISE)
    np.testing.assert_array_equal(long.calls[0]["input_values"], NOISE[None, None, :8_000])
    assert long.cut == "at 0.5 s"


@pytest.mark.parametrize("length", [8_000, 16_000])
@pytest.mark.parametrize("normalize", [True, False])
def test_samples_are_those_of_wav2vec2s_feature_extractor(length: int, normalize: bool) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="it is the oracle: edgeattn[hf]")
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=True)
    samples = NOISE[:length]  # transformers normalizes what is cut already
    expected = extractor(samples, sampling_rate=RATE, padding="max_length", max_length=length, return_tensors="np")
    call = made((1, length), extractor.to_dict(), samples, mask=True).calls[0]
    np.testing.assert_allclose(call["input_values"], expected["input_values"], atol=1e-5)
    np.testing.assert_array_equal(call["attention_mask"], expected["attention_mask"])


@pytest.mark.parametrize("frames", [40, 100])
@pytest.mark.parametrize("settings", [{}, {"do_normalize": False}, {"mean": -3.0, "std": 2.0}])
def test_features_are_those_of_the_audio_spectrogram_transformer(frames: int, settings: dict[str, Any]) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="it is the oracle: edgeattn[hf]")
    extractor = transformers.ASTFeatureExtractor(max_length=frames, num_mel_bins=32, **settings)
    expected = extractor(NOISE, sampling_rate=RATE, return_tensors="np")["input_values"]
    processor = json.loads(json.dumps(extractor.to_dict()))
    encoded = made((1, frames, 32), processor, NOISE)
    np.testing.assert_allclose(encoded.calls[0]["input_values"], expected, atol=1e-4)
    assert encoded.cut == ("at 0.4 s" if frames == 40 else "")


def test_features_without_a_processor_are_kaldis() -> None:
    config = FbankConfig(sample_rate=RATE, num_mel=20, frame_length=400, hop_length=160, high_hz=7_600.0)
    expected = fbank(NOISE, config)
    array = made((1, 1, 100, 20), {}, NOISE).calls[0]["input_values"]
    np.testing.assert_array_equal(array[0, 0, : len(expected)], expected)
    assert not array[0, 0, len(expected) :].any()


def test_a_recording_is_resampled_to_the_models_rate(tmp_path: Path) -> None:
    pytest.importorskip("soxr", reason="it resamples: edgeattn[speech]")
    path = write_wav(tmp_path / "a.wav", np.zeros(8_000), 8_000)
    model = described((1, RATE))
    assert sound_encoder(sound_input(model), model.spec)(str(path)).facts["seconds"] == 1.0


def test_settings_come_back_from_json() -> None:
    sound = sound_input(described((1, 100, 128), {"feature_extractor_type": "ASTFeatureExtractor"}))
    assert from_json(SoundInput, json.loads(json.dumps(to_json(sound)))) == sound


@pytest.mark.parametrize(
    ("shape", "processor", "message"),
    [
        ((2, 100), {}, r"recordings are samples.* takes input_values\[2, 100\]"),
        ((1, 3, 100, 20), {}, "recordings are samples"),
        ((100,), {}, "recordings are samples"),
        ((1, 2**27), {}, "an input of at most"),
        ((1, 700 * RATE), {}, "an input of at most 600 s"),
        ((1, 100), {"sampling_rate": "fast"}, "sampling_rate: expected 1 to .*, got 'fast'"),
        ((1, 100), {"sampling_rate": True}, "sampling_rate: expected"),
        ((1, 100, 40), {"num_mel_bins": 128}, "makes 128 mel bands, and the model takes 40"),
        ((1, 100, 40), {"hop_length": 0}, "hop_length: expected 1 to 16000, got 0"),
        ((1, 100, 40), {"hop_length": 600}, "no mel features of 40 bands at 16000 Hz: hop_length"),
    ],
)
def test_a_model_that_takes_no_sound_is_refused(
    shape: tuple[int, ...], processor: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        sound_input(described(shape, processor))


@pytest.mark.parametrize(
    "given",
    [np.zeros(0, np.float32), np.zeros(5, np.int16), np.zeros((2, 5), np.float32), np.array([np.nan]), "no.wav"],
)
def test_what_is_no_recording_is_refused(given: Any) -> None:
    with pytest.raises(DataError, match=r"expected a recording's path, or samples|no such recording"):
        made((1, 100), {}, given)


def test_folders_and_splits_are_read_in_order(tmp_path: Path) -> None:
    for name in ("yes/b.wav", "yes/a.wav", "no/c.wav", "test/yes/d.wav", ".hidden/x.wav", "empty/readme.txt"):
        write_wav(tmp_path / name, np.zeros(10), RATE)
    found = [(one.split, one.folder, one.path.name) for one in in_folders(tmp_path)]
    assert found == [("", "no", "c.wav"), ("test", "yes", "d.wav"), ("", "yes", "a.wav"), ("", "yes", "b.wav")]


def test_a_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "elsewhere.wav", np.zeros(10), RATE)
    (tmp_path / "data/yes").mkdir(parents=True)
    (tmp_path / "data/yes/a.wav").symlink_to(tmp_path / "elsewhere.wav")
    with pytest.raises(DataError, match="lies outside"):
        in_folders(tmp_path / "data")
    (tmp_path / "data/transcripts.tsv").write_text("path\ttext\n../elsewhere.wav\tyes\n")
    with pytest.raises(DataError, match=r"transcripts\.tsv:2: .*lies outside"):
        listed(tmp_path / "data")


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected transcripts\.tsv, or a folder of wav"):
        in_folders(tmp_path)
