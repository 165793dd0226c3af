"""What is said in recordings: CTC against transformers' own decoding, error rates against jiwer, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeattn.errors import DataError, InputError
from edgeattn.model import EdgeModel, Reference
from edgeattn.tasks.speech_recognition import SpeechRecognition
from tests.tasks.end_to_end import Gives, loaded, model_for, scored_by_onnxruntime, scored_everywhere, task_of
from tests.tasks.recordings import RATE, write_wav

TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C")
LENGTH, FRAME = 1_600, 100
SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "ljspeech_141"


@pytest.fixture
def assets(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(TOKENS)}))
    (tmp_path / "config.json").write_text(json.dumps({"pad_token_id": 0}))
    return {name: tmp_path / name for name in ("vocab.json", "config.json")}


def loudest(x: torch.Tensor) -> torch.Tensor:
    """A frame's label is its mean, in tenths: [1, samples] -> [1, frames, tokens]."""
    levels = x.reshape(1, -1, FRAME).mean(dim=2, keepdim=True) * 10
    return -(levels - torch.arange(float(len(TOKENS)))).square()


@pytest.fixture
def model(assets: dict[str, Path]) -> EdgeModel:
    return model_for("speech-recognition", Gives("logits", loudest), assets, x=torch.zeros(1, LENGTH))


def say(path: Path, labels: list[int]) -> Path:
    return write_wav(path, np.repeat(np.array(labels) / 10, FRAME))


def recordings(tmp_path: Path) -> Path:
    rows = [
        ("a b", [5, 5, 4, 6]),
        ("abc c", [5, 6, 0, 7, 4, 7]),
        ("ca", [7, 5, 5]),
        ("aa ba", [5, 0, 5, 4, 6, 6]),
        ("c", [0, 0]),
    ]
    for index, (_, labels) in enumerate(rows):
        say(tmp_path / "data" / f"{index}.wav", labels)
    table = "".join(f"{index}.wav\t{text.upper()}\ttest\n" for index, (text, _) in enumerate(rows))
    (tmp_path / "data" / "transcripts.tsv").write_text("path\ttext\tsplit\n" + table)
    return tmp_path / "data"


def test_error_rates_are_those_of_jiwer(model: EdgeModel, tmp_path: Path) -> None:
    jiwer: Any = pytest.importorskip("jiwer", reason="it is the oracle: edgeattn[speech]")
    data = loaded(model, recordings(tmp_path))
    score = scored_everywhere(model, data, tmp_path)
    true, said = ["a b", "abc c", "ca", "aa ba", "c"], ["a b", "abc c", "ca", "aa b", ""]
    assert (score.metric, score.higher_is_better) == ("wer", False)
    assert score.value == pytest.approx(jiwer.wer(true, said), abs=1e-12)
    assert score.others == {"cer": pytest.approx(100 * jiwer.cer(true, said), abs=1e-9)}


@pytest.mark.slow
def test_an_engine_hears_the_same(model: EdgeModel, tmp_path: Path) -> None:
    data = loaded(model, recordings(tmp_path))
    assert scored_by_onnxruntime(model, data, tmp_path).value == scored_everywhere(model, data, tmp_path).value


def test_the_text_is_that_of_wav2vec2s_tokenizer(model: EdgeModel, assets: dict[str, Path]) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="it is the oracle: edgeattn[hf]")
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(assets["vocab.json"]))
    task = task_of(model)
    assert isinstance(task, SpeechRecognition)
    rng = np.random.default_rng(0)
    for _ in range(50):
        labels = rng.choice([0, 4, 5, 6, 7], 30).tolist()
        assert task.text(labels) == " ".join(tokenizer.decode(labels).lower().split())


