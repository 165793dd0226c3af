"""Clips of single words: recordings read from ``--data`` and words synthesised by espeak-ng and flite."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeattn.errors import InputError
from edgeattn.guards.confined import confined_file
from edgeattn.models.streaming_conformer.accents import SPELLINGS
from edgeattn.models.streaming_conformer.augment import SAMPLE_RATE, Samples
from edgeattn.models.streaming_conformer.vocabulary import COMMANDS, DIGITS

FRAME = 80  # samples, 10 ms
NOISE = ""  # the word of a clip without speech
ACCENTS = (
    "en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc",
)  # fmt: skip
VARIANTS = (
    "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "klatt", "klatt2", "klatt3",
    "klatt4", "Alex", "Alicia", "Andrea", "Andy", "Annie", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb",
    "david", "Denis", "Diogo", "Ed", "edward", "edward2", "Gene", "Gene2", "grandma", "grandpa", "Gustave", "Henrique",
    "Hugo", "iven", "iven2", "Jacky", "John", "Lee", "Linda", "Marco", "Mario", "Max", "Michael", "michel", "miguel",
    "Mike", "Mr", "norbert", "Nguyen", "Pablo", "Paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby",
    "steph", "steph2", "steph3", "travis", "victor", "Zac", "anika", "adam", "croak", "whisper",
)  # fmt: skip
FLITE_VOICES = ("awb", "rms", "slt", "kal16")
OTHER_WORDS = (
    "backward", "bed", "bird", "cat", "dog", "follow", "forward", "happy", "house", "learn", "marvin", "sheila", "tree",
    "visual", "wow", "hello", "please", "thank you", "open", "close", "start", "pause", "play", "music", "light",
    "window", "door", "number", "hundred", "twenty", "eleven", "ten", "half", "night", "bright", "white", "site",
    "sun", "gun", "done", "own", "home", "phone", "low", "show", "know that", "so", "grow", "blow", "top", "shop",
    "step", "cup", "pop", "town", "brown", "crown", "best", "guess", "dress", "left over", "lift", "loft", "laugh",
    "free", "sea", "tea", "for the", "forest", "fire", "fine", "mine", "line", "wine", "nice", "mix", "sick", "sister",
    "heaven", "given", "ate it", "hate", "late", "wait", "hero", "zebra", "to the", "too much", "who", "blue",
    "water", "coffee", "kitchen", "table", "what time is it", "how are you", "good morning", "I think that",
    "because", "people", "another", "under", "over there", "again", "maybe", "yesterday", "yellow", "never", "often",
    "offer", "of course", "orange", "in the room", "can you", "where is", "the weather", "computer", "temperature",
)  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """One word, or noise, said by one voice.

    Attributes:
        samples: int16, shape (n,), 8 kHz.
        start, end: the word within ``samples``.
        word: what is said; "" for noise.
        speaker: a name that is unique over all sources.
        source: "fsdd", "speech_commands", "espeak-ng" or "flite".
        split: the split named by the corpus, "train" for synthesised clips.
    """

    samples: NDArray[np.int16]
    start: int
    end: int
    word: str
    speaker: str
    source: str
    split: str


def word_bounds(samples: Samples, threshold_db: float = -36.0) -> tuple[int, int]:
    """Where the word is, by energy after pre-emphasis (fricatives are weak at 8 kHz without it).

    The noise floor counts only in clips of at least 0.8 s: in a clip that was cut already the quietest frames are the
    word's own fricatives, and cutting those made "four" an "off".

    Args:
        samples: float32, shape (n,).
        threshold_db: speech is above this, relative to the loudest 10 ms frame, and 6 dB above the floor.

    Returns:
        start and end in samples; the whole clip when less than 100 ms would remain.
    """
    emphasised = np.append(samples[:1], samples[1:] - 0.9 * samples[:-1])
    frames = emphasised[: len(emphasised) // FRAME * FRAME].reshape(-1, FRAME)
    if len(frames) < 10:
        return 0, len(samples)
    energy = 10.0 * np.log10(np.mean(frames * frames, axis=1) + 1e-10)
    peak = int(np.argmax(energy))
    limit = energy[peak] + threshold_db
    if len(frames) >= 80:
        limit = max(limit, min(float(np.percentile(energy, 10)) + 6.0, energy[peak] - 12.0))
    loud = energy > limit
    gap = 16  # frames: the closure of a plosive lasts up to 150 ms
    first = last = peak
    for index in range(peak, -1, -1):
        if loud[index]:
            if first - index > gap:
                break
            first = index
    for index in range(peak, len(loud)):
        if loud[index]:
            if index - last > gap:
                break
            last = index
    start, end = max(0, first - 1) * FRAME, min(len(samples), (last + 3) * FRAME)
    return (start, end) if end - start >= 10 * FRAME else (0, len(samples))


def make_clip(samples: Samples, word: str, speaker: str, source: str, split: str) -> Clip:
    """A clip with its word bounds found; peak set to half of full scale so that int16 loses nothing."""
    start, end = word_bounds(samples) if word else (0, len(samples))
    scaled = samples * (16_000.0 / (np.abs(samples).max() + 1e-9))
    return Clip(scaled.astype(np.int16), start, end, word, speaker, source, split)


def read_rows(table: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a tab-separated file with a header, with their line numbers.

    Raises:
        InputError: the file is missing, the header lacks a column, or a line has another number of fields.
    """
    if not table.is_file():
        raise InputError(f"{table} is missing; expected a tab-separated file with columns {', '.join(columns)}")
    confined_file(table, table.parent, InputError)
    with table.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = next(reader, [])
        missing = [column for column in columns if column not in header]
        if missing:
            got = ", ".join(header) or "nothing"
            raise InputError(f"{table}:1: the header lacks {', '.join(missing)}; it has {got}")
        for number, fields in enumerate(reader, start=2):
            if len(fields) != len(header):
                raise InputError(f"{table}:{number}: expected {len(header)} tab-separated fields, got {len(fields)}")
            yield number, dict(zip(header, fields, strict=True))


