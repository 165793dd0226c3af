"""Noise taken off: stretches are put together, and the ratio is the closed form of whole recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeattn.errors import DataError, InputError
from edgeattn.model import EdgeModel, Reference
from edgeattn.tasks import Pipeline, speech_enhancement, stored
from tests.tasks.end_to_end import Gives, loaded, model_for, scored_by_onnxruntime, scored_everywhere, task_of
from tests.tasks.recordings import RATE, tone, write_wav

LENGTH = 1_000


@pytest.fixture
def model() -> EdgeModel:
    """Clips what is louder than 0.3."""
    return model_for("speech-enhancement", Gives("y", lambda x: x.clamp(-0.3, 0.3)), x=torch.zeros(1, LENGTH))


def pairs(directory: Path, count: int = 5) -> Path:
    for index in range(count):
        clean = 0.5 * tone(300 + 100 * index, 0.15, seed=index)
        write_wav(directory / "clean" / f"{index}.wav", clean)
        noise = 0.1 * np.random.default_rng(index).standard_normal(len(clean))
        write_wav(directory / "noisy" / f"{index}.wav", np.clip(clean + noise, -1, 1))
    return directory


def ratio(said: np.ndarray, true: np.ndarray) -> float:
    """SI-SDR by projection, Le Roux et al. 2019, equation 3."""
    signal = (said @ true) / (true @ true) * true
    return float(10 * np.log10((signal @ signal) / ((said - signal) @ (said - signal))))


def test_the_ratio_is_that_of_whole_recordings(model: EdgeModel, tmp_path: Path) -> None:
    data = loaded(model, pairs(tmp_path / "data"))
    score = scored_everywhere(model, data, tmp_path)
    expected = []
    for sample in data.evaluation:
        assert len(sample.encoded.calls) == 3  # 2400 samples in stretches of 1000
        noisy = np.concatenate([call["x"].ravel() for call in sample.encoded.calls])[:2_400].astype(np.float64)
        expected.append(ratio(np.clip(noisy, -0.3, 0.3), sample.target["samples"].astype(np.float64)))
        trained = np.concatenate([own["y"].ravel() for own in sample.targets])
        np.testing.assert_array_equal(trained[:2_400], sample.target["samples"])
    assert (score.metric, score.unit, len(expected)) == ("si-sdr", "dB", 4)
    assert score.value == pytest.approx(np.mean(expected), abs=1e-4)


@pytest.mark.slow
def test_an_engine_gives_the_same(model: EdgeModel, tmp_path: Path) -> None:
    data = loaded(model, pairs(tmp_path / "data"))
    here = scored_everywhere(model, data, tmp_path).value
    assert scored_by_onnxruntime(model, data, tmp_path).value == pytest.approx(here, abs=1e-3)


def test_what_is_no_number_is_the_worst(tmp_path: Path) -> None:
    broken = model_for("speech-enhancement", Gives("y", lambda x: (x - 2).sqrt()), x=torch.zeros(1, LENGTH))
    score = scored_everywhere(broken, loaded(broken, pairs(tmp_path / "data")), tmp_path)
    assert score.value == -100.0


def test_splits_are_folders(model: EdgeModel, tmp_path: Path) -> None:
    pairs(tmp_path / "data" / "test", 3)
    (tmp_path / "data" / "train").mkdir()
    for name in ("clean", "noisy"):
        (tmp_path / "data" / "train" / name).mkdir()
        for index in (7, 8):
            write_wav(tmp_path / "data" / "train" / name / f"{index}.wav", tone(200, 0.1, seed=index))
    data = loaded(model, tmp_path / "data")
    assert (len(data.calibration), len(data.evaluation), data.origin) == (2, 3, "data/test")


def test_a_recording_in_samples_out(model: EdgeModel, tmp_path: Path) -> None:
    pipeline = Pipeline(Reference(model), stored(task_of(model)), {})
    path = write_wav(tmp_path / "a.wav", np.full(1_500, 0.5))
    found = pipeline(pipeline.read(str(path)))
    assert found["rate"] == RATE
    np.testing.assert_allclose(found["samples"], np.full(1_500, 0.3), atol=1e-6)
    assert pipeline.task.line(pipeline.answer(str(path))) == "0.09 s, loudest 0.300"


def test_a_recording_without_its_other_half_is_refused(model: EdgeModel, tmp_path: Path) -> None:
    directory = pairs(tmp_path / "data")
    (directory / "clean" / "3.wav").unlink()
    with pytest.raises(DataError, match=r"equal names in clean and noisy; 3\.wav is in one alone"):
        loaded(model, directory)


@pytest.mark.parametrize("samples", [np.zeros(2_400), np.full(2_000, 0.1)])
def test_a_clean_recording_that_is_silent_or_short_is_refused(
    model: EdgeModel, tmp_path: Path, samples: np.ndarray
) -> None:
    directory = pairs(tmp_path / "data")
    write_wav(directory / "clean" / "2.wav", samples)
    with pytest.raises(DataError, match=r"noisy/2\.wav: expected as many samples as the clean one"):
        loaded(model, directory)


@pytest.mark.parametrize("folders", [(), ("clean",), ("clean", "noisy")])
def test_an_empty_directory_is_refused(model: EdgeModel, tmp_path: Path, folders: tuple[str, ...]) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"expected folders clean and noisy|expected 1 to .* got 0"):
        loaded(model, tmp_path)


@pytest.mark.parametrize("shape", [(1, 20), (1, 50, 20)])
def test_a_model_of_something_else_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="expected samples in and as many out"):
        model_for("speech-enhancement", Gives("y", lambda x: x.flatten(1)[:, :10]), x=torch.zeros(shape))


def test_hours_of_sound_are_refused(model: EdgeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_enhancement, "MOST_SAMPLES", 10_000)
    with pytest.raises(DataError, match="hours; give fewer"):
        loaded(model, pairs(tmp_path / "data"))
