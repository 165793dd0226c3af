"""A tiny corpus: every word a pair of tones, every speaker a pitch."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from edgeattn.models.streaming_conformer.augment import Samples
from edgeattn.models.streaming_conformer.vocabulary import COMMANDS, DIGITS
from edgeattn.models.streaming_conformer.voices import NOISE, Clip, make_clip

WORDS = (*DIGITS, *COMMANDS)


def tone_word(word: str, pitch: float) -> Samples:
    """0.4 s of two tones between 0.15 s of near silence. float32, 8 kHz."""
    index = sum(map(ord, word)) % 23
    time = np.arange(1600) / 8000
    first = np.sin(2 * np.pi * (300 + 60 * index) * pitch * time)
    second = np.sin(2 * np.pi * (2600 - 70 * index) * pitch * time)
    quiet = 1e-4 * np.random.default_rng(index).standard_normal(1200)
    return np.concatenate([quiet, 0.4 * first, 0.3 * second, quiet]).astype(np.float32)


def tone_clips() -> list[Clip]:
    """Two fsdd speakers with digits, three speech_commands speakers with commands and others, one of them in dev."""
    clips = []
    for speaker, pitch in (("ann", 1.0), ("bob", 1.1)):
        clips += [make_clip(tone_word(word, pitch), word, f"fsdd/{speaker}", "fsdd", "train") for word in DIGITS]
    for speaker, pitch, split in (("c1", 0.9, "train"), ("c2", 1.05, "train"), ("c3", 0.95, "dev")):
        for word in (*COMMANDS, "marvin"):
            clips.append(
                make_clip(tone_word(word, pitch), word, f"speech_commands/{speaker}", "speech_commands", split)
            )
    hiss = 0.1 * np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    clips.append(make_clip(hiss, NOISE, "speech_commands/noise", "speech_commands", "train"))
    return clips


def write_wav(path: Path, samples: Samples, rate: int = 8000) -> None:
    """16-bit PCM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def write_corpus(root: Path) -> Path:
    """The clips as a data directory with fsdd/ and speech_commands/."""
    rows: dict[str, list[str]] = {"fsdd": [], "speech_commands": []}
    for index, clip in enumerate(tone_clips()):
        name = f"{index}.wav"
        write_wav(root / clip.source / name, clip.samples.astype(np.float32) / np.float32(32768))
        rows[clip.source].append("\t".join((name, clip.word, clip.speaker.partition("/")[2], clip.split)))
    for source, lines in rows.items():
        text = "\n".join(["path\ttext\tspeaker\tsplit", *lines]) + "\n"
        (root / source / "transcripts.tsv").write_text(text)
    return root