def read_corpus(data: Path) -> list[Clip]:
    """All recordings under a data directory.

    Args:
        data: holds ``fsdd/`` and ``speech_commands/`` (either may be missing, not both), each with
            ``transcripts.tsv`` (path, text, speaker, split), and optionally ``speech_commands_v1_sample/``
            (``sample.zip`` with ``WORD/SPEAKER_*.wav``).

    Raises:
        InputError: nothing there, or a line is wrong; the message names the file and the line.
    """
    clips: list[Clip] = []
    found = [name for name in ("fsdd", "speech_commands") if (data / name / "transcripts.tsv").is_file()]
    if not found:
        raise InputError(f"{data} holds neither fsdd/transcripts.tsv nor speech_commands/transcripts.tsv")
    for name in found:
        clips.extend(read_folder(data / name, name))
    if (data / "speech_commands_v1_sample" / "sample.zip").is_file():
        clips.extend(read_sample_zip(data / "speech_commands_v1_sample" / "sample.zip"))
    return clips


def read_folder(folder: Path, source: str) -> list[Clip]:
    """The clips that ``folder/transcripts.tsv`` lists. Raises InputError naming the line."""
    from edgeattn.audio import read_audio

    clips = []
    table = folder / "transcripts.tsv"
    for number, row in read_rows(table, ("path", "text", "speaker", "split")):
        path = folder / row["path"]
        try:
            confined_file(path, folder, InputError)
        except InputError as error:
            raise InputError(f"{table}:{number}: {error}") from error
        if row["split"] not in ("train", "dev", "test"):
            raise InputError(f"{table}:{number}: split must be train, dev or test, got {row['split']!r}")
        try:
            samples = read_audio(path, SAMPLE_RATE)
        except InputError as error:
            raise InputError(f"{table}:{number}: {error}") from error
        speaker = f"{source}/{row['speaker']}"
        clips.append(make_clip(samples, row["text"].strip().lower(), speaker, source, row["split"]))
    return clips


def read_sample_zip(path: Path) -> list[Clip]:
    """Clips of a zip of ``WORD/SPEAKER_nohash_N.wav`` files, the layout of Speech Commands."""
    import soundfile
    import soxr

    clips = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            word, _, file = name.partition("/")
            if not file.endswith(".wav"):
                continue
            samples, rate = soundfile.read(io.BytesIO(archive.read(name)), dtype="float32")
            speaker = f"speech_commands/{file.split('_')[0]}"
            narrow = np.asarray(soxr.resample(samples, rate, SAMPLE_RATE), np.float32)
            clips.append(make_clip(narrow, word, speaker, "speech_commands", "train"))
    return clips


@dataclass(frozen=True)
class Voice:
    """One synthesised voice: the command line that speaks a text to standard output as WAV.

    ``language`` is that of the spelling it reads: "en", or a key of :data:`SPELLINGS` for a foreign accent.
    """

    name: str
    source: str
    command: tuple[str, ...]
    language: str = "en"


