"""Trials of speakers: error rates against scikit-learn's curve over all pairs, each recording embedded once."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeattn.errors import DataError, InputError
from edgeattn.model import EdgeModel, Reference
from edgeattn.tasks import Pipeline, speaker_verification, stored
from edgeattn.tasks.metrics.verification import EER
from edgeattn.tasks.speaker_verification import of_embeddings
from tests.tasks.end_to_end import Gives, loaded, model_for, scored_by_onnxruntime, scored_everywhere, task_of
from tests.tasks.recordings import RATE, write_wav

SIZE = 8
SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "fsdd"


@pytest.fixture
def model() -> EdgeModel:
    """The embedding is the recording's first samples."""
    return model_for("speaker-verification", Gives("embeddings", lambda x: x[:, :SIZE] * 2), x=torch.zeros(1, 20))


def voices(directory: Path, speakers: int = 4, each: int = 5) -> dict[str, np.ndarray]:
    """Speakers whose recordings are alike, some less than those of others."""
    rng, found = np.random.default_rng(1), {}
    for speaker in range(speakers):
        own = rng.uniform(-0.4, 0.4, SIZE)
        for index in range(each):
            samples = np.pad(own + rng.uniform(-0.5, 0.5, SIZE), (0, 4))
            found[f"s{speaker}/{index}.wav"] = samples
            write_wav(directory / f"s{speaker}" / f"{index}.wav", samples)
    return found


def curve_eer(scores: Any, same: Any) -> float:
    """Where scikit-learn's ROC curve, with straight lines, crosses the diagonal of equal errors."""
    sklearn: Any = pytest.importorskip("sklearn.metrics", reason="it is the oracle: edgeattn[dev]")
    alarms, hits, _ = sklearn.roc_curve(same, scores, drop_intermediate=False)
    at = np.linspace(0, 1, 200_001)
    return float(at[np.argmin(np.abs(np.interp(at, alarms, hits) - (1 - at)))])


def test_the_equal_error_rate_is_that_of_all_pairs(model: EdgeModel, tmp_path: Path) -> None:
    found = voices(tmp_path / "data")
    data = loaded(model, tmp_path / "data")
    score = scored_everywhere(model, data, tmp_path)
    given = {sample.encoded.calls[0]["x"].tobytes(): sample.target["speaker"] for sample in data.evaluation}
    assert len(given) == len(data.evaluation) == len(found) - 4  # one in five calibrates
    rows = [(np.frombuffer(key, np.float32)[:SIZE], speaker) for key, speaker in given.items()]
    scores, same = [], []
    for (a, s), (b, t) in itertools.combinations(rows, 2):
        scores.append(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
        same.append(int(s == t))
    assert score.metric == "eer"
    assert 0.02 < score.value < 0.5
    assert score.value == pytest.approx(curve_eer(scores, same), abs=1e-3)
    assert 0 < score.others["min-dcf"] <= 1


@pytest.mark.slow
def test_an_engine_embeds_the_same(model: EdgeModel, tmp_path: Path) -> None:
    voices(tmp_path / "data")
    data = loaded(model, tmp_path / "data")
    assert scored_by_onnxruntime(model, data, tmp_path).value == scored_everywhere(model, data, tmp_path).value


def test_trials_of_a_list_are_scored_and_recordings_run_once(model: EdgeModel, tmp_path: Path) -> None:
    found = voices(tmp_path)
    names = list(found)
    pairs = [*itertools.combinations(names[:8], 2)]
    lines = "".join(f"{int(a[:2] == b[:2])} {a} {b}\n" for a, b in pairs)
    (tmp_path / "trials.txt").write_text(lines)
    data = loaded(model, tmp_path / "trials.txt")
    assert len(data.evaluation) == 8
    vectors = {name: np.round(found[name][:SIZE] * 32_767) for name in names}
    scores = [vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b]) for a, b in pairs]
    expected = curve_eer(scores, [a[:2] == b[:2] for a, b in pairs])
    assert scored_everywhere(model, data, tmp_path).value == pytest.approx(expected, abs=1e-3)


