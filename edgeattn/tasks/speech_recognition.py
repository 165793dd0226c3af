"""Whole recordings as text, by a model that gives a label per frame (CTC)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgeattn.errors import DataError
from edgeattn.spec import ModelSpec
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.language import CER, WER
from edgeattn.tasks.sounds import TRANSCRIPTS, SoundInput, listed, recording, sound_encoder, sound_input
from edgeattn.tasks.task import Arrays, Assets, Described, Encoded, Sample, Task, the_output
from edgeattn.tasks.texts import TOKENIZER, read_config, read_tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self

VOCABULARY = "vocab.json"
BLANKS = ("<pad>", "[PAD]", "<blk>", "<blank>", "<eps>", "<ctc>")
HIDDEN = frozenset({*BLANKS, "<s>", "</s>", "<unk>", "[UNK]", "[CLS]", "[SEP]"})
SPACES = str.maketrans("|▁", "  ")  # the word delimiters of Wav2Vec2's tokenizer and of SentencePiece
MAX_TOKENS = 2**16


@dataclass(frozen=True, kw_only=True)
class SpeechRecognition(Task):
    """See the module.

    Attributes:
        sound: how a recording becomes the input.
        output: that holds a score per frame and token, float [1, frames, tokens].
        tokens: their texts, by number.
        blank: number of the token that is none.
    """

    name: ClassVar[str] = "speech-recognition"
    summary: ClassVar[str] = "what is said in a recording, from a label per frame (CTC)"
    forms: ClassVar[str] = "a directory with transcripts.tsv of path and text"
    measured: ClassVar[tuple[str, ...]] = ("wer", "cer")
    plain: ClassVar[bool] = True
    model_tasks: ClassVar[tuple[str, ...]] = ("automatic-speech-recognition", "speech-recognition", "ctc")

    sound: SoundInput
    output: str
    tokens: tuple[str, ...]
    blank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.blank < len(self.tokens):
            raise ValueError(f"blank: expected a token from 0 to {len(self.tokens) - 1}, got {self.blank}")

    @classmethod
    def fitted(cls, model: Described) -> Self:
        """See :class:`~edgeattn.tasks.task.Task`."""
        if model.spec.stream is not None:
            raise DataError("this model streams: it says itself how it hears; leave --task out")
        sound = sound_input(model)
        output, shape = the_output(
            model, 3, ("logits", "log_probs"), "a score per frame and token (CTC), float [1, frames, tokens]"
        )
        tokens = _tokens(model, shape[2])
        pad = model.config.get("pad_token_id")
        named = next((tokens.index(name) for name in BLANKS if name in tokens), 0)
        blank = pad if isinstance(pad, int) and 0 <= pad < len(tokens) else named
        return cls(sound=sound, output=output, tokens=tokens, blank=int(blank))

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A directory with transcripts.tsv."""
        return (path / TRANSCRIPTS).is_file()

    def read(self, path: Path, assets: Assets) -> Sequence[Sample]:
        """Recordings and what is said in them, in lower case; one without a text has no label."""
        if not self.recognises(path):
            raise DataError(f"{path}: expected {self.forms}")
        return [
            Sample(
                given=str(heard.path),
                target=_normalized(heard.cells["text"]) or None,
                split=heard.split,
                place=heard.place,
                key=str(heard.path),
                stratum=bool(heard.cells["text"].strip()),
            )
            for heard in listed(path)
        ]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Word error; character error beside it."""
        return WER, CER

    def parsed(self, text: str) -> str:
        """The path of a recording."""
        return recording(text)

    def encoder(self, spec: ModelSpec, assets: Assets) -> Callable[[Any], Encoded]:
        """See :class:`~edgeattn.tasks.task.Task`."""
        return sound_encoder(self.sound, spec)

    def answer(self, outputs: Sequence[Arrays], facts: Mapping[str, Any]) -> str | None:
        """The text, in lower case; None where a score is NaN. Frames of padding are not read."""
        scores = np.asarray(outputs[0][self.output])
        scores = scores.reshape(-1, scores.shape[-1])
        scores = scores[: math.ceil(len(scores) * float(facts.get("filled", 1.0)))]
        return None if np.isnan(scores).any() else self.text(scores.argmax(axis=1).tolist())

    def text(self, labels: Sequence[int]) -> str:
        """The text of the best label of each frame: repeats are one, blanks and special tokens are none.

        Source: Graves et al., "Connectionist temporal classification", ICML 2006, section 3.2.
        """
        kept = [label for at, label in enumerate(labels) if at == 0 or label != labels[at - 1]]
        shown = [self.tokens[label] for label in kept if label != self.blank and self.tokens[label] not in HIDDEN]
        return _normalized((" " if _are_words(self.tokens) else "").join(shown).translate(SPACES))

    def line(self, answer: Any) -> str:
        """The text."""
        return answer or ""

    def as_target(self, answer: Any) -> str:
        """The text that the source hears."""
        return answer or ""

    def broken(self, value: float, answers: Sequence[Any], targets: Sequence[Any]) -> str:
        """Nothing is recognised, or always the same."""
        if value >= 1.0:
            return f"word error is {100 * value:.0f} %: nothing of what is said is recognised"
        if len(set(answers)) == 1 and len(set(targets)) > 1:
            return f"the metric is constant: every answer is {answers[0]!r:.80}"
        return ""


def _normalized(text: str) -> str:
    return " ".join(text.lower().split())


def _are_words(tokens: Sequence[str]) -> bool:
    """Whether each token is a word: none marks a space, and none is a single character."""
    shown = [token for token in tokens if token and token not in HIDDEN]
    return all(len(token) > 1 and not set(token) & {"|", "▁", " "} for token in shown)


def _tokens(model: Described, count: int) -> tuple[str, ...]:
    """The texts of all tokens, "" for one without.

    Raises:
        DataError: if nothing names them, or names tokens that the model does not have.
    """
    if count > MAX_TOKENS:
        raise DataError(f"at most {MAX_TOKENS} tokens; this model {model.told}")
    where = VOCABULARY
    found: Mapping[str, Any] = read_config(model.assets, VOCABULARY)
    if not found and TOKENIZER in model.assets:
        where, found = TOKENIZER, read_tokenizer(model.assets[TOKENIZER], None).get_vocab(with_added_tokens=True)
    if not found:
        if len(model.labels) >= count and all(model.labels[:count]):
            return model.labels[:count]
        raise DataError(
            f"what is heard needs the texts of the model's {count} tokens: a {VOCABULARY} or {TOKENIZER} beside it, or "
            "id2label in its config.json"
        )
    tokens = [""] * count
    for token, number in found.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
            raise DataError(f"{where}: token {token[:40]!r} is number {number!r:.20}, and the model has {count} tokens")
        tokens[number] = token
    return tuple(tokens)
