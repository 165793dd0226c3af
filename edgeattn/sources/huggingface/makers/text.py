"""Token ids and what goes with them: masks, types, boxes, the tokens of a decoder and of an image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from edgeattn.sources.huggingface.checkpoint import read_json, read_tokenizer
from edgeattn.sources.huggingface.source import PARTS, TOKENS, Source, configs

PADDED = 4  # of the tokens of an example text
SENTENCE = "The quick brown fox jumps over the lazy dog while seven wizards mix quartz and jade in deep blue jars. "


def text_dims(inputs: Iterable[str], source: Source) -> dict[str, dict[int, str]]:
    """The axes of example inputs that may have other sizes: tokens, and what is given per token."""
    axis = 2 if source.takes_choices else 1
    names = ("input_ids", "attention_mask", "token_type_ids", "bbox")
    dims = {name: {axis: "seq"} for name in names if name in inputs and "input_ids" in inputs}
    return dims | {
        name: {1: "decoder_seq"} for name in ("decoder_input_ids", "decoder_attention_mask") if name in inputs
    }


def text_fills(inputs: Iterable[str], source: Source) -> dict[str, float]:
    """What padded tokens hold, where it is not 0."""
    pad = _special(source, "pad_token_id")
    return {name: float(pad) for name in ("input_ids", "decoder_input_ids") if name in inputs and pad}


def _vocabulary(source: Source) -> int:
    try:
        rows = source.model.get_input_embeddings().weight.shape[0]
    except (AttributeError, NotImplementedError):
        rows = 0
    size = source.number("text", "vocab_size", "n_vocab", default=int(rows) or 32)
    return min(size, int(rows)) if rows else size


def _special(source: Source, name: str) -> int | None:
    for config in configs(source.config, PARTS["text"]):
        value = getattr(config, name, None)
        value = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(value, int) and 0 <= value < _vocabulary(source):
            return value
    return None


def input_ids(source: Source) -> np.ndarray:
    """Tokens of a text, int64, padded at the end where the model has a token for that; those of an image come first."""
    shape = source.shape_of_text()
    pad = _special(source, "pad_token_id")
    length = shape[-1] - (PADDED if pad is not None and shape[-1] > 2 * PADDED else 0)
    row = np.full(shape[-1], pad or 0, dtype=np.int64)
    encoded = _encoded(source, length)
    row[:length] = encoded if encoded is not None else _synthetic_ids(source, length)
    row = np.concatenate([_image_ids(source), row])
    return np.broadcast_to(row, (*shape[:-1], len(row))).copy()


def _image_ids(source: Source) -> np.ndarray:
    """The tokens in whose places a language model reads an image, one per feature of it."""
    token = _special(source, "image_token_id")
    token = _special(source, "image_token_index") if token is None else token
    if token is None or "pixel_values" not in source.made or not hasattr(source.model, "get_image_features"):
        return np.empty(0, np.int64)
    pixels = source.made["pixel_values"]
    for given in (pixels, pixels[:, None]):  # some count the images of a text
        found = _image_features(source.model, given)
        if found:
            source.made["pixel_values"] = given
            return np.full(found, token, np.int64)
    return np.empty(0, np.int64)  # it wants more than the image; forward will say what


def _image_features(model: Any, pixels: np.ndarray) -> int:
    """How many features a language model gets of an image; 0 if the image does not fit."""
    import torch

    try:
        with torch.inference_mode():
            found = model.get_image_features(pixel_values=torch.from_numpy(np.ascontiguousarray(pixels)))
    except Exception:  # noqa: BLE001 - any exception means that the image does not fit
        return 0
    found = getattr(found, "pooler_output", found)
    features = found if isinstance(found, (tuple, list)) else [found]
    return sum(part.numel() // part.shape[-1] for part in features)


def _encoded(source: Source, length: int) -> np.ndarray | None:
    """A sentence through the directory's own tokenizer, if it has one that fits the model."""
    path = source.directory / "tokenizer.json"
    if not path.is_file():
        return None
    encoded = read_tokenizer(path, length).encode(SENTENCE * (1 + length // 8))
    ids = np.asarray(encoded.ids, dtype=np.int64)
    return ids if len(ids) == length and ids.max(initial=0) < _vocabulary(source) else None


def _synthetic_ids(source: Source, length: int) -> np.ndarray:
    vocabulary = _vocabulary(source)
    reserved = {
        value
        for config in configs(source.config, PARTS["text"])
        for name, value in vars(config).items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    plain = np.setdiff1d(np.arange(min(vocabulary, 2000)), np.fromiter(reserved, np.int64, len(reserved)))
    row = np.random.default_rng(0).choice(plain if plain.size else np.arange(vocabulary), size=length)
    first = _special(source, "bos_token_id")
    last = _special(source, "eos_token_id")  # heads that pool look for it
    if first is not None:
        row[0] = first
    if last is not None:
        row[-1] = last
    return row.astype(np.int64)


def attention_mask(source: Source) -> np.ndarray | None:
    """1 for every token, 0 for the padded ones, int64; None where there are no tokens."""
    ids = source.made.get("input_ids")
    if ids is None:
        return None
    mask = np.ones(ids.shape, dtype=np.int64)
    if _special(source, "pad_token_id") is not None and source.shape_of_text()[-1] > 2 * PADDED:
        mask[..., -PADDED:] = 0
    return mask


def token_type_ids(source: Source) -> np.ndarray | None:
    """0 for the first half of a text, 1 for the second, int64; None where there are no tokens."""
    if "input_ids" not in source.made:
        return None
    shape = source.made["input_ids"].shape
    kinds = source.find("text", "type_vocab_sizes")  # TAPAS: columns of a table, one embedding each
    if kinds:
        return np.zeros((*shape, len(kinds)), dtype=np.int64)
    types = np.zeros(shape, dtype=np.int64)
    types[..., shape[-1] // 2 :] = 1
    return types


def takes_types(source: Source) -> bool:
    """Whether a model has more than one type of token, and its tokenizer gives them."""
    path = source.directory / "tokenizer_config.json"
    names = read_json(path).get("model_input_names") if path.is_file() else None
    if isinstance(names, list) and "token_type_ids" not in names:
        return False
    return source.number("text", "type_vocab_size", default=0) > 1 or bool(source.find("text", "type_vocab_sizes"))


def decoder_input_ids(source: Source) -> np.ndarray:
    """(1, tokens) int64: what a decoder has written so far, its start token first."""
    ids = _synthetic_ids(source, TOKENS // 2)
    start = _special(source, "decoder_start_token_id")
    ids[-1] = ids[1]
    ids[0] = start if start is not None else _special(source, "pad_token_id") or 0
    return ids[None]


def bbox(source: Source) -> np.ndarray:
    """(1, tokens, 4) int64: where each token stands on its page, left upper corner first."""
    shape = source.made["input_ids"].shape
    largest = min(1000, source.number("text", "max_2d_position_embeddings", default=1001) - 1)
    corners = np.sort(np.random.default_rng(1).integers(0, largest, (*shape, 2, 2)), axis=-2)
    return np.asarray(corners.reshape(*shape, 4), dtype=np.int64)
