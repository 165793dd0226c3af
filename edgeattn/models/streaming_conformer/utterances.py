"""Connected words from single clips: training batches and evaluation utterances."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edgeattn.audio import fbank
from edgeattn.errors import InputError
from edgeattn.evaluation.speech import Utterance
from edgeattn.models.streaming_conformer import augment
from edgeattn.models.streaming_conformer.augment import SAMPLE_RATE, Samples
from edgeattn.models.streaming_conformer.vocabulary import COMMANDS, DIGITS, TOKEN_ID, TOKENS, UNKNOWN, UNKNOWN_ID
from edgeattn.models.streaming_conformer.voices import NOISE, Clip
from edgeattn.spec import FbankConfig

FBANK = FbankConfig(sample_rate=SAMPLE_RATE, num_mel=augment.NUM_MEL)
HOP = 80  # samples per feature frame
ENCODER_HOP = 4 * HOP  # samples per encoder frame
IGNORE = -100  # frame label that the loss skips


def connected_utterances(
    clips: Sequence[Clip],
    vocabulary: Sequence[str],
    per_speaker: int,
    seed: int = 0,
    noise_db: tuple[float, float] = (15.0, 30.0),
    words: tuple[int, int] = (3, 8),
    whole_clips: bool = False,
) -> list[Utterance]:
    """Utterances of 3 to 8 words by one speaker each, with pauses and noise, for measuring.

    Words are drawn uniformly from those of ``vocabulary`` that the speaker has said; the recording of a word is not
    repeated within an utterance where another exists. Noise is a noise clip, or white to brown noise. The result
    depends on ``clips`` and the arguments alone.

    Args:
        clips: recordings to draw from; clips of noise (word "") among them serve as noise.
        vocabulary: words that may occur.
        per_speaker: utterances per speaker.
        seed: of every choice.
        noise_db: range of the signal-to-noise ratio.
        words: smallest and largest number of words.
        whole_clips: keep clips as recorded instead of cutting them 50 ms around the word.

    Returns:
        utterances at 8 kHz, speakers in alphabetical order; speakers with fewer than three of the words are left out.
    """
    noises = [clip for clip in clips if clip.word == NOISE]
    by_speaker: dict[str, dict[str, list[Clip]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips:
        if clip.word in vocabulary:
            by_speaker[clip.speaker][clip.word].append(clip)
    result = []
    for speaker in sorted(by_speaker):
        said = by_speaker[speaker]
        if len(said) < 3:
            continue
        rng = np.random.default_rng([seed, *speaker.encode()])
        known = sorted(said)
        for _ in range(per_speaker):
            count = int(rng.integers(words[0], words[1] + 1))
            chosen = [str(word) for word in rng.choice(known, count)]
            used: set[int] = set()
            parts = [silence(rng.uniform(0.2, 0.6))]
            for word in chosen:
                fresh = [clip for clip in said[word] if id(clip) not in used] or said[word]
                clip = fresh[int(rng.integers(len(fresh)))]
                used.add(id(clip))
                parts.append(cut(clip, len(clip.samples) if whole_clips else int(0.05 * SAMPLE_RATE)))
                parts.append(silence(rng.uniform(0.08, 0.7)))
            parts.append(silence(0.3))
            speech = np.concatenate(parts)
            noise = pick_noise(len(speech), noises, rng)
            samples = augment.add_noise(speech, noise, rng.uniform(*noise_db), speech[speech != 0])
            samples *= np.float32(rng.uniform(0.1, 0.7) / np.abs(samples).max())
            result.append(Utterance(samples, tuple(chosen), speaker))
    return result


def silence(seconds: float) -> Samples:
    """Zeros, float32, shape (seconds * 8000,)."""
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def cut(clip: Clip, margin: int) -> Samples:
    """A clip around its word with ``margin`` samples on both sides where they exist, 5 ms faded at the ends."""
    samples = clip.samples[max(0, clip.start - margin) : clip.end + margin].astype(np.float32) / np.float32(32_768)
    fade = min(40, len(samples) // 2)
    ramp = np.linspace(0.0, 1.0, fade, dtype=np.float32)
    samples[:fade] *= ramp
    samples[len(samples) - fade :] *= ramp[::-1]
    return samples


def clipped(clip: Clip, rng: np.random.Generator) -> Clip:
    """A clip that lost up to 15 % of its word at the start and 20 % at the end, as hasty recordings do."""
    length = clip.end - clip.start
    first = clip.start + int(rng.uniform(0.0, 0.15) * length)
    last = clip.end - int(rng.uniform(0.0, 0.2) * length)
    return replace(clip, samples=clip.samples[first:last], start=0, end=last - first)


def pick_noise(length: int, noises: Sequence[Clip], rng: np.random.Generator) -> Samples:
    """A noise clip looped from a random start (6 of 10 times where there are any), else coloured noise."""
    if noises and rng.random() < 0.6:
        clip = noises[int(rng.integers(len(noises)))].samples.astype(np.float32)
        return augment.mix([np.concatenate([clip, clip[::-1]])], length, rng)
    return augment.coloured_noise(length, float(rng.uniform(0.0, 2.0)), rng)


@dataclass(frozen=True)
class Recipe:
    """What training utterances are made of.

    Attributes:
        source_weights: how often a source gives an utterance; weights of absent sources are dropped.
        kinds: share of utterances of digits alone and of commands alone; the rest mix them. People dial or command, and
            a model that has seen only mixtures cannot use the words before to tell "four" from "off".
        unknown: share of words outside the vocabulary.
        empty: share of utterances without a vocabulary word.
        frames: feature frames per batch, padding included; bounds memory and time of a step.
    """

    source_weights: tuple[tuple[str, float], ...] = (
        ("speech_commands", 0.43),
        ("fsdd", 0.23),
        ("espeak-ng", 0.27),
        ("flite", 0.07),
    )
    kinds: tuple[float, float] = (0.45, 0.35)
    unknown: float = 0.08
    empty: float = 0.03
    frames: int = 11_000


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        feats: float32, shape (B, T, F), log mel energies, padded with the mean.
        lengths: int64, shape (B,), feature frames.
        targets: int64, shape (sum of target_lengths,).
        target_lengths: int64, shape (B,).
        frame_labels: int64, shape (B, T'), the token said at each encoder frame, 0 in pauses, ``IGNORE`` where unclear.
    """

    feats: NDArray[np.float32]
    lengths: NDArray[np.int64]
    targets: NDArray[np.int64]
    target_lengths: NDArray[np.int64]
    frame_labels: NDArray[np.int64]


