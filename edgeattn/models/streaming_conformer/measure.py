"""Word errors of the torch model on connected words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from edgeattn.audio import fbank
from edgeattn.evaluation.speech import Utterance
from edgeattn.evaluation.word_error import WordErrors, bootstrap_ci95, total, word_errors
from edgeattn.models.streaming_conformer.augment import Samples
from edgeattn.models.streaming_conformer.model import StreamingConformer
from edgeattn.models.streaming_conformer.utterances import FBANK, connected_utterances
from edgeattn.models.streaming_conformer.vocabulary import COMMANDS, DIGITS, words_of
from edgeattn.models.streaming_conformer.voices import NOISE, Clip

FLUSH = 5_600  # samples of silence that a runtime appends so that the last word is heard out, 0.7 s


@dataclass(frozen=True)
class SpeakerScore:
    """Word errors of a set of utterances, by speaker, with a bootstrap interval of the rate."""

    total: WordErrors
    by_speaker: dict[str, WordErrors]
    ci95: tuple[float, float]


def held_out_sets(clips: Sequence[Clip], per_set: int = 120) -> dict[str, list[Utterance]]:
    """Evaluation utterances by source: digits of fsdd, commands of speech_commands; about ``per_set`` each."""
    noises = [clip for clip in clips if clip.word == NOISE]
    sets = {}
    for source, vocabulary in (("fsdd", DIGITS), ("speech_commands", COMMANDS)):
        own = [clip for clip in clips if clip.source == source and clip.word != NOISE]
        speakers = len({clip.speaker for clip in own if clip.word in vocabulary})
        if speakers:
            utterances = connected_utterances([*own, *noises], vocabulary, -(-per_set // speakers), seed=2026)
            if utterances:
                sets[source] = utterances
    return sets


@torch.no_grad()
def transcribe(model: StreamingConformer, utterances: Sequence[Utterance], batch: int = 32) -> list[list[str]]:
    """What the model hears under its chunk mask, exactly as a stream would, in batches."""
    model.eval()
    order = sorted(range(len(utterances)), key=lambda index: len(utterances[index].samples))
    result: list[list[str]] = [[] for _ in utterances]
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        feats = [torch.from_numpy(fbank(np.pad(utterances[index].samples, (0, FLUSH)), FBANK)) for index in chosen]
        lengths = torch.tensor([len(item) for item in feats])
        log_probs, out_lengths = model(nn.utils.rnn.pad_sequence(feats, batch_first=True), lengths)
        for index, row, length in zip(chosen, log_probs.argmax(-1), out_lengths.tolist(), strict=True):
            result[index] = words_of(row[:length].tolist())
    return result


def score(utterances: Sequence[Utterance], transcripts: Sequence[Sequence[str]]) -> SpeakerScore:
    """Word errors of transcripts.

    Raises:
        ValueError: if there is no utterance, or as many transcripts as utterances are not given.
    """
    parts = [word_errors(item.words, words) for item, words in zip(utterances, transcripts, strict=True)]
    speakers = sorted({item.speaker for item in utterances})
    by_speaker = {
        speaker: total(part for item, part in zip(utterances, parts, strict=True) if item.speaker == speaker)
        for speaker in speakers
    }
    interval = bootstrap_ci95([part.errors for part in parts], [part.words for part in parts])
    return SpeakerScore(total(parts), by_speaker, interval)


def evaluate(model: StreamingConformer, sets: dict[str, list[Utterance]]) -> dict[str, SpeakerScore]:
    """Word errors per evaluation set."""
    return {name: score(utterances, transcribe(model, utterances)) for name, utterances in sets.items()}


def recogniser(model: StreamingConformer) -> Callable[[Samples], Sequence[str]]:
    """Samples at 8 kHz, float32, shape (n,) -> the words that a flushed stream would give."""
    return lambda samples: transcribe(model, [Utterance(samples, ())])[0]
