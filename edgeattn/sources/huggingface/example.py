"""Example inputs for a transformers model that nobody gave any: one maker per parameter of forward.

Shapes come from the config and from what lies beside it (tokenizer.json, preprocessor_config.json); values are
deterministic and in range. Only parameters that the model needs are given: positions, labels, caches and prompts that
forward makes itself when they are absent stay absent. What is here knows names of parameters and of config fields,
never names of models.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.errors import ModelError
from edgeattn.sources.huggingface.checkpoint import read_json, read_tokenizer

TOKENS = 16  # length of example texts; the last quarter is padding, so that a mask that is lost is seen
PADDED = 4
AUDIO_SECONDS = 1
IMAGE = 224  # pixels, where neither config nor processor says
LARGEST_IMAGE = 512  # pixels a side, for models that take any size
LARGEST_INPUT = 2**26  # numbers, 256 MiB in float32
CHOICES = 2
SENTENCE = "The quick brown fox jumps over the lazy dog while seven wizards mix quartz and jade in deep blue jars. "

PARTS: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "decoder", "language", "llm", "thinker"),
    "vision": ("vision", "image", "encoder", "backbone", "pixel"),
    "audio": ("audio", "speech", "encoder", "acoustic"),
    "": (),
}
"""Words in the names of sub-configs, most telling first."""


@dataclass(frozen=True)
class Source:
    """What example inputs are made from.

    Attributes:
        model: the transformers model.
        directory: where it was read from.
        made: inputs so far, for makers that must agree with one.
    """

    model: Any
    directory: Path
    made: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        """The model's own config."""
        return self.model.config

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Of forward, by name."""
        return inspect.signature(self.model.forward).parameters

    def find(self, part: str, *names: str) -> Any:
        """The first of some config fields that is set: in the config itself, then in its sub-configs."""
        for config in _configs(self.config, PARTS[part]):
            for name in names:
                value = getattr(config, name, None)
                if value is not None:
                    return value
        return None

    def number(self, part: str, *names: str, default: int) -> int:
        """Like :meth:`find`, the first that is a positive integer."""
        for config in _configs(self.config, PARTS[part]):
            for name in names:
                value = getattr(config, name, None)
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
        return default

    @property
    def processor(self) -> Mapping[str, Any]:
        """preprocessor_config.json, empty where there is none."""
        path = self.directory / "preprocessor_config.json"
        return read_json(path) if path.is_file() else {}

    def shape_of_text(self) -> tuple[int, ...]:
        """(1, tokens), with an axis of choices for multiple choice heads."""
        length = min(TOKENS, self.number("text", "max_position_embeddings", "n_positions", default=TOKENS))
        return (1, CHOICES, length) if self.takes_choices else (1, length)

    @property
    def takes_choices(self) -> bool:
        """Whether every text comes several times; no field of a config says so."""
        return type(self.model).__name__.endswith("ForMultipleChoice")


def _configs(config: Any, words: tuple[str, ...]) -> Iterator[Any]:
    """A config and those inside it; the ones whose names hold the first words come first."""
    yield config
    names = [name for name in vars(config) if hasattr(getattr(config, name), "to_dict")]

    def rank(name: str) -> int:
        return next((index for index, word in enumerate(words) if word in name), len(words))

    for name in sorted(names, key=rank):
        yield from _configs(getattr(config, name), words)


def example_inputs(source: Source) -> dict[str, np.ndarray]:
    """Inputs that a model's forward accepts.

    Raises:
        ModelError: naming the parameter that cannot be invented, or what forward said, and what to write.
    """
    wanted = _wanted(source)
    for name in wanted:
        if name not in MAKERS:
            raise ModelError(
                f"{_kind(source)}.forward takes {name!r}, for which there is no example. {_advice(source)}"
            )
        value = MAKERS[name](source)
        if value is not None:
            source.made[name] = value
    first: Exception | None = None
    for inputs in _variants(source):
        error = _refusal(source.model, inputs)
        if error is None:
            return inputs
        first = first or error
    shapes = ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in source.made.items())
    said = " ".join(str(first).split())[:300]
    raise ModelError(
        f"{_kind(source)}.forward refuses the example inputs ({shapes}): {type(first).__name__}: {said}. "
        f"{_advice(source)}"
    ) from first


def _kind(source: Source) -> str:
    return type(source.model).__name__


def _advice(source: Source) -> str:
    return (
        "Give your own with a factory: def model(): return "
        f"{_kind(source)}.from_pretrained({str(source.directory)!r}), {{name: tensor, ...}}"
    )


def _refusal(model: Any, inputs: Mapping[str, np.ndarray]) -> Exception | None:
    """What a forward raises on some inputs."""
    import torch

    try:
        with torch.inference_mode():
            model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    except Exception as error:  # noqa: BLE001 - any exception of a forward means that these inputs do not fit
        return error
    return None


def _wanted(source: Source) -> list[str]:
    """Names of the parameters to give: required ones, the main one, and what goes with it."""
    parameters = source.parameters
    named = [
        name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name != "self"
    ]
    main = getattr(source.model, "main_input_name", "input_ids")
    main = main if isinstance(main, str) else main[0]
    wanted = {name for name in named if parameters[name].default is inspect.Parameter.empty}
    wanted |= {name for name in (main, *MODALITIES) if name in named}
    for name, others in COMPANIONS.items():
        if name in named and (not others or wanted & set(others)):
            wanted.add(name)
    wanted |= {name for name, holds in CONDITIONS.items() if name in named and holds(source)}
    return [name for name in (*MAKERS, *named) if name in wanted] if wanted else named[:1]


def _variants(source: Source) -> Iterator[dict[str, np.ndarray]]:
    """The inputs, then with less of what a model may not take after all, then the model's own examples."""
    made = source.made
    yield dict(made)
    for without in (
        ("decoder_input_ids",),
        ("token_type_ids",),
        ("attention_mask", "token_type_ids"),
    ):
        if any(name in made for name in without) and set(made) - set(without):
            yield {name: value for name, value in made.items() if name not in without}
    if "decoder_input_ids" in source.parameters and "decoder_input_ids" not in made:
        yield {**made, "decoder_input_ids": _decoder_input_ids(source)}
    own = getattr(source.model, "dummy_inputs", None) if _has_own_examples(source.model) else None
    if isinstance(own, Mapping) and not {name for name in MODALITIES if name in made} - set(own):
        yield {str(name): value.numpy() for name, value in own.items() if hasattr(value, "numpy")}


