"""edgeattn stream: recordings of every kind through the deployed bundle, with the source in torch as the oracle."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeattn.audio import read_audio
from edgeattn.cli.options import DEFAULT_SAMPLES
from edgeattn.evaluation.speech import SpeechData, Utterance, transcribe
from edgeattn.model import ReferenceStep
from edgeattn.results.report import Report
from edgeattn.runtimes import Stream
from edgeattn.sources import load_data, load_model
from tests.cli.conftest import Command

pytestmark = pytest.mark.slow

RATE = 8_000  # Hz, of the built-in model


@pytest.fixture(scope="module")
def source() -> Iterator[Callable[[Path], str]]:
    """The words that the float32 source hears in a recording."""
    torch = pytest.importorskip("torch", reason="the source is a torch module")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = load_model("streaming-conformer")
    assert model.spec.stream is not None
    stream = Stream(ReferenceStep(model), model.spec.stream)
    yield lambda path: " ".join(transcribe(stream, read_audio(path, RATE)))
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def utterance() -> Utterance:
    """The first one of the sample that comes with the model."""
    data = load_data("streaming-conformer", load_model("streaming-conformer").spec, None, None, 1)
    assert isinstance(data, SpeechData)
    return data.evaluation[0]


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE, channels: int = 1, width: int = 2) -> Path:
    """PCM; shape (n,) or (n, channels), floats in [-1, 1]."""
    integers = np.round(np.asarray(samples, np.float64).ravel() * (2 ** (8 * width - 1) - 1)).astype("<i4")
    data = integers.view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(data)
    return path


def test_a_recording_is_transcribed_as_the_source_does(
    edgeattn: Command, speech_bundle: Path, source: Callable[[Path], str], utterance: Utterance, tmp_path: Path
) -> None:
    path = write_wav(tmp_path / "a.wav", utterance.samples)
    outcome = edgeattn("stream", speech_bundle, path, "--fast", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["text"] == source(path) != ""
    times = [word["time"] for word in outcome.json["words"]]
    assert times == sorted(times)
    assert times[-1] <= len(utterance.samples) / RATE + 1.0
    assert {event["kind"] for event in outcome.json["events"]} == {"partial", "final"}
    assert outcome.json["realtime"] is None  # nothing was paced


def test_the_words_of_the_sample_are_heard(
    edgeattn: Command, speech_bundle: Path, utterance: Utterance, tmp_path: Path
) -> None:
    path = write_wav(tmp_path / "a.wav", utterance.samples)
    heard = edgeattn("stream", speech_bundle, path, "--fast", "--json").json["text"].split()
    # These weights are not what the model's card promises word for word, but most of a clean utterance is heard.
    assert len(set(heard) & set(utterance.words)) >= len(set(utterance.words)) / 2


def test_pacing_takes_the_time_of_the_audio_and_keeps_score(
    edgeattn: Command, speech_bundle: Path, utterance: Utterance, tmp_path: Path
) -> None:
    path = write_wav(tmp_path / "a.wav", utterance.samples[: 2 * RATE])
    outcome = edgeattn("stream", speech_bundle, path, "--deadline", "5s", "--json")
    assert outcome.code == 0, outcome.err
    realtime = outcome.json["realtime"]
    assert (realtime["paced"], realtime["misses"], realtime["deadline_ms"]) == (True, 0, 5_000.0)
    assert 0 < realtime["rtf"] < 1


def test_for_people_finals_stand_on_lines_with_their_time(
    edgeattn: Command, speech_bundle: Path, utterance: Utterance, tmp_path: Path
) -> None:
    path = write_wav(tmp_path / "a.wav", utterance.samples)
    outcome = edgeattn("stream", speech_bundle, path, "--fast")
    assert outcome.code == 0
    assert all(re.fullmatch(r" *\d+\.\d\d s  [a-z ]+", line) for line in outcome.out.splitlines())
    assert outcome.out


@pytest.mark.parametrize("kind", ["16 kHz", "44.1 kHz", "stereo", "24 bit", "32 bit", "flac"])
def test_other_rates_widths_and_channels_are_understood(
    edgeattn: Command,
    speech_bundle: Path,
    source: Callable[[Path], str],
    utterance: Utterance,
    tmp_path: Path,
    kind: str,
) -> None:
    path, samples = tmp_path / "a.wav", utterance.samples
    if kind.endswith("kHz"):
        soxr = pytest.importorskip("soxr", reason="resampling: edgeattn[speech]")
        rate = int(float(kind.split(maxsplit=1)[0]) * 1_000)
        write_wav(path, np.clip(soxr.resample(samples, RATE, rate), -1, 1), rate)
    elif kind == "stereo":
        write_wav(path, np.stack([samples, samples], axis=1), channels=2)
    elif kind == "flac":
        soundfile = pytest.importorskip("soundfile", reason="flac: edgeattn[speech]")
        path = tmp_path / "a.flac"
        soundfile.write(path, samples, RATE)
    else:
        write_wav(path, samples, width=int(kind.split(maxsplit=1)[0]) // 8)
    outcome = edgeattn("stream", speech_bundle, path, "--fast", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["text"] == source(path) != ""


def test_a_recording_without_speech_has_no_words(edgeattn: Command, speech_bundle: Path, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.zeros(RATE))
    outcome = edgeattn("stream", speech_bundle, path, "--fast", "--json")
    assert (outcome.code, outcome.json["text"], outcome.json["events"]) == (0, "", [])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "a.wav: no such recording"),
        ("a directory", "a.wav: no such recording"),
        ("empty", "a.wav: the recording is empty"),
        ("no bytes", "a.wav: not a readable recording"),
        ("text", "a.wav: not a readable recording"),
        ("truncated", "a.wav: truncated: the header promises 8000 samples, the file holds"),
        ("cut in its header", "a.wav: not a readable"),
        ("NaN", "a.wav: the recording holds NaN or infinite samples"),
    ],
)
def test_a_bad_recording_is_one_line(
    edgeattn: Command, speech_bundle: Path, tmp_path: Path, case: str, message: str
) -> None:
    path = tmp_path / "a.wav"
    if case == "a directory":
        path.mkdir()
    elif case in {"no bytes", "text", "NaN"}:
        soundfile = pytest.importorskip("soundfile", reason="what is no PCM wav: edgeattn[speech]")
        if case == "NaN":
            soundfile.write(path, np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
        else:
            path.write_text("" if case == "no bytes" else "not a recording\n" * 100)
    elif case != "missing":
        write_wav(path, np.zeros(0 if case == "empty" else RATE))
        size = {"truncated": 5_000, "cut in its header": 30}.get(case)
        path.write_bytes(path.read_bytes()[:size])
    outcome = edgeattn("stream", speech_bundle, path, "--fast", "--json")
    assert outcome.code == 2
    assert message in outcome.error
    assert outcome.json["error"]["type"] == "AudioError"


def test_raw_samples_come_on_stdin(
    speech_bundle: Path, source: Callable[[Path], str], utterance: Utterance, tmp_path: Path
) -> None:
    path = write_wav(tmp_path / "a.wav", utterance.samples)
    with wave.open(str(path), "rb") as file:
        raw = file.readframes(file.getnframes())
    command = [sys.executable, "-c", "from edgeattn.cli import main; main()", "stream", str(speech_bundle), "-"]
    done = subprocess.run(command, input=raw, capture_output=True)
    assert done.returncode == 0, done.stderr
    heard = [line.split(maxsplit=2)[2] for line in done.stdout.decode().splitlines()]
    assert " ".join(heard) == source(path)


def test_nothing_on_stdin_is_one_line(edgeattn: Command, speech_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    outcome = edgeattn("stream", speech_bundle, "-")
    assert outcome.code == 2
    assert "stdin: no samples came" in outcome.error


def test_a_model_that_does_not_stream_says_so(edgeattn: Command, small_bundle: Path) -> None:
    outcome = edgeattn("stream", small_bundle, "a.wav")
    assert outcome.code == 2
    assert "does not stream" in outcome.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.wav"], "streams as fast as it goes and to no deadline: add --fast"),
        (["a.wav", "--fast", "--deadline", "40ms"], "leave --deadline out"),
        (["-", "--fast"], "give its file, not -"),
    ],
)
def test_what_a_device_cannot_stream_is_refused(
    edgeattn: Command, speech_bundle: Path, words: list[str], message: str
) -> None:
    outcome = edgeattn("stream", speech_bundle, *words, "--device", "ssh://board")
    assert outcome.code == 2
    assert message in outcome.error


def test_a_model_that_does_not_stream_says_so_before_a_device_is_reached(edgeattn: Command, small_bundle: Path) -> None:
    outcome = edgeattn("stream", small_bundle, "a.wav", "--fast", "--device", "ssh://127.0.0.1:1")
    assert outcome.code == 2
    assert "does not stream" in outcome.error


def test_real_speech_streams_as_the_source_hears_it(
    edgeattn: Command, speech: tuple[object, Path], source: Callable[[Path], str], shared_data: Path
) -> None:
    """One digit of each speaker, on both engines that run here, in one recording each."""
    speakers = sorted(path for path in (shared_data / "fsdd").iterdir() if path.is_dir())
    assert speakers
    for speaker in speakers[:3]:
        path = min(speaker.iterdir())
        for target in ("cpu", "android-arm64"):
            bundle = speech[1] / f"streaming-conformer.{target}.edge"
            outcome = edgeattn("stream", bundle, path, "--fast", "--json")
            assert outcome.code == 0, outcome.err
            assert outcome.json["text"] == source(path)


def test_check_measures_real_speech(edgeattn: Command, speech_bundle: Path, shared_data: Path) -> None:
    arguments = ("--data", shared_data / "fsdd", "--split", "test", "--samples", 20, "--duration", "0s", "--json")
    outcome = edgeattn("check", speech_bundle, *arguments)
    assert outcome.code == 5, outcome.err  # other data than the source was measured on: nothing to hold it to
    assert edgeattn("check", speech_bundle, *arguments, "--max-metric", "100").code == 0
    accuracy = outcome.json["results"][0]["accuracy"]
    assert (accuracy["metric"], accuracy["samples"]) == ("wer", 20)
    assert accuracy["ci95"][0] <= accuracy["deployed"] <= accuracy["ci95"][1]
    assert accuracy["source"] is None  # another set of samples than the one that it was made with


def test_an_unknown_split_of_real_speech_lists_those_that_are_there(
    edgeattn: Command, speech_bundle: Path, shared_data: Path
) -> None:
    outcome = edgeattn("check", speech_bundle, "--data", shared_data / "fsdd", "--split", "tset")
    assert outcome.code == 2
    assert re.search(r"no split 'tset'; it has .*test", outcome.error)


@pytest.mark.slow
def test_the_demo_hears_the_same_words_on_every_target(
    edgeattn: Command,
    speech: tuple[Report, Path],
    source: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("edgeattn.pipeline.convert.convert", lambda *_: speech[0])  # made once, for several tests
    outcome = edgeattn("demo", "--json")
    assert outcome.code == 0, outcome.err
    data = load_data("streaming-conformer", load_model("streaming-conformer").spec, None, None, DEFAULT_SAMPLES)
    assert isinstance(data, SpeechData)
    utterance = data.evaluation[0]
    assert outcome.json["spoken"] == " ".join(utterance.words)
    heard = source(write_wav(tmp_path / "a.wav", utterance.samples, width=4))
    assert outcome.json["transcripts"] == dict.fromkeys((result.target for result in speech[0].results), heard)


def test_the_demo_refuses_data_that_nobody_can_hear_before_it_converts(edgeattn: Command, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the model is loaded: edgeattn[convert]")
    graph = load_model("streaming-conformer").spec.graphs[0]
    arrays = {tensor.name: np.zeros((6, *tensor.shape[1:]), np.float32) for tensor in graph.inputs}
    np.savez(tmp_path / "features.npz", **arrays)  # type: ignore[arg-type]
    outcome = edgeattn("demo", "--data", str(tmp_path / "features.npz"), "--out", str(tmp_path / "out"))
    assert outcome.code == 2
    assert "demo streams speech: --data is a directory of recordings" in outcome.err
    assert not (tmp_path / "out").exists()
