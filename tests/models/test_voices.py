"""Reading corpora, finding words in clips, synthesised voices."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeattn.errors import InputError
from edgeattn.models.streaming_conformer import voices
from edgeattn.models.streaming_conformer.voices import (
    Clip,
    load_clips,
    read_corpus,
    save_clips,
    speak,
    synthesise,
    synthetic_voices,
    word_bounds,
)
from tests.models.voices import tone_clips, tone_word, write_corpus, write_wav


def test_a_word_is_found_between_silences() -> None:
    samples = np.zeros(8000, np.float32)
    samples[3000:5000] = np.random.default_rng(0).standard_normal(2000)
    start, end = word_bounds(samples)
    assert 2800 <= start <= 3000
    assert 5000 <= end <= 5240


def test_a_closure_inside_a_word_does_not_end_it_but_a_pause_does() -> None:
    rng = np.random.default_rng(0)
    samples = 1e-4 * rng.standard_normal(16000).astype(np.float32)
    samples[4000:5600] = rng.standard_normal(1600)
    samples[6400:7200] += 0.3 * rng.standard_normal(800)  # 100 ms later: a plosive
    samples[11000:11800] += 0.3 * rng.standard_normal(800)  # 475 ms later: something else
    start, end = word_bounds(samples)
    assert start == pytest.approx(4000, abs=240)
    assert end == pytest.approx(7200, abs=240)


def test_a_weak_fricative_of_a_clip_cut_before_is_kept() -> None:
    rng = np.random.default_rng(0)
    samples = 0.03 * rng.standard_normal(3200).astype(np.float32)  # 30 dB below the vowel
    samples[1600:] += rng.standard_normal(1600)
    assert word_bounds(samples)[0] <= 80


def test_a_click_keeps_the_whole_clip() -> None:
    samples = np.zeros(8000, np.float32)
    samples[4000:4040] = 1.0
    assert word_bounds(samples) == (0, 8000)


def test_a_corpus_is_read_with_words_speakers_and_splits(tmp_path: Path) -> None:
    clips = read_corpus(write_corpus(tmp_path))
    wanted = [(clip.word, clip.speaker, clip.source, clip.split) for clip in tone_clips()]
    assert sorted((clip.word, clip.speaker, clip.source, clip.split) for clip in clips) == sorted(wanted)
    assert all(clip.samples.dtype == np.int16 and 0 <= clip.start < clip.end <= len(clip.samples) for clip in clips)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x.wav\tone", r"transcripts.tsv:2: expected 4 tab-separated fields, got 2"),
        ("none.wav\tone\tann\ttrain", r"transcripts.tsv:2: .*none\.wav: no such file"),
        ("0.wav\tone\tann\tvalid", r"transcripts.tsv:2: split must be train, dev or test, got 'valid'"),
        ("bad.wav\tone\tann\ttrain", r"transcripts.tsv:2: .*bad.wav"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    write_wav(tmp_path / "fsdd" / "0.wav", tone_word("one", 1.0))
    (tmp_path / "fsdd" / "bad.wav").write_bytes(b"RIFF")
    (tmp_path / "fsdd" / "transcripts.tsv").write_text(f"path\ttext\tspeaker\tsplit\n{line}\n")
    with pytest.raises(InputError, match=message):
        read_corpus(tmp_path)


def test_a_header_without_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fsdd").mkdir()
    (tmp_path / "fsdd" / "transcripts.tsv").write_text("path\ttext\n")
    with pytest.raises(InputError, match=r"transcripts.tsv:1: the header lacks speaker, split; it has path, text"):
        read_corpus(tmp_path)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds neither fsdd/transcripts.tsv nor speech_commands/transcripts.tsv"):
        read_corpus(tmp_path)


def test_a_zip_of_more_clips_is_read_when_there(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    write_wav(tmp_path / "a.wav", tone_word("bed", 1.0), rate=16000)
    (tmp_path / "speech_commands_v1_sample").mkdir()
    with zipfile.ZipFile(tmp_path / "speech_commands_v1_sample" / "sample.zip", "w") as archive:
        archive.write(tmp_path / "a.wav", "bed/0a1b_nohash_0.wav")
    more = [clip for clip in read_corpus(tmp_path) if clip.word == "bed"]
    assert [(clip.speaker, clip.split) for clip in more] == [("speech_commands/0a1b", "train")]
    assert len(more[0].samples) == pytest.approx(len(tone_word("bed", 1.0)) / 2, abs=2)


def test_saved_clips_come_back(tmp_path: Path) -> None:
    clips = tone_clips()[:5]
    save_clips(tmp_path / "deep" / "clips.npz", clips)
    for clip, again in zip(clips, load_clips(tmp_path / "deep" / "clips.npz"), strict=True):
        assert np.array_equal(clip.samples, again.samples)
        assert (clip.start, clip.end, clip.word, clip.speaker) == (again.start, again.end, again.word, again.speaker)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["clips.npz"]


def test_without_espeak_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match=r"apt install espeak-ng\) or train with --no-synthetic"):
        synthetic_voices(3)


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_synthesised_words_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices, "DIGITS", ("one",))
    monkeypatch.setattr(voices, "COMMANDS", ())
    monkeypatch.setattr(voices, "FLITE_VOICES", ())
    clips = synthesise(tmp_path, count=2)
    assert {clip.speaker for clip in clips} == {voice.name for voice in synthetic_voices(2)}
    assert all(clip.source == "espeak-ng" and clip.end - clip.start > 800 for clip in clips)

    def never(*_: object) -> Clip:
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(voices, "speak", never)
    assert len(synthesise(tmp_path, count=2)) == len(clips)
    assert speak is not never