def test_what_is_no_number_is_the_worst_of_its_trials() -> None:
    metric = of_embeddings(EER)
    good = [(1.0, 0.0), (1.0, 0.1), (0.0, 1.0), (0.1, 1.0)]
    targets = [{"number": n, "speaker": n // 2} for n in range(4)]
    assert metric.value([metric.statistics([row], t) for row, t in zip(good, targets, strict=True)]) == 0.0
    for bad in ((np.nan, 0.0), (0.0, 0.0), (np.inf, 0.0)):
        rows = [bad, *good[1:]]
        assert metric.value([metric.statistics([row], t) for row, t in zip(rows, targets, strict=True)]) >= 0.5


@pytest.mark.parametrize("most", [200_000, 2_000])
def test_more_pairs_than_the_bound_are_drawn_alike(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(speaker_verification, "MOST_TRIALS", 300)
    monkeypatch.setattr(speaker_verification, "MOST_PAIRS", most)
    numbers, speakers = np.arange(120.0), np.arange(120.0) // 30
    first, second, same = speaker_verification._pairs(numbers, speakers)
    assert 200 < same.sum() < 550
    assert 200 < (same == 0).sum() < 400
    shuffled = np.random.default_rng(0).permutation(120)
    again = speaker_verification._pairs(numbers[shuffled], speakers[shuffled])
    drawn = {frozenset((numbers[a], numbers[b])) for a, b in zip(first, second, strict=True)}
    assert len(drawn) == len(first)
    assert drawn == {frozenset((numbers[shuffled[a]], numbers[shuffled[b]])) for a, b in zip(*again[:2], strict=True)}


def test_pairs_of_few_recordings_are_all_there_are() -> None:
    first, second, same = speaker_verification._pairs(np.array([4.0, 7.0, 9.0]), np.array([0.0, 0.0, 1.0]))
    assert sorted(zip(first.tolist(), second.tolist(), same.tolist(), strict=True)) == [
        (0, 1, 1.0),
        (0, 2, 0.0),
        (1, 2, 0.0),
    ]


def test_two_recordings_in_their_likeness_out(model: EdgeModel, tmp_path: Path) -> None:
    voices(tmp_path)
    pipeline = Pipeline(Reference(model), stored(task_of(model)), {})
    one = str(tmp_path / "s0/0.wav")
    assert pipeline(pipeline.read(f'["{one}", "{one}"]')) == {"cosine": 1.0}
    assert len(pipeline(pipeline.read(one))["embedding"]) == SIZE
    for text in ('["a.wav"]', "[", f'["{one}", 3]', "no.wav"):
        with pytest.raises(DataError, match=r"expected|no such recording"):
            pipeline.read(text)


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ("", "expected trials of both kinds"),
        ("1 s0/0.wav s0/1.wav\n", "expected trials of both kinds"),
        ("1 s0/0.wav\n", r"trials\.txt:1: expected 1 \(same speaker\) or 0, and two paths"),
        ("2 s0/0.wav s0/1.wav\n", ":1: expected 1"),
        ("1 s0/0.wav s9/1.wav\n", r":1: .*s9/1\.wav: no such file"),
        ("1 s0/0.wav ../../etc/passwd\n", ":1: .*lies outside"),
    ],
)
def test_a_wrong_list_is_refused(model: EdgeModel, tmp_path: Path, trials: str, message: str) -> None:
    voices(tmp_path / "data")
    (tmp_path / "data" / "trials.txt").write_text(trials)
    with pytest.raises(DataError, match=message):
        loaded(model, tmp_path / "data" / "trials.txt")


def test_one_speaker_is_refused(model: EdgeModel, tmp_path: Path) -> None:
    voices(tmp_path / "data", speakers=1)
    with pytest.raises(DataError, match="at least 2 speakers, got 1"):
        loaded(model, tmp_path / "data")


def test_a_line_without_a_speaker_is_refused(model: EdgeModel, tmp_path: Path) -> None:
    voices(tmp_path)
    (tmp_path / "transcripts.tsv").write_text("path\ttext\tspeaker\ns0/0.wav\tx\t\n")
    with pytest.raises(DataError, match=r"transcripts\.tsv:2: expected a speaker"):
        loaded(model, tmp_path)


def test_a_model_without_an_embedding_is_refused() -> None:
    with pytest.raises(InputError, match="expected an embedding per recording"):
        model_for("speaker-verification", Gives("y", lambda x: x[:, None]), x=torch.zeros(1, 20))
    with pytest.raises(InputError, match="expected an embedding per recording"):
        model_for("speaker-verification", Gives("y", lambda x: x[:, :1]), x=torch.zeros(1, 20))


def test_shared_recordings_are_read() -> None:
    if not SHARED.is_dir():
        pytest.skip("fsdd is not at shared/data beside the checkout")
    pytest.importorskip("soundfile", reason="reading flac needs edgeattn[speech]")
    model = model_for("speaker-verification", Gives("embeddings", lambda x: x[:, :SIZE]), x=torch.zeros(1, RATE // 2))
    data = loaded(model, SHARED, limit=20)
    assert len({sample.target["speaker"] for sample in data.evaluation}) >= 3
