"""How a text is written: what a caller asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeattn.errors import InputError

MAX_BEAMS = 64  # each has a cache of its own
Tokens = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How to write a text. None is what the model's ``generation_config.json`` says, or transformers' default.

    Attributes:
        max_new_tokens: at most; without one, and without one of the model, all that a cache holds.
        min_new_tokens: before which the text does not stop.
        beams: of a beam search; 1 takes the best token each time, or samples.
        length_penalty: a finished beam's score is its log-probability / length ** this; above 0 favors long texts.
        early_stopping: True ends with as many finished beams as there are beams; False where none that is open is
            likely to be better; "never" where none can be.
        sample: draw tokens by their probability instead of taking the best.
        temperature: logits are divided by it before drawing.
        top_k: draw from that many best tokens; 0 from all.
        top_p: draw from the fewest best tokens that have this probability together.
        seed: of the draws: the same seed, the same text. None is another one each time.
        repetition_penalty: what was said (a causal model's prompt included) is less likely by this factor; 1 is off.
        no_repeat_ngram: no sequence of that many tokens comes twice; 0 is off.
        stop: tokens that end the text; they are not part of it.
        suppress: tokens that are never written.
        begin_suppress: tokens that are not written first.
        bad_words: sequences of tokens that are never written.
        forced_bos: the first token is one of these, in a decoder that was given nothing but its start; () is off.
        forced_eos: the last token, where the text is as long as allowed, is one of these; () is off.
        prefix: tokens of an encoder-decoder's text that stand at its beginning already, behind the start token (a
            language, a task); they are not given again.
        slide: go on where a cache is full: the model then sees the last tokens alone, which it was not trained for.

    Raises:
        InputError: for a value out of range.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram: int | None = None
    stop: Tokens | None = None
    suppress: Tokens | None = None
    begin_suppress: Tokens | None = None
    bad_words: tuple[Tokens, ...] | None = None
    forced_bos: Tokens | None = None
    forced_eos: Tokens | None = None
    prefix: Tokens = ()
    slide: bool = False

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InputError(f"{name} must be a whole number from {least} on, got {value!r:.80}")
        if self.beams is not None and self.beams > MAX_BEAMS:
            raise InputError(f"beams must be {MAX_BEAMS} at most, got {self.beams}")
        for name in ("temperature", "repetition_penalty", "length_penalty", "top_p"):
            value = getattr(self, name)
            if value is not None and not _is_number(value):
                raise InputError(f"{name} must be a finite number, got {value!r:.80}")
        for name in ("temperature", "repetition_penalty"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{name} must be larger than 0, got {value}; 1 changes nothing")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must lie in (0, 1], got {self.top_p}; 1 draws from all tokens")
        if self.early_stopping not in (None, True, False, "never"):
            raise InputError(f"early_stopping must be True, False or 'never', got {self.early_stopping!r:.80}")
        for name in TOKEN_LISTS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, token_ids(getattr(self, name), name))
        if self.bad_words is not None:
            words = tuple(token_ids(word, "bad_words") for word in self.bad_words)
            if () in words:
                raise InputError("bad_words holds an empty sequence, which would forbid every token")
            object.__setattr__(self, "bad_words", words)


LEAST = {"max_new_tokens": 1, "min_new_tokens": 0, "beams": 1, "top_k": 0, "seed": 0, "no_repeat_ngram": 0}
"""Field -> its smallest value."""
TOKEN_LISTS = ("stop", "suppress", "begin_suppress", "forced_bos", "forced_eos", "prefix")


def token_ids(value: Sequence[int] | np.ndarray, name: str) -> Tokens:
    """Token ids as a tuple.

    Raises:
        InputError: for what is no sequence of whole numbers from 0 on.
    """
    try:
        ids = np.asarray(value)
    except ValueError:
        ids = np.empty((0, 0))
    if ids.size == 0 and ids.ndim == 1:
        return ()
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or int(ids.min()) < 0:
        raise InputError(f"{name} must be a sequence of token ids, whole numbers from 0 on, got {value!r:.80}")
    return tuple(int(token) for token in ids)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))