def _has_own_examples(model: Any) -> bool:
    """Whether a class makes examples for itself; all of them inherit three rows of token ids."""
    owner = next((kind for kind in type(model).__mro__ if "dummy_inputs" in vars(kind)), None)
    return owner is not None and owner.__name__ != "PreTrainedModel"


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


# --- text ---------------------------------------------------------------------------------------------------------


def _vocabulary(source: Source) -> int:
    try:
        rows = source.model.get_input_embeddings().weight.shape[0]
    except (AttributeError, NotImplementedError):
        rows = 0
    size = source.number("text", "vocab_size", "n_vocab", default=int(rows) or 32)
    return min(size, int(rows)) if rows else size


def _special(source: Source, name: str) -> int | None:
    for config in _configs(source.config, PARTS["text"]):
        value = getattr(config, name, None)
        value = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(value, int) and 0 <= value < _vocabulary(source):
            return value
    return None


def _input_ids(source: Source) -> np.ndarray:
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
        for config in _configs(source.config, PARTS["text"])
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


def _attention_mask(source: Source) -> np.ndarray | None:
    ids = source.made.get("input_ids")
    if ids is None:
        return None
    mask = np.ones(ids.shape, dtype=np.int64)
    if _special(source, "pad_token_id") is not None and source.shape_of_text()[-1] > 2 * PADDED:
        mask[..., -PADDED:] = 0
    return mask


