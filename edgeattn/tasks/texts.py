"""Texts as token ids, by the model's own tokenizer.json (extra ``hf``: the tokenizers library)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.errors import DataError, ModelError, load_extra
from edgeattn.guards.plain import strict_json
from edgeattn.tasks.task import Arrays, Assets, Described

TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
ENCODED = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Input of a model -> attribute of a tokenizer's encoding."""
MAX_JSON_BYTES = 2**27
TOLD = 80  # characters of a text in a message


def read_tokenizer(path: Path, length: int | None) -> Any:
    """A tokenizer.json, for texts one by one: it cuts at ``length`` tokens and pads nothing, whatever the file says.

    Args:
        length: None for no cut.

    Raises:
        ModelError: if it is no tokenizer, or one that leaves no room for a text in ``length`` tokens.
        MissingExtraError: without tokenizers.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelError(f"{path}: {path.stat().st_size} bytes; a tokenizer has at most {MAX_JSON_BYTES}")
    tokenizers: Any = load_extra("tokenizers", "hf")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        if length is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(length)
    except Exception as error:  # the Rust library raises bare Exceptions
        raise ModelError(f"{path}: not readable as a tokenizer: {' '.join(str(error).split())[:200]}") from error
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A text, or a pair of them, as inputs.

    Attributes:
        arrays: int64, shape (1, tokens) each.
        encoding: the tokenizer's own, with offsets.
        cut: "at 128 tokens" where more were left out; else empty.
    """

    arrays: Arrays
    encoding: Any
    cut: str


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A tokenizer for one graph.

    Attributes:
        inputs: of the graph.
        length: most tokens.
        fills: what the inputs hold behind a text, where every text must be ``length`` long; None where it need not.
        vocabulary: ids are below this, if it is known.
    """

    tokenizer: Any
    inputs: tuple[str, ...]
    length: int
    fills: Mapping[str, int] | None
    vocabulary: int | None

    def __call__(self, text: str | list[str], pair: str | None = None, words: bool = False) -> Tokens:
        """A text as inputs; of a pair both, as the tokenizer joins them.

        Args:
            text: one text, or where ``words`` is set its words.

        Raises:
            DataError: for a text without a token, or with one that the model does not have.
        """
        encoding = self.tokenizer.encode(text, pair, is_pretokenized=words)
        return self.tokens(encoding, f"{text!r:.{TOLD}}")

    def tokens(self, encoding: Any, told: str) -> Tokens:
        """What the tokenizer made as inputs.

        Args:
            told: the text, for messages.

        Raises:
            DataError: as a call.
        """
        if not encoding.ids:
            raise DataError(f"expected a text; the model's tokenizer finds no token in {told}")
        if self.vocabulary is not None and max(encoding.ids) >= self.vocabulary:
            raise DataError(
                f"token {max(encoding.ids)}, but the model has {self.vocabulary}: its {TOKENIZER} belongs to another "
                "model"
            )
        missing = 0 if self.fills is None else self.length - len(encoding.ids)
        if missing > 0 and "attention_mask" not in self.inputs:
            raise DataError(
                f"{len(encoding.ids)} tokens, but the model takes {self.length} and no attention_mask that hides "
                "padding; convert with --bucket"
            )
        fills = self.fills or {}
        arrays = {
            name: np.array([[*getattr(encoding, ENCODED[name]), *[fills.get(name, 0)] * missing]], np.int64)
            for name in self.inputs
        }
        return Tokens(arrays=arrays, encoding=encoding, cut=f"at {self.length} tokens" if encoding.overflowing else "")


def text_encoder(model: Described) -> TextEncoder:
    """What makes token ids for the first graph of a model.

    Raises:
        DataError: if the model brings no tokenizer, or does not take what one gives.
        ModelError: if tokenizer.json or config.json is damaged.
        MissingExtraError: without tokenizers.
    """
    check_takes_text(model)
    spec, assets = model.spec, model.assets
    shapes = {tensor.name: tensor.shape for tensor in model.graph.inputs}
    length = shapes["input_ids"][1]
    bucket = spec.bucket()
    varies = bucket is not None and any((pad.tensor, pad.axis) == ("input_ids", 1) for pad in bucket.pad)
    config = model.config or read_config(assets)
    pad, vocabulary = (_count(config.get(name)) for name in ("pad_token_id", "vocab_size"))
    fills = None if varies else {"input_ids": pad or 0}
    tokenizer = read_tokenizer(assets[TOKENIZER], length)
    return TextEncoder(tokenizer=tokenizer, inputs=tuple(shapes), length=length, fills=fills, vocabulary=vocabulary)


def check_takes_text(model: Described) -> None:
    """Do nothing.

    Raises:
        DataError: if the model brings no tokenizer, or does not take what one gives.
    """
    if TOKENIZER not in model.assets:
        raise DataError(
            f"texts need the model's tokenizer, and this model brings no {TOKENIZER}; a Hugging Face directory that "
            "holds one does. Give an npz, or file.py:function"
        )
    shapes = {tensor.name: tensor.shape for tensor in model.graph.inputs}
    if any(name not in ENCODED for name in shapes) or "input_ids" not in shapes:
        raise DataError(
            f"a tokenizer gives {', '.join(ENCODED)}; this model takes {', '.join(shapes)}. "
            "Give an npz, or file.py:function"
        )
    shape = shapes["input_ids"]
    if len(shape) != 2 or shape[0] != 1:
        raise DataError(f"texts are run one by one, as [1, tokens]; this model takes input_ids{list(shape)}")


def read_config(assets: Assets, name: str = CONFIG) -> Mapping[str, Any]:
    """A JSON object that travels with a model, empty without.

    Raises:
        ModelError: if it is none.
    """
    if name not in assets:
        return {}
    path = assets[name]
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelError(f"{path}: {path.stat().st_size} bytes; a config has at most {MAX_JSON_BYTES}")
    try:
        values = strict_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: expected an object, got {type(values).__name__}")
    return values


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
