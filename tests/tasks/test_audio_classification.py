"""Labelled recordings: what is scored, what false alarms are, and each refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.errors import DataError, InputError
from edgeattn.model import EdgeModel, Reference
from edgeattn.sources.tasks import described
from edgeattn.tasks import Pipeline, stored
from edgeattn.tasks.audio_classification import false_alarms
from edgeattn.tasks.registry import recognised
from tests.tasks.end_to_end import (
    Gives,
    loaded,
    model_for,
    scored_by_onnxruntime,
    scored_everywhere,
    task_of,
)
from tests.tasks.recordings import RATE, tone, write_wav

LABELS = ("low", "high", "_silence_")
PITCHES = {"low": 300.0, "high": 3_000.0, "_silence_": 0.0}
LENGTH = RATE // 4
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


class Pitch(nn.Module):
    """Energy of a tone at either pitch, and a threshold for silence: closed form, no training."""

    waves: Tensor

    def __init__(self) -> None:
        super().__init__()
        at = torch.arange(LENGTH) / RATE
        angles = 2 * torch.pi * torch.tensor([[PITCHES["low"]], [PITCHES["high"]]]) * at
        self.register_buffer("waves", torch.cat([angles.sin(), angles.cos()]).T / LENGTH)

    def forward(self, input_values: Tensor) -> dict[str, Tensor]:
        parts = (input_values @ self.waves).square()
        energies = parts[:, :2] + parts[:, 2:]
        return {"logits": torch.cat([energies * 100, torch.full_like(energies[:, :1], 0.5)], 1)}


@pytest.fixture
def assets(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(LABELS))}))
    return {"config.json": tmp_path / "config.json"}


@pytest.fixture
def model(assets: dict[str, Path]) -> EdgeModel:
    return model_for("keyword-spotting", Pitch(), assets, input_values=torch.zeros(1, LENGTH))


def folders(tmp_path: Path, wrong: int = 2) -> Path:
    """Eight recordings of each class; of the high ones, the first few are low, of silence one holds a keyword."""
    for name, hertz in PITCHES.items():
        for index in range(8):
            heard = PITCHES["low"] if (name, index < wrong) == ("high", True) else hertz
            heard = PITCHES["high"] if (name, index) == ("_silence_", 0) else heard
            write_wav(tmp_path / "data" / "test" / name / f"{index}.wav", tone(heard, seed=index))
    write_wav(tmp_path / "data" / "train" / "low" / "x.wav", tone(PITCHES["low"], seed=99))
    return tmp_path / "data"


def test_accuracy_f1_and_false_alarms_are_counted(model: EdgeModel, tmp_path: Path) -> None:
    sklearn: Any = pytest.importorskip("sklearn.metrics", reason="it is the oracle: edgeattn[dev]")
    data = loaded(model, folders(tmp_path))
    score = scored_everywhere(model, data, tmp_path)
    true = [0] * 8 + [1] * 8 + [2] * 8
    said = [0] * 8 + [0] * 2 + [1] * 6 + [1] + [2] * 7
    assert (score.metric, data.origin, len(data.calibration)) == ("accuracy", "data/test", 1)
    assert score.value == pytest.approx(sklearn.accuracy_score(true, said), abs=1e-12)
    assert score.others["macro-f1"] == pytest.approx(100 * sklearn.f1_score(true, said, average="macro"), abs=1e-9)
    assert score.others["false-alarms-per-hour"] == pytest.approx(3600 / (8 * 0.25))


def test_false_alarms_are_left_out_where_no_background_is_there(model: EdgeModel, tmp_path: Path) -> None:
    for name in ("low", "high"):
        write_wav(tmp_path / "data" / "test" / name / "0.wav", tone(PITCHES[name]))
    assert set(scored_everywhere(model, loaded(model, tmp_path / "data"), tmp_path).others) == {"macro-f1"}


def test_what_is_no_number_is_a_false_alarm() -> None:
    metric = false_alarms(frozenset({1}), 36.0)
    statistics = [metric.statistics(scores, 1) for scores in ([0.0, 1.0], [1.0, 0.0], [np.nan, 1.0])]
    assert metric.value(statistics) == pytest.approx(2 / 0.03)


@pytest.mark.slow
def test_an_engine_hears_the_same(model: EdgeModel, tmp_path: Path) -> None:
    data = loaded(model, folders(tmp_path))
    assert scored_by_onnxruntime(model, data, tmp_path).value == scored_everywhere(model, data, tmp_path).value


def test_transcripts_name_the_label(model: EdgeModel, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(300))
    write_wav(tmp_path / "b.wav", tone(3_000))
    (tmp_path / "transcripts.tsv").write_text("path\ttext\tsplit\na.wav\tlow\ttest\nb.wav\thigh\ttest\n")
    assert [sample.target for sample in task_of(model).read(tmp_path, {})] == [0, 1]
    (tmp_path / "transcripts.tsv").write_text("path\ttext\tlabel12\na.wav\tmoo\t_silence_\nb.wav\t\t-100\n")
    assert [sample.target for sample in task_of(model).read(tmp_path, {})] == [2, None]


def test_a_recording_in_an_answer_with_names_out(model: EdgeModel, tmp_path: Path) -> None:
    task = task_of(model)
    pipeline = Pipeline(Reference(model), stored(task), model.assets)
    path = str(write_wav(tmp_path / "a.wav", tone(3_000)))
    answer = pipeline(pipeline.read(path))
    assert answer[0]["label"] == "high"
    assert task.line(pipeline.answer(tone(300))).startswith("low ")
    with pytest.raises(DataError, match="no such recording"):
        pipeline.read("nothing.wav")


def test_a_model_says_that_it_is_for_sounds(model: EdgeModel, tmp_path: Path) -> None:
    spec = replace(model.spec, task="audio-classification")
    found = recognised(described(spec, model.assets))
    assert found is not None
    assert found.name == "audio-classification"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path\ttext\na.wav\tmoo\n", r":2: expected a label, .*low, high, _silence_; got 'moo'"),
        ("path\ttext\nb.wav\tlow\n", r":2: .*b\.wav: no such file"),
        ("path\ttext\na.wav\n", ":2: expected 2 columns"),
        ("path\ttext\n", "no sample to measure on"),
    ],
)
def test_a_wrong_table_is_refused(model: EdgeModel, tmp_path: Path, table: str, message: str) -> None:
    directory = tmp_path / "data"
    write_wav(directory / "a.wav", tone(300))
    (directory / "transcripts.tsv").write_text(table)
    with pytest.raises(DataError, match=message):
        loaded(model, directory)


def test_an_unknown_folder_is_refused(model: EdgeModel, tmp_path: Path) -> None:
    write_wav(tmp_path / "data" / "moo" / "a.wav", tone(300))
    with pytest.raises(DataError, match=r"moo/a\.wav: expected a label"):
        loaded(model, tmp_path / "data")


def test_a_damaged_recording_is_refused_by_name(model: EdgeModel, tmp_path: Path) -> None:
    directory = folders(tmp_path)
    (directory / "test/low/0.wav").write_bytes(b"RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00")
    with pytest.raises(DataError, match=r"low/0\.wav: not a readable wav"):
        loaded(model, directory)


def test_always_the_same_class_is_told(assets: dict[str, Path], tmp_path: Path) -> None:
    constant = Gives("logits", lambda x: x[:, :3] * 0 + torch.tensor([[0.0, 0.0, 1.0]]))
    model = model_for("keyword-spotting", constant, assets, x=torch.zeros(1, LENGTH))
    score = scored_everywhere(model, loaded(model, folders(tmp_path)), tmp_path)
    assert score.broken == "the metric is constant: every answer is class 2, the labels have 3"


@pytest.mark.parametrize("shape", [(1, 4, 3), (1, 1)])
def test_a_model_without_scores_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="--task keyword-spotting: labelled recordings are for an audio classifier"):
        model_for("keyword-spotting", Gives("logits", lambda x: torch.zeros(shape) + x.sum()), x=torch.zeros(1, LENGTH))


@pytest.mark.parametrize("name", ["speech_commands", "wake_words"])
def test_shared_recordings_are_read(name: str, tmp_path: Path) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not at shared/data beside the checkout")
    pytest.importorskip("soundfile", reason="reading flac needs edgeattn[speech]")
    labels = sorted(folder.name for folder in (SHARED / name).iterdir() if folder.is_dir())
    table = (SHARED / name / "transcripts.tsv").read_text().splitlines()
    texts = labels if name == "speech_commands" else sorted({line.split("\t")[1] for line in table[1:]})
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(texts))}))
    scores = Gives("logits", lambda x: x[:, : len(texts)])
    model = model_for("keyword-spotting", scores, {"config.json": tmp_path / "config.json"}, x=torch.zeros(1, RATE))
    data = loaded(model, SHARED / name, limit=24)
    assert len({sample.target for sample in data.evaluation}) >= min(6, len(texts))