def test_padding_is_not_heard_and_nan_is_nothing(model: EdgeModel) -> None:
    task = task_of(model)
    scores = np.zeros((1, 4, 8), np.float32)
    scores[0, [0, 1, 2, 3], [5, 5, 6, 7]] = 1
    assert task.answer([{"logits": scores}], {"filled": 0.7}) == "ab"
    assert task.answer([{"logits": scores}], {}) == "abc"
    scores[0, 3, 0] = np.nan
    assert task.answer([{"logits": scores}], {}) is None
    assert task.metrics[0].value([task.metrics[0].statistics(None, "a b")]) == 1.0


def test_tokens_that_are_words_are_joined_by_spaces() -> None:
    task = SpeechRecognition.__new__(SpeechRecognition)
    for name, value in {"tokens": ("<blk>", "one", "two"), "blank": 0}.items():
        object.__setattr__(task, name, value)
    assert task.text([1, 1, 0, 1, 2]) == "one one two"
    object.__setattr__(task, "tokens", ("<blk>", "▁on", "e"))
    assert task.text([1, 2, 0, 1]) == "one on"


def test_without_texts_the_source_is_agreed_with(model: EdgeModel, tmp_path: Path) -> None:
    directory = recordings(tmp_path)
    (directory / "transcripts.tsv").write_text("path\ttext\n0.wav\t\n1.wav\t\n2.wav\t\n")
    data = loaded(model, directory)
    agreeing = data.agreeing(Reference(model), lambda: None)
    assert agreeing is not None
    score = agreeing.score(Reference(model), agreeing.evaluation, lambda: None)
    assert score is not None
    assert (score.metric, score.value) == ("agreement-wer", 0.0)


def test_nothing_recognised_is_told(model: EdgeModel) -> None:
    task = task_of(model)
    assert "nothing of what is said" in task.broken(1.0, ["", "a"], ["a", "b"])
    assert task.broken(0.6, ["a", "a"], ["a", "b"]) == "the metric is constant: every answer is 'a'"
    assert task.broken(0.1, ["a", "b"], ["a", "b"]) == ""


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({}, "needs the texts of the model's 8 tokens"),
        ({"a": 8}, r"vocab\.json: token 'a' is number 8, and the model has 8 tokens"),
        ({"en": {"a": 1}}, "token 'en' is number"),
        ({"a": True}, "token 'a' is number True"),
    ],
)
def test_a_vocabulary_of_another_model_is_refused(
    assets: dict[str, Path], vocabulary: dict[str, Any], message: str
) -> None:
    assets["vocab.json"].write_text(json.dumps(vocabulary))
    with pytest.raises(InputError, match=message):
        model_for("speech-recognition", Gives("logits", loudest), assets, x=torch.zeros(1, LENGTH))


def test_a_model_that_gives_no_frames_is_refused(assets: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"a score per frame and token \(CTC\)"):
        model_for("speech-recognition", Gives("logits", lambda x: x[:, :8]), assets, x=torch.zeros(1, LENGTH))


def test_data_without_transcripts_is_refused(model: EdgeModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a directory with transcripts\.tsv"):
        loaded(model, tmp_path)


def test_labels_of_the_config_name_tokens(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(TOKENS))}))
    assets = {"config.json": tmp_path / "config.json"}
    task = task_of(model_for("speech-recognition", Gives("logits", loudest), assets, x=torch.zeros(1, LENGTH)))
    assert isinstance(task, SpeechRecognition)
    assert (task.tokens, task.blank) == (TOKENS, 0)


def test_shared_recordings_are_read(assets: dict[str, Path]) -> None:
    if not SHARED.is_dir():
        pytest.skip("ljspeech_141 is not at shared/data beside the checkout")
    pytest.importorskip("soundfile", reason="reading flac needs edgeattn[speech]")
    model = model_for("speech-recognition", Gives("logits", loudest), assets, x=torch.zeros(1, RATE))
    data = loaded(model, SHARED, limit=4)
    assert all(sample.target for sample in data.evaluation)
    assert "(4 of 4 samples cut at 1 s)" in data.origin