def _token_type_ids(source: Source) -> np.ndarray | None:
    if "input_ids" not in source.made:
        return None
    shape = source.made["input_ids"].shape
    kinds = source.find("text", "type_vocab_sizes")  # TAPAS: columns of a table, one embedding each
    if kinds:
        return np.zeros((*shape, len(kinds)), dtype=np.int64)
    types = np.zeros(shape, dtype=np.int64)
    types[..., shape[-1] // 2 :] = 1
    return types


def _takes_types(source: Source) -> bool:
    path = source.directory / "tokenizer_config.json"
    names = read_json(path).get("model_input_names") if path.is_file() else None
    if isinstance(names, list) and "token_type_ids" not in names:
        return False
    return source.number("text", "type_vocab_size", default=0) > 1 or bool(source.find("text", "type_vocab_sizes"))


def _decoder_input_ids(source: Source) -> np.ndarray:
    ids = _synthetic_ids(source, TOKENS // 2)
    start = _special(source, "decoder_start_token_id")
    ids[-1] = ids[1]
    ids[0] = start if start is not None else _special(source, "pad_token_id") or 0
    return ids[None]


def _bbox(source: Source) -> np.ndarray:
    shape = source.made["input_ids"].shape
    largest = min(1000, source.number("text", "max_2d_position_embeddings", default=1001) - 1)
    corners = np.sort(np.random.default_rng(1).integers(0, largest, (*shape, 2, 2)), axis=-2)
    return np.asarray(corners.reshape(*shape, 4), dtype=np.int64)


# --- images and video ---------------------------------------------------------------------------------------------


def _image_size(source: Source) -> tuple[int, int]:
    """Height, width."""
    for config in _configs(source.config, PARTS["vision"]):
        for name in ("image_size", "img_size", "input_size", "crop_size", "video_size"):
            size = _height_width(getattr(config, name, None))
            if size is not None:
                return size
    for name in ("crop_size", "size"):
        size = _height_width(source.processor.get(name))
        if size is not None and max(size) <= LARGEST_IMAGE:
            return size
    return (IMAGE, IMAGE)


def _height_width(value: Any) -> tuple[int, int] | None:
    if isinstance(value, Mapping):
        if "height" in value and "width" in value:
            value = (value["height"], value["width"])
        else:
            value = value.get("shortest_edge")
    if isinstance(value, (list, tuple)):
        if len(value) == 1:
            value = value[0]
        elif len(value) >= 2 and all(isinstance(item, int) and item > 0 for item in value[-2:]):
            return int(value[-2]), int(value[-1])
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value, value
    return None


def _channels(source: Source) -> int:
    return source.number("vision", "num_channels", "in_channels", "in_chans", default=3)


def _noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    if math.prod(shape) > LARGEST_INPUT:
        raise ModelError(f"the config asks for an input of {list(shape)}, more than an edge device takes in one call")
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _pixel_values(source: Source) -> np.ndarray:
    size = (_channels(source), *_image_size(source))
    frames = source.number("vision", "num_frames", default=0)
    return _noise((1, frames, *size) if frames else (1, *size))


def _pixel_values_videos(source: Source) -> np.ndarray:
    frames = source.number("vision", "num_frames", "frames_per_clip", default=8)
    return _noise((1, frames, _channels(source), *_image_size(source)))


def _patches(source: Source) -> int:
    patch = _height_width(source.find("vision", "patch_size")) or (16, 16)
    height, width = _image_size(source)
    frames = source.number("vision", "num_frames", default=0)
    tubes = frames // source.number("vision", "tubelet_size", default=1) if frames else 1
    return (height // patch[0]) * (width // patch[1]) * tubes


def _bool_masked_pos(source: Source) -> np.ndarray:
    masked = _noise((1, _patches(source))) > np.inf
    masked[:, ::2] = True
    return masked


def _random_order(source: Source) -> np.ndarray:
    """What ViTMAE shuffles its patches by; without it every call draws anew."""
    return np.argsort(_noise((1, _patches(source))), axis=-1).astype(np.float32) / _patches(source)


# --- audio --------------------------------------------------------------------------------------------------------


def _sample_rate(source: Source) -> int:
    rate = source.processor.get("sampling_rate")
    known = rate if isinstance(rate, int) and 0 < rate <= 384_000 else None
    return known or source.number("audio", "sampling_rate", "sample_rate", default=16_000)


def _input_values(source: Source) -> np.ndarray:
    mel = source.number("audio", "num_mel_bins", default=0)
    frames = source.number("audio", "max_length", default=0)
    if mel and frames and source.find("audio", "patch_size"):  # a spectrogram cut into patches
        return _noise((1, frames, mel))
    samples = _sample_rate(source) * AUDIO_SECONDS
    channels = source.number("audio", "audio_channels", default=0)  # codecs
    return _noise((1, channels, samples) if channels else (1, samples)) * np.float32(0.1)


def _input_features(source: Source) -> np.ndarray:
    """Frames of a spectrogram: mel bins first where positions are counted in halves (Whisper), last elsewhere."""
    mel = source.number("audio", "num_mel_bins", "feature_size", "input_feat_per_channel", default=0)
    positions = source.number("audio", "max_source_positions", default=0)
    if mel and positions and not source.find("audio", "input_feat_per_channel"):
        return _noise((1, mel, 2 * positions))
    width = source.number("audio", "feature_projection_input_dim", "input_dim", default=mel or 80)
    size = source.find("audio", "spec_size")
    if isinstance(size, int):  # CLAP: one image of a fixed size
        return _noise((1, 1, 4 * size, source.number("audio", "num_mel_bins", default=64)))
    return _noise((1, 100 * AUDIO_SECONDS, width * source.number("audio", "input_channels", default=1)))


# --- time series and others -----------------------------------------------------------------------------------------


def _history(source: Source) -> int:
    lags: list[int] = source.find("", "lags_sequence") or [0]
    return source.number("", "context_length", "prediction_length", default=32) + max(lags)


def _past_values(source: Source) -> np.ndarray:
    channels = source.number("", "num_input_channels", default=0)
    width = channels or source.number("", "input_size", default=1)
    shape = (1, _history(source), width) if channels or width > 1 else (1, _history(source))
    return _noise(shape)


def _past_time_features(source: Source) -> np.ndarray:
    return _noise((1, _history(source), source.number("", "num_time_features", default=0)), 1)


def _future_time_features(source: Source) -> np.ndarray:
    steps = source.number("", "prediction_length", default=1)
    return _noise((1, steps, source.number("", "num_time_features", default=0)), 2)


def _future_values(source: Source) -> np.ndarray:
    width = source.number("", "input_size", default=1)
    steps = source.number("", "prediction_length", default=1)
    return _noise((1, steps, width) if width > 1 else (1, steps), 3)


def _decision(name: str) -> Callable[[Source], np.ndarray]:
    def make(source: Source) -> np.ndarray:
        width = source.number("", {"states": "state_dim", "actions": "act_dim"}.get(name, ""), default=1)
        return _noise((1, TOKENS, width))

    return make


def _inputs(source: Source) -> np.ndarray:
    """Perceiver: tokens, pixels or plain features, as its preprocessor takes them."""
    preprocessor = type(getattr(source.model, "input_preprocessor", None)).__name__
    if "Text" in preprocessor or ("vocab_size" in vars(source.config) and "input_preprocessor" in preprocessor):
        return _input_ids(source)
    if "Image" in preprocessor:
        return _noise((1, 3, *_image_size(source)))
    return _noise((1, TOKENS, source.number("", "d_model", default=1)))


def _regions(source: Source) -> np.ndarray:
    return _noise((1, 8, source.number("", "visual_embedding_dim", "visual_feat_dim", default=2048)))


def _input_points(source: Source) -> np.ndarray:
    height, width = _image_size(source)
    return np.array([[[[width / 2, height / 2]]]], dtype=np.float32)


Maker = Callable[[Source], "np.ndarray | None"]

MAKERS: Mapping[str, Maker] = {
    "pixel_values": _pixel_values,
    "pixel_values_videos": _pixel_values_videos,
    "input_ids": _input_ids,
    "inputs": _inputs,
    "attention_mask": _attention_mask,
    "token_type_ids": _token_type_ids,
    "bbox": _bbox,
    "decoder_input_ids": _decoder_input_ids,
    "bool_masked_pos": _bool_masked_pos,
    "noise": _random_order,
    "input_values": _input_values,
    "input_features": _input_features,
    "past_values": _past_values,
    "past_time_features": _past_time_features,
    "past_observed_mask": lambda source: np.ones_like(source.made["past_values"]),
    "future_values": _future_values,
    "future_time_features": _future_time_features,
    "states": _decision("states"),
    "actions": _decision("actions"),
    "rewards": _decision("rewards"),
    "returns_to_go": _decision("returns_to_go"),
    "timesteps": lambda _: np.arange(TOKENS, dtype=np.int64)[None],
    "visual_embeds": _regions,
    "visual_feats": _regions,
    "visual_pos": lambda _: np.tile(np.array([0.1, 0.1, 0.9, 0.9], np.float32), (1, 8, 1)),
    "input_points": _input_points,
}
"""Parameter -> its example, in the order that makers need each other."""

MODALITIES = ("pixel_values", "pixel_values_videos", "input_values", "input_features")
"""Given wherever forward takes them: a model of two modalities needs both."""

COMPANIONS: Mapping[str, tuple[str, ...]] = {
    "bbox": (),
    "visual_embeds": (),
    "visual_feats": (),
    "visual_pos": (),
    "past_time_features": (),
    "input_ids": ("pixel_values", "bbox", "visual_embeds"),
    "attention_mask": ("input_ids",),
    "past_observed_mask": ("past_time_features",),
    "future_values": ("past_time_features",),
    "future_time_features": ("past_time_features",),
    "actions": ("states",),
    "rewards": ("states",),
    "returns_to_go": ("states",),
    "timesteps": ("states",),
    "input_points": ("pixel_values",),
}
"""Parameter with a default that is given all the same -> beside which others; beside any if there are none."""

CONDITIONS: Mapping[str, Callable[[Source], bool]] = {
    "token_type_ids": _takes_types,
    "decoder_input_ids": lambda source: bool(getattr(source.config, "is_encoder_decoder", False)),
    "noise": lambda source: source.find("vision", "mask_ratio") is not None,
}
"""Parameter with a default that is given all the same -> what the config must say."""