@dataclass
class _Source:
    """Clips of one source by word, and by speaker and word."""

    words: dict[str, list[Clip]] = field(default_factory=lambda: defaultdict(list))
    speakers: dict[str, dict[str, list[Clip]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))


class BatchMaker:
    """Makes batch number i of a run: a pure function of the clips, the recipe, the seed and i.

    Workers and restarts therefore change nothing.
    """

    def __init__(self, clips: Sequence[Clip], recipe: Recipe, seed: int, mean: Samples) -> None:
        self.clips = clips
        self.recipe = recipe
        self.seed = seed
        self.mean = mean
        self.noises = [clip for clip in clips if clip.word == NOISE]
        self.sources: dict[str, _Source] = defaultdict(_Source)
        for clip in clips:
            if clip.word != NOISE:
                word = clip.word if clip.word in TOKEN_ID else UNKNOWN
                self.sources[clip.source].words[word].append(clip)
                self.sources[clip.source].speakers[clip.speaker][word].append(clip)
        self._anywhere: dict[str, list[Clip]] = defaultdict(list)
        for source in self.sources.values():
            for word, spoken in source.words.items():
                self._anywhere[word] += spoken
        self._digits = [word for word in DIGITS if word in self._anywhere]
        self._commands = [word for word in COMMANDS if word in self._anywhere]
        weights = [(name, weight) for name, weight in recipe.source_weights if name in self.sources]
        if not weights or not (self._digits or self._commands):
            raise InputError("there is no recording of a digit or a command to train on")
        total = sum(weight for _, weight in weights)
        self._names = [name for name, _ in weights]
        self._weights = [weight / total for _, weight in weights]
        self._speakers = {name: sorted(self.sources[name].speakers) for name in self._names}
        rng = np.random.default_rng([seed, 1])
        self._rooms = [augment.room_response(rng) for _ in range(150)]
        self._warps = [augment.mel_warp_matrix(factor) for factor in np.geomspace(0.83, 1.2, 23)]

    def __call__(self, index: int, seconds: tuple[float, float]) -> Batch:
        """Batch ``index``, its utterances about equally long, between ``seconds[0]`` and ``seconds[1]``.

        Utterances are filled with words up to one length per batch: drawn by number of words instead, 40 % of a batch
        was padding.
        """
        rng = np.random.default_rng([self.seed, 2, index])
        target = float(rng.uniform(*seconds))
        size = max(2, int(self.recipe.frames / (100.0 * target)))
        items = [self._utterance(target, rng) for _ in range(size)]
        longest = max(len(feats) for feats, _, _ in items)
        longest += (3 - longest) % 16  # few distinct lengths: kernels and buffers are reused
        feats = np.empty((size, longest, augment.NUM_MEL), np.float32)
        feats[:] = self.mean
        frame_labels = np.full((size, (longest - 3) // 4), IGNORE, np.int64)
        for row, (item, _, labels) in enumerate(items):
            feats[row, : len(item)] = item
            frame_labels[row, : len(labels)] = labels
        return Batch(
            feats,
            np.array([len(item) for item, _, _ in items], np.int64),
            np.array([token for _, tokens, _ in items for token in tokens], np.int64),
            np.array([len(tokens) for _, tokens, _ in items], np.int64),
            frame_labels,
        )

    def utterance(self, index: int, seconds: tuple[float, float]) -> Utterance:
        """Utterance ``index``, as a microphone gives it: rate, room, noise and line are drawn as for training.

        What training does to features alone is left out. The same is drawn for the same index.
        """
        rng = np.random.default_rng([self.seed, 3, index])
        speed = float(np.exp(np.clip(rng.normal(0.0, 0.11), -0.25, 0.25)))
        speech, spans = self._speech(float(rng.uniform(*seconds)) * speed, rng)
        heard = self._acoustics(augment.resample(speech, speed), rng)
        return Utterance(heard, tuple(TOKENS[token] for _, _, token in spans))

    def _utterance(self, seconds: float, rng: np.random.Generator) -> tuple[Samples, list[int], NDArray[np.int64]]:
        speed = float(np.exp(np.clip(rng.normal(0.0, 0.11), -0.25, 0.25)))
        # Tempo alone, on the features: people differ more in tempo than pitch may be shifted, the fastest here twofold.
        tempo = float(np.exp(np.clip(rng.normal(0.12, 0.2), -0.25, 0.6))) if rng.random() < 0.6 else 1.0
        speech, spans = self._speech(seconds * speed * tempo, rng)
        speech = augment.resample(speech, speed)
        spans = [(int(start / speed), int(end / speed), token) for start, end, token in spans]
        heard = self._acoustics(speech, rng)
        # A stream that is flushed, or a muted microphone, gives digital silence right up to a word.
        first, last = (spans[0][0], spans[-1][1]) if spans else (len(heard), 0)
        if rng.random() < 0.4:
            heard[len(heard) - int(rng.uniform(0.0, len(heard) - last)) :] = 0.0
        if rng.random() < 0.2:
            heard[: int(rng.uniform(0.0, first))] = 0.0
        feats = augment.change_tempo(fbank(heard, FBANK), tempo)
        spans = [(int(start / tempo), int(end / tempo), token) for start, end, token in spans]
        feats = feats @ self._warps[int(np.clip(rng.normal(11, 5), 0, 22))]
        feats = augment.mask_features(augment.colour_features(feats, rng), self.mean, rng)
        return feats, [token for _, _, token in spans], frame_labels(len(feats), spans)

    def _speech(self, seconds: float, rng: np.random.Generator) -> tuple[Samples, list[tuple[int, int, int]]]:
        """Words of mostly one voice with pauses, up to a length, and the span and token of each."""
        source = self._names[int(rng.choice(len(self._names), p=self._weights))]
        speaker = self._speakers[source][int(rng.integers(len(self._speakers[source])))]
        loyal = rng.random() < 0.75  # else the words come from all speakers of the source
        empty = rng.random() < self.recipe.empty
        digits = self._digit_share(source, rng)
        tight = rng.random() < 0.35
        spans: list[tuple[int, int, int]] = []
        length = int(seconds * SAMPLE_RATE)
        speech = np.zeros(length, np.float32)
        position = int(rng.uniform(0.05, 0.4) * SAMPLE_RATE)
        tail = int(rng.uniform(0.1, 0.3) * SAMPLE_RATE)  # the last word must be heard out before the utterance ends
        while not (empty and rng.random() < 0.3):
            clip = self._clip(source, speaker if loyal else None, empty, digits, rng)
            if rng.random() < 0.25:
                clip = clipped(clip, rng)
            margin = SAMPLE_RATE if rng.random() < 0.3 else int(rng.uniform(0.02, 0.12) * SAMPLE_RATE)
            samples = cut(clip, margin) * np.float32(rng.uniform(0.5, 1.5))
            start = position + clip.start - max(0, clip.start - margin)
            end = start + clip.end - clip.start
            if end + tail > length:
                break
            samples = samples[: length - position]
            speech[position : position + len(samples)] = samples
            spans.append((start, end, TOKEN_ID.get(clip.word, UNKNOWN_ID)))
            pause = rng.uniform(0.02, 0.15) if tight else min(1.2, rng.exponential(0.3) + 0.03)
            position += len(samples) + int(pause * SAMPLE_RATE)
            if position >= length:
                break
        return speech, spans

    def _digit_share(self, source: str, rng: np.random.Generator) -> float:
        """Share of digits among the vocabulary words of one utterance."""
        digits, commands = self.recipe.kinds
        kind = rng.random()
        if source == "fsdd" or kind < digits:
            return 1.0
        return 0.0 if kind < digits + commands else 0.5

    def _clip(self, source: str, speaker: str | None, empty: bool, digits: float, rng: np.random.Generator) -> Clip:
        bank = self.sources[source]
        if UNKNOWN in self._anywhere and (empty or rng.random() < self.recipe.unknown):
            word = UNKNOWN
        else:
            words = (self._digits if rng.random() < digits else self._commands) or self._digits or self._commands
            word = str(rng.choice(words))
        own = bank.speakers[speaker] if speaker is not None else {}
        clips = own.get(word) or bank.words.get(word) or self._anywhere[word]
        return clips[int(rng.integers(len(clips)))]

    def _acoustics(self, speech: Samples, rng: np.random.Generator) -> Samples:
        """Room, noise and channel."""
        active = speech[speech != 0]
        if rng.random() < 0.35:
            speech = augment.convolve(speech, self._rooms[int(rng.integers(len(self._rooms)))])
        if not len(active):
            speech = speech + 1e-4 * rng.standard_normal(len(speech), dtype=np.float32)
        kind = rng.random()
        if kind < 0.85:
            noise = pick_noise(len(speech), self.noises, rng)
            if kind < 0.08:
                noise = augment.hum(len(speech), rng) + 0.1 * noise / np.sqrt(augment.power(noise))
            elif kind < 0.18:
                voices = [self._clip(str(rng.choice(self._names)), None, False, 0.5, rng).samples for _ in range(4)]
                noise = augment.mix([voice.astype(np.float32) for voice in voices], len(speech), rng)
                speech = augment.add_noise(speech, noise, rng.uniform(12.0, 30.0), active)
                noise = augment.coloured_noise(len(speech), 1.0, rng)
            speech = augment.add_noise(speech, noise, rng.uniform(4.0, 35.0), active)
        return augment.degrade(speech, rng)


def frame_labels(feature_frames: int, spans: Sequence[tuple[int, int, int]]) -> NDArray[np.int64]:
    """What is said at each encoder frame, for the auxiliary loss.

    The first 40 % of a word carry ``IGNORE``, since nobody can know it yet; pauses are 0.

    Args:
        feature_frames: T.
        spans: start and end in samples, and the token, in order.

    Returns:
        int64, shape ((T - 3) // 4,).
    """
    labels = np.zeros(max(0, (feature_frames - 3) // 4), np.int64)
    for start, end, token in spans:
        first, last = start // ENCODER_HOP, end // ENCODER_HOP
        known = first + int(0.4 * (last - first))
        labels[first:known] = IGNORE
        labels[known : last + 1] = token
        labels[last + 1 : last + 2] = IGNORE
    return labels
