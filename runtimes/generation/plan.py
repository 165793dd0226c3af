"""How a text is written, every choice made: what was asked for, and the model's own where nothing was.

The model's own stands in ``generation_config.json`` beside it, or in ``config.json`` where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from edgeattn.errors import InputError
from edgeattn.runtimes.generation.options import GenerateOptions, Tokens, token_ids

CONFIG, GENERATION = "config.json", "generation_config.json"
MAX_CONFIG_BYTES = 2**24
POSITIONS = (
    "max_target_positions",
    "max_text_positions",
    "max_decoder_position_embeddings",
    "max_position_embeddings",
    "n_positions",
)
"""What configs call the number of positions that a decoder knows, the first that is there."""
TOP_K = 50  # what transformers draws from where nobody says

Values = Mapping[str, Any]
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """:class:`GenerateOptions` with every choice made, and what the loop needs to know of the model.

    Attributes:
        max_new_tokens: None where neither the caller nor the model says.
        asked: whether the caller said so.
        max_length: of the model: tokens in all; None where it says none.
        min_length: tokens in all before which the text does not stop.
        start: a decoder's first token; None where the model names none.
        pad: what stands in padded places of an encoder's input.
        positions: tokens in all that the model has positions for; None where its config does not say.
        window: tokens that the model's own attention sees; None where it sees all.
    """

    max_new_tokens: int | None
    asked: bool
    max_length: int | None
    min_length: int
    min_new_tokens: int
    beams: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    sample: bool
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    repetition_penalty: float
    no_repeat_ngram: int
    stop: Tokens
    suppress: Tokens
    begin_suppress: Tokens
    bad_words: tuple[Tokens, ...]
    forced_bos: Tokens
    forced_eos: Tokens
    prefix: Tokens
    slide: bool
    start: int | None
    pad: int
    positions: int | None
    window: int | None


def plan_of(options: GenerateOptions, assets: Mapping[str, Path]) -> Plan:
    """Make every choice that was left open.

    Args:
        assets: name -> file that came with the model.

    Raises:
        InputError: for a config that cannot be read or whose values are of another kind, and for beams that are to be
            sampled.
    """
    config = _read(assets, CONFIG)
    own = _Own(_read(assets, GENERATION) or config, config)
    beams = _chosen(options.beams, own.integer("num_beams", 1))
    searching = options.beams is not None and options.beams > 1  # asked for: the model's own sampling gives way
    sample = _chosen(options.sample, own.flag("do_sample") and not searching)
    if sample and options.sample and options.beams is None:
        beams = 1
    if sample and beams > 1:
        raise InputError(f"sample=True draws one text, and beams={beams} searches for the best: take one of them")
    return Plan(
        max_new_tokens=_chosen(options.max_new_tokens, own.maybe("max_new_tokens")),
        asked=options.max_new_tokens is not None,
        max_length=own.maybe("max_length"),
        min_length=own.integer("min_length", 0) if options.min_new_tokens is None else 0,
        min_new_tokens=_chosen(options.min_new_tokens, own.integer("min_new_tokens", 0)),
        beams=beams,
        length_penalty=_chosen(options.length_penalty, own.number("length_penalty", 1.0)),
        early_stopping=_chosen(options.early_stopping, own.early_stopping()),
        sample=sample,
        temperature=_chosen(options.temperature, own.number("temperature", 1.0)),
        top_k=_chosen(options.top_k, own.integer("top_k", TOP_K)),
        top_p=_chosen(options.top_p, own.number("top_p", 1.0)),
        seed=options.seed,
        repetition_penalty=_chosen(options.repetition_penalty, own.number("repetition_penalty", 1.0)),
        no_repeat_ngram=_chosen(options.no_repeat_ngram, own.integer("no_repeat_ngram_size", 0)),
        stop=_chosen(options.stop, own.special("eos_token_id")),
        suppress=_chosen(options.suppress, own.tokens("suppress_tokens")),
        begin_suppress=_chosen(options.begin_suppress, own.tokens("begin_suppress_tokens")),
        bad_words=_chosen(options.bad_words, own.words("bad_words_ids")),
        forced_bos=_chosen(options.forced_bos, own.tokens("forced_bos_token_id")),
        forced_eos=_chosen(options.forced_eos, own.tokens("forced_eos_token_id")),
        prefix=options.prefix,
        slide=options.slide,
        start=next(iter(own.special("decoder_start_token_id") or own.special("bos_token_id")), None),
        pad=next(iter(own.special("pad_token_id")), 0),
        positions=_positions(config),
        window=_window(config),
    )


def _chosen(asked: Value | None, own: Value) -> Value:
    return own if asked is None else asked


def _positions(config: Values) -> int | None:
    """Of the decoder, which may have a config inside."""
    parts = [part for name in ("decoder", "text_config") if isinstance(part := config.get(name), dict)]
    sizes = [part.get(name) for part in (*parts, config) for name in POSITIONS]
    return next((size for size in sizes if isinstance(size, int) and size > 1), None)


def _window(config: Values) -> int | None:
    size = config.get("sliding_window")
    return size if isinstance(size, int) and size > 0 and config.get("use_sliding_window") is not False else None


def _read(assets: Mapping[str, Path], name: str) -> Values:
    """The values of a config; empty where there is none."""
    path = assets.get(name)
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise InputError(f"{path}: has more than {MAX_CONFIG_BYTES} bytes, no config does")
        values = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error!s:.120})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a JSON object, got {type(values).__name__}")
    return values


class _Own:
    """The model's own choices, by transformers' names; what its config does not say is ``None`` there or missing."""

    def __init__(self, values: Values, config: Values) -> None:
        self._values, self._config = values, config

    def _value(self, name: str, fits: Callable[[Any], bool], what: str) -> Any:
        value = self._values.get(name)
        if value is not None and not fits(value):
            raise InputError(f"{GENERATION}: {name} must be {what}, got {value!r:.80}; name yours in GenerateOptions")
        return value

    def flag(self, name: str) -> bool:
        return bool(self._value(name, lambda value: isinstance(value, bool), "true or false"))

    def maybe(self, name: str) -> int | None:
        value: int | None = self._value(name, lambda v: type(v) is int and v >= 0, "a whole number")
        return value or None

    def integer(self, name: str, default: int) -> int:
        value: int | None = self._value(name, lambda v: type(v) is int and v >= 0, "a whole number")
        return default if value is None else value

    def number(self, name: str, default: float) -> float:
        value = self._value(name, lambda v: type(v) in (int, float), "a number")
        return default if value is None else float(value)

    def early_stopping(self) -> bool | Literal["never"]:
        value: bool | Literal["never"] | None = self._value(
            "early_stopping", lambda v: v in (True, False, "never"), "true, false or 'never'"
        )
        return value or False

    def tokens(self, name: str) -> Tokens:
        value = self._value(name, _are_tokens, "a token id or a list of them")
        return () if value is None else token_ids(value if isinstance(value, list) else [value], name)

    def words(self, name: str) -> tuple[Tokens, ...]:
        value = self._value(name, lambda v: isinstance(v, list) and all(_are_tokens(w) for w in v), "lists of tokens")
        return tuple(token_ids(word, name) for word in value or () if word)

    def special(self, name: str) -> Tokens:
        """Tokens that may also stand in config.json, or in that of the decoder inside it."""
        decoder = self._config.get("decoder")
        inner = decoder if isinstance(decoder, dict) else {}
        for values in (self._values, self._config, inner):
            if values.get(name) is not None:
                return _Own(values, {}).tokens(name)
        return ()


def _are_tokens(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    return all(type(token) is int and token >= 0 for token in listed)