def synthetic_voices(count: int, seed: int = 0) -> list[Voice]:
    """Voices over accents, variants, rates and pitches, drawn deterministically.

    Raises:
        InputError: espeak-ng is not installed.
    """
    if shutil.which("espeak-ng") is None:
        raise InputError("espeak-ng is needed for the synthesised voices: install it (Debian: apt install espeak-ng)"
                         " or train with --no-synthetic")  # fmt: skip
    rng = np.random.default_rng(seed)
    pairs = [(accent, variant) for accent in ACCENTS for variant in VARIANTS]
    order = rng.permutation(len(pairs))[:count]
    voices = []
    for accent, variant in (pairs[index] for index in order):
        rate, pitch = int(rng.integers(110, 230)), int(rng.integers(15, 90))
        command = ("espeak-ng", "-v", f"{accent}+{variant}", "-s", str(rate), "-p", str(pitch), "--stdout")
        voices.append(Voice(f"espeak-ng/{accent}+{variant}", "espeak-ng", command))
    for index in range(count * len(SPELLINGS) // 29):  # 98 foreign voices beside 260 English ones
        language, variant = list(SPELLINGS)[index % len(SPELLINGS)], VARIANTS[int(rng.integers(len(VARIANTS)))]
        rate, pitch = int(rng.integers(110, 230)), int(rng.integers(15, 90))
        command = ("espeak-ng", "-v", f"{language}+{variant}", "-s", str(rate), "-p", str(pitch), "--stdout")
        voices.append(Voice(f"espeak-ng/{language}+{variant}", "espeak-ng", command, language))
    if shutil.which("flite") is not None:
        for name, stretch in itertools.product(FLITE_VOICES, (0.8, 1.0, 1.25)):
            options = ("-voice", name, "--setf", f"duration_stretch={stretch}", "-o", "/dev/stdout", "-t")
            voices.append(Voice(f"flite/{name}", "flite", ("flite", *options)))
    return voices


def speak(voice: Voice, word: str) -> Clip | None:
    """One synthesised clip; None where the voice says nothing audible."""
    import soundfile
    import soxr

    # A sentence end gives the word its full, final form.
    text = SPELLINGS.get(voice.language, {}).get(word, word)
    done = subprocess.run([*voice.command, text + "."], capture_output=True, check=False, timeout=30)
    raw = bytearray(done.stdout)
    if len(raw) < 100:
        return None
    # espeak-ng cannot know the length when it writes a header to a pipe; libsndfile wants the true one.
    raw[4:8] = (len(raw) - 8).to_bytes(4, "little")
    data = raw.find(b"data")
    raw[data + 4 : data + 8] = (len(raw) - data - 8).to_bytes(4, "little")
    samples, rate = soundfile.read(io.BytesIO(bytes(raw)), dtype="float32")
    narrow = np.asarray(soxr.resample(samples, rate, SAMPLE_RATE), np.float32)
    if len(narrow) < 800 or np.abs(narrow).max() < 1e-3:
        return None
    return make_clip(narrow, word, voice.name, voice.source, "train")


def synthesise(
    cache: Path, count: int = 260, seed: int = 0, on_progress: Callable[[int, int], None] | None = None
) -> list[Clip]:
    """Every vocabulary word and a few other words in each synthetic voice, cached in one npz file.

    Args:
        cache: directory of the cache; made when missing.
        count: espeak-ng voices.
        seed: of voices, rates, pitches and other words.
        on_progress: called with clips done and clips in all.
    """
    voices = synthetic_voices(count, seed)
    rng = np.random.default_rng(seed + 1)
    jobs = [(voice, word) for voice in voices for word in (*DIGITS, *COMMANDS, *rng.choice(OTHER_WORDS, 12, False))]
    key = hashlib.sha256(repr((jobs, SPELLINGS)).encode()).hexdigest()[:16]
    path = cache / f"voices-{key}.npz"
    if path.is_file():
        return load_clips(path)
    clips: list[Clip] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done, clip in enumerate(pool.map(lambda job: speak(*job), jobs), start=1):
            if clip is not None:
                clips.append(clip)
            if on_progress is not None and (done % 100 == 0 or done == len(jobs)):
                on_progress(done, len(jobs))
    save_clips(path, clips)
    return clips


def save_clips(path: Path, clips: Iterable[Clip]) -> None:
    """Writes clips as one npz without pickles, whole or not at all."""
    clips = list(clips)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "samples": np.concatenate([clip.samples for clip in clips]),
        "lengths": np.array([len(clip.samples) for clip in clips]),
        "bounds": np.array([(clip.start, clip.end) for clip in clips]),
        "names": np.array([(clip.word, clip.speaker, clip.source, clip.split) for clip in clips]),
    }
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    partial.replace(path)


def load_clips(path: Path) -> list[Clip]:
    """Reads what :func:`save_clips` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        offsets = np.concatenate([[0], np.cumsum(arrays["lengths"])])
        samples, bounds, names = arrays["samples"], arrays["bounds"], arrays["names"]
    return [
        Clip(samples[offsets[i] : offsets[i + 1]], int(start), int(end), *(str(name) for name in names[i]))
        for i, (start, end) in enumerate(bounds)
    ]
